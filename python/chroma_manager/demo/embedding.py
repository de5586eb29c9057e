"""Latent semantic analysis: the demo's embedding, which needs no download, and the terms that characterise a corpus.

Needs scikit-learn, from the extra ``chroma-manager[demo]``. Vectors are stored in ``run.py``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.decomposition import TruncatedSVD  # type: ignore[import-untyped]
from sklearn.feature_extraction.text import (  # type: ignore[import-untyped]
    ENGLISH_STOP_WORDS,
    TfidfVectorizer,
)
from sklearn.preprocessing import normalize  # type: ignore[import-untyped]

from chroma_manager.demo.corpus import Corpus

Vectors = npt.NDArray[np.float32]
Weights = Any  # scipy.sparse.csr_matrix, which has no types

MOST_DIMENSIONS = 256
# The reduction leaves one dimension fewer than there are chunks: few chunks would be folded onto each other.
_FEWEST_TO_REDUCE = 16
_SHORTEST_TERM = 3
_QUESTIONS = 3
_TERMS_IN_A_QUESTION = 3
_SEED = 0


class Lsa:
    """An embedding fitted on the chunks of one corpus.

    Attributes:
        vectors: A unit vector for each chunk, in their order, of shape (chunks, dimensions).
        fingerprint: Identifies the corpus. Vectors of two corpora are not comparable, so a collection is for one.
    """

    def __init__(self, chunks: Sequence[str]) -> None:
        """Fits on the chunks, at least one, each with a word in it."""
        self._terms = TfidfVectorizer(sublinear_tf=True, token_pattern=r"\w+")
        self._weights = self._terms.fit_transform(chunks)
        self._reduction = _fit_reduction(self._weights)
        self.vectors = self._embed(self._weights)
        self.fingerprint = hashlib.sha256("\0".join(chunks).encode()).hexdigest()[:16]

    def embed(self, question: str) -> Vectors | None:
        """Returns the unit vector of a question, shape (1, dimensions); None if the corpus has none of its words."""
        weights = self._terms.transform([question])
        return self._embed(weights) if weights.nnz else None

    def strongest_terms(self, chunks: slice, count: int) -> list[str]:
        """Returns the terms, strongest first, that distinguish these chunks from the others."""
        # Above its minimum of one: a term in every chunk distinguishes none, unless there are no others.
        rarity = self._terms.idf_ - 1 + 1e-9
        strength = np.asarray(self._weights[chunks].sum(axis=0)).ravel() * rarity
        names = self._terms.get_feature_names_out()
        ranked = (str(names[index]) for index in np.argsort(-strength, kind="stable") if strength[index] > 0)
        return [term for term in ranked if _is_telling(term)][:count]

    def _embed(self, weights: Weights) -> Vectors:
        dense = self._reduction.transform(weights) if self._reduction else weights.toarray()
        return np.asarray(normalize(dense), dtype=np.float32)


def questions_from_terms(corpus: Corpus, embedding: Lsa) -> list[str]:
    """Returns three questions, about three files if there are as many, made of the terms that distinguish them."""
    largest = sorted(corpus.files_in_chunks(), key=lambda item: -len(item[0].chunks))[:_QUESTIONS]
    questions = []
    for number in range(_QUESTIONS):
        turn, file = divmod(number, len(largest))
        until = (turn + 1) * _TERMS_IN_A_QUESTION
        terms = embedding.strongest_terms(largest[file][1], until)[until - _TERMS_IN_A_QUESTION :]
        if terms:
            questions.append(f"What is said about {', '.join(terms)}?")
    return questions


def _fit_reduction(weights: Weights) -> TruncatedSVD | None:
    smallest = min(weights.shape)
    if smallest < _FEWEST_TO_REDUCE:
        return None
    return TruncatedSVD(min(MOST_DIMENSIONS, smallest - 1), random_state=_SEED).fit(weights)


def _is_telling(term: str) -> bool:
    return len(term) >= _SHORTEST_TERM and term[0].isalpha() and term not in ENGLISH_STOP_WORDS
