"""The demo's main job: the pages of Python's reference, embedded and stored by eight threads, a database for each."""

from __future__ import annotations

from contenders import Contender
from scenario import Figures, Scenario, Sizes, watched

THREADS = 8


def demo(contender: Contender, sizes: Sizes) -> Figures:
    """What is measured is the ingest; fitting the embedding is before it."""
    from chroma_manager.demo.corpus import Corpus, python_reference
    from chroma_manager.demo.embedding import Lsa
    from chroma_manager.demo.run import Application

    corpus = Corpus(python_reference().files[: sizes.demo_files], ())
    contender.client("first")
    application = Application(contender, corpus, Lsa(corpus.chunks))  # it asks for what a contender has, too
    took, stall = watched(lambda: application.ingest(THREADS, lambda _: None))
    return {"/s": len(corpus.chunks) / took, "stall ms": stall * 1e3}


SCENARIOS = (Scenario(demo),)
