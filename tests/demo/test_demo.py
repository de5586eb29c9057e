"""The command ``chroma-manager demo``: run as its users run it, and its parts that need no database.

What the manager under it promises is tested elsewhere.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chroma_manager.demo.corpus import (
    CHUNK_CHARACTERS,
    OVERLAP_CHARACTERS,
    Corpus,
    Rejected,
    SourceFile,
    file_id_for,
    python_reference,
    read_corpus,
    snippet,
    split,
)
from chroma_manager.demo.embedding import MOST_DIMENSIONS, Lsa, questions_from_terms
from chroma_manager.demo.figures import Ingest, StallMeter, table
from chroma_manager.demo.run import Application, DemoError
from chroma_manager.options import LOCAL_ENGINES
from conftest import long, made_once

TEXTS = {
    "bees.txt": "Bees carry pollen between flowers.\n\nA queen lays two thousand eggs on a warm day in June.\n",
    "bridges.txt": "A suspension bridge hangs its deck from cables.\n\nThe cables pull at anchorages on both banks.\n",
    "tea.txt": "Green tea is steamed soon after picking.\n\nBlack tea is left to oxidise until the leaves turn dark.\n",
}
QUESTION = "How many eggs does a queen lay on a warm day?"
TIMEOUT = 90


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:

    def make(folder: Path) -> None:
        for name, text in TEXTS.items():
            (folder / name).write_text(text, encoding="utf-8")

    return made_once(tmp_path_factory, "texts", make)


def run_once(factory: pytest.TempPathFactory, name: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """A run that several tests look at, and the workers of pytest-xdist share."""

    def make(folder: Path) -> None:
        done = run_demo(*arguments)
        (folder / "done.json").write_text(json.dumps([done.args, done.returncode, done.stdout, done.stderr]))

    return subprocess.CompletedProcess(*json.loads((made_once(factory, name, make) / "done.json").read_text()))


@pytest.fixture(scope="module")
def demo_of_texts(texts: Path, tmp_path_factory: pytest.TempPathFactory) -> subprocess.CompletedProcess[str]:
    return run_once(tmp_path_factory, "demo-of-texts", texts, "--ask", QUESTION, "--ask", "What is left to oxidise?")


@pytest.fixture(scope="module")
def demo_of_python_reference(tmp_path_factory: pytest.TempPathFactory) -> subprocess.CompletedProcess[str]:
    return run_once(tmp_path_factory, "demo-of-python-reference")


def run_demo(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments),
        capture_output=True,
        encoding="utf-8",
        env={**os.environ, "PYTHONIOENCODING": "utf-8", **environment},
        timeout=TIMEOUT,
        check=False,
    )


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "chroma_manager.cli", "demo", *map(str, arguments)]


def run_python(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=TIMEOUT, check=False)


def figures(stdout: str) -> dict[str, str]:
    return dict(re.findall(r"^(\S.*?) {2,}(\S.*)$", stdout, re.MULTILINE))


def engines(stdout: str) -> dict[str, tuple[int, int, int]]:
    """For each engine: chunks, records a second, worst stall in ms."""
    _, titles, rows = stdout.partition("engine    chunks  records a second  worst stall of another thread\n")
    assert titles, stdout
    found = re.findall(r"^(\w+) +(\d+) +(\d+) +(\d+) ms$", rows, re.MULTILINE)
    return {engine: (int(chunks), int(rate), int(stall)) for engine, chunks, rate, stall in found}


def answers(stdout: str) -> dict[str, list[tuple[str, float, str]]]:
    """For each question its passages: file, distance, line."""
    found: dict[str, list[tuple[str, float, str]]] = {}
    for block in stdout.split("\n\n"):
        question, *_ = block.splitlines() or [""]
        passages = re.findall(r"^  \d\. (.+) \(distance (\d\.\d{3})\)\n     (.+)$", block, re.MULTILINE)
        if passages:
            found[question] = [(file, float(distance), line) for file, distance, line in passages]
    return found


# The command


def test_the_sentence_that_answers_a_question_is_its_first_passage_and_from_the_right_file(
    demo_of_texts: subprocess.CompletedProcess[str], texts: Path
) -> None:
    assert demo_of_texts.returncode == 0, demo_of_texts.stderr
    file, distance, line = answers(demo_of_texts.stdout)[QUESTION][0]
    assert file == str(texts / "bees.txt")
    assert "A queen lays two thousand eggs on a warm day in June." in line
    assert 0 <= distance < 1


def test_every_question_is_answered_in_the_order_asked_and_its_passages_from_near_to_far(
    demo_of_texts: subprocess.CompletedProcess[str], texts: Path
) -> None:
    found = answers(demo_of_texts.stdout)
    assert list(found) == [QUESTION, "What is left to oxidise?"]
    assert found["What is left to oxidise?"][0][0] == str(texts / "tea.txt")
    for passages in found.values():
        distances = [distance for _, distance, _ in passages]
        assert len(distances) == 3
        assert distances == sorted(distances)
        assert distances[0] < distances[-1]


def test_all_databases_are_open_before_the_cleanup_and_none_after(
    demo_of_texts: subprocess.CompletedProcess[str],
) -> None:
    report = figures(demo_of_texts.stdout)
    assert report["open databases before cleanup"] == "3"
    assert report["open databases after cleanup"] == "0"


def test_the_report_has_what_was_done_in_figures(demo_of_texts: subprocess.CompletedProcess[str]) -> None:
    report = figures(demo_of_texts.stdout)
    assert list(report)[:5] == [
        "files",
        "chunks",
        "memory",
        "open databases before cleanup",
        "open databases after cleanup",
    ]
    assert (report["files"], report["chunks"]) == ("3", "3")
    assert re.fullmatch(r"\d{2,} MB", report["memory"])


@pytest.mark.long
def test_all_engines_are_compared_on_the_same_text_the_default_first(
    demo_of_python_reference: subprocess.CompletedProcess[str],
) -> None:
    compared = engines(demo_of_python_reference.stdout)
    assert tuple(compared) == LOCAL_ENGINES
    chunks = int(figures(demo_of_python_reference.stdout)["chunks"])
    for stored, rate, stall in compared.values():
        assert stored == chunks
        assert rate > 0
        assert stall > 0


def test_stderr_has_the_progress_and_nothing_else(demo_of_texts: subprocess.CompletedProcess[str]) -> None:
    lines = demo_of_texts.stderr.strip().splitlines()
    assert [re.fullmatch(r"ingesting \((\w+)\) .* 3/3\s*", line)[1] for line in lines] == list(LOCAL_ENGINES)


@pytest.mark.long
def test_without_a_path_the_pages_of_the_python_reference_are_the_files(
    demo_of_python_reference: subprocess.CompletedProcess[str],
) -> None:
    from pydoc_data.topics import topics

    assert demo_of_python_reference.returncode == 0, demo_of_python_reference.stderr
    report = figures(demo_of_python_reference.stdout)
    assert report["files"] == report["open databases before cleanup"] == str(len(topics))
    assert report["open databases after cleanup"] == "0"


@pytest.mark.long
def test_the_python_reference_answers_the_three_questions_about_it(
    demo_of_python_reference: subprocess.CompletedProcess[str],
) -> None:
    with_statement, defaults, finally_clause = answers(demo_of_python_reference.stdout).values()
    assert "__exit__" in with_statement[0][2]
    assert {file for file, _, _ in with_statement} & {"with", "compound", "context-managers"}
    assert "Default parameter values are evaluated" in defaults[0][2]
    assert '"finally" clause' in finally_clause[0][2]


def test_a_missing_a_binary_and_an_empty_file_are_reported_by_name_and_the_rest_goes_on(
    texts: Path, tmp_path: Path
) -> None:
    binary, empty, missing = tmp_path / "binary.bin", tmp_path / "empty.txt", tmp_path / "missing.txt"
    binary.write_bytes(b"\x7fELF\0\0\1")
    empty.write_bytes(b"")
    done = run_demo(missing, binary, empty, texts / "bees.txt", "--ask", QUESTION)
    assert done.returncode == 0, done.stderr
    assert f"{missing} is left out: No such file or directory" in done.stderr
    assert f"{binary} is left out: binary: it contains NUL bytes" in done.stderr
    assert f"{empty} is left out: empty" in done.stderr
    assert figures(done.stdout)["files"] == "1"
    assert answers(done.stdout)[QUESTION][0][0] == str(texts / "bees.txt")


def test_when_no_file_can_be_read_it_fails_and_says_so(tmp_path: Path) -> None:
    done = run_demo(tmp_path / "missing.txt")
    assert done.returncode == 1
    assert "missing.txt is left out" in done.stderr
    assert "nothing to ingest" in done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr


@pytest.fixture
def kept(texts: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base path over which it has been run, and which has what it said then."""

    def make(folder: Path) -> None:
        first = run_demo(texts, "--ask", QUESTION, "--base-path", folder / "kept")
        assert first.returncode == 0, first.stderr
        (folder / "kept" / "said").write_text(first.stdout)

    return shutil.copytree(made_once(tmp_path_factory, "kept", make) / "kept", tmp_path / "kept")


@pytest.mark.long
def test_it_can_be_run_again_over_the_same_base_path_with_the_same_result(texts: Path, kept: Path) -> None:
    second = run_demo(texts, "--ask", QUESTION, "--base-path", kept)
    assert second.returncode == 0, second.stderr
    assert (kept / file_id_for(texts / "bees.txt") / "lsa").is_dir()
    assert answers((kept / "said").read_text()) == answers(second.stdout) != {}


@pytest.mark.long
def test_it_can_be_run_over_the_same_base_path_with_other_files_beside(texts: Path, kept: Path, tmp_path: Path) -> None:
    more = tmp_path / "more.txt"
    more.write_text("\n\n".join(f"{word} " * 150 for word in ("granite", "basalt", "marble", "slate")))
    again = run_demo(texts, more, "--ask", QUESTION, "--base-path", kept)
    assert again.returncode == 0, again.stderr
    assert answers(again.stdout)[QUESTION][0][0] == str(texts / "bees.txt")


@pytest.mark.parametrize("engine", LOCAL_ENGINES)
def test_it_runs_with_every_engine(texts: Path, engine: str) -> None:
    ran = run_demo(texts, "--engine", engine)
    assert ran.returncode == 0, ran.stderr
    assert "open databases after cleanup   0" in ran.stdout
    assert list(engines(ran.stdout)) == [engine], "only what was asked for"


@pytest.mark.long
def test_without_a_base_path_nothing_is_left_on_the_disk(texts: Path, tmp_path: Path) -> None:
    done = run_demo(texts, TMPDIR=str(tmp_path), TEMP=str(tmp_path), TMP=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.glob("chroma-manager-demo-*"))


def test_a_database_that_cannot_be_opened_ends_it_with_a_message_that_names_its_key(texts: Path, kept: Path) -> None:
    file_id = file_id_for(texts / "bees.txt")
    (kept / file_id / "lsa" / "chroma.sqlite3").write_bytes(b"this is no database" * 1000)
    done = run_demo(texts, "--base-path", kept)
    assert done.returncode == 1
    assert re.search(rf"^chroma-manager: .*{re.escape(file_id)}", done.stderr, re.MULTILINE)
    assert "Traceback" not in done.stderr


@pytest.mark.long
def test_with_paths_and_no_question_the_questions_are_made_of_their_terms_and_it_says_so(texts: Path) -> None:
    done = run_demo(texts)
    assert done.returncode == 0, done.stderr
    assert "No --ask: the questions are made of the terms" in done.stdout
    found = answers(done.stdout)
    assert len(found) == 3
    assert {passages[0][0] for passages in found.values()} == {str(texts / name) for name in TEXTS}


@pytest.mark.long
def test_a_question_without_a_word_of_the_corpus_is_answered_with_that(texts: Path) -> None:
    done = run_demo(texts, "--ask", "xyzzy plugh")
    assert done.returncode == 0, done.stderr
    assert "xyzzy plugh\n  no word of this question occurs in the files" in done.stdout


@pytest.mark.parametrize(
    "text",
    ["漢字", *long("a", "word", "one\n\ntwo\n\n" * 300, "?!\n\n1")],
)
def test_a_tiny_corpus_is_enough(text: str, tmp_path: Path) -> None:
    (tmp_path / "tiny.txt").write_text(text, encoding="utf-8")
    done = run_demo(tmp_path)
    assert done.returncode == 0, done.stderr
    assert figures(done.stdout)["files"] == "1"
    assert all(line.startswith("ingesting ") for line in done.stderr.splitlines())


@pytest.mark.long
def test_namesakes_in_two_directories_are_two_files(tmp_path: Path) -> None:
    for folder, text in {"a": "Sheep graze on the northern hill.", "b": "Trams run to the harbour at night."}.items():
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "notes.txt").write_text(text)
    done = run_demo(tmp_path / "a", tmp_path / "b" / "notes.txt", "--ask", "sheep hill", "--ask", "trams harbour")
    assert figures(done.stdout)["open databases before cleanup"] == "2"
    first, second = answers(done.stdout).values()
    assert first[0][0] == str(tmp_path / "a" / "notes.txt")
    assert second[0][0] == str(tmp_path / "b" / "notes.txt")


@pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX signal")
def test_ctrl_c_ends_it_with_130_and_leaves_neither_traceback_nor_directory(tmp_path: Path) -> None:
    texts, temporary = tmp_path / "texts", tmp_path / "temporary"
    texts.mkdir()
    temporary.mkdir()
    for number in range(60):
        (texts / f"{number}.txt").write_text("\n\n".join(f"word{number * line} " * 90 for line in range(30)))
    process = subprocess.Popen(
        command(texts),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(temporary)},
        # A shell without job control starts what it puts in the background with SIGINT ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )
    wait_for_a_database(temporary, process)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 130, stderr
    assert "chroma-manager: interrupted" in stderr
    assert "Traceback" not in stderr
    assert "open databases" not in stdout
    assert not list(temporary.glob("chroma-manager-demo-*"))


def wait_for_a_database(folder: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + TIMEOUT
    while not list(folder.glob("chroma-manager-demo-*/*/lsa/chroma.sqlite3")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.skipif(sys.platform == "win32", reason="a closed pipe is another error there")
def test_a_reader_that_goes_away_is_no_traceback(texts: Path) -> None:
    process = subprocess.Popen(command(texts), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    stderr = process.stderr.read()
    process.stderr.close()
    assert process.wait(TIMEOUT) == 1
    assert "Traceback" not in stderr
    assert "BrokenPipe" not in stderr


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX limits")
@pytest.mark.long
def test_more_open_files_are_allowed_as_far_as_the_system_does_and_it_says_where_that_may_not_do(texts: Path) -> None:
    import resource

    done = subprocess.run(
        command(texts, "--ask", QUESTION),
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (32, 300)),
        timeout=TIMEOUT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "304 open files may be needed, 300 are allowed" in done.stderr


def test_text_that_the_encoding_of_stdout_cannot_express_is_escaped(tmp_path: Path) -> None:
    (tmp_path / "quotes.txt").write_text("The so-called “naïve” method.", encoding="utf-8")
    done = run_demo(tmp_path, "--ask", "method", PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert r"The so-called \u201cna\xefve\u201d method." in done.stdout


@pytest.mark.parametrize(("module", "package"), [("sklearn", "scikit-learn"), ("rich", "rich")])
def test_when_a_package_of_the_extra_is_missing_it_names_it_and_the_command_that_installs_it(
    module: str, package: str
) -> None:
    done = run_python(
        f"import sys; sys.modules[{module!r}] = None; from chroma_manager.cli.arguments import main; "
        "sys.exit(main(['demo']))"
    )
    assert done.returncode == 1
    assert f"needs {package}, which is not installed: pip install 'chroma-manager[demo]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_help_imports_nothing_slow() -> None:
    done = run_python(
        "import contextlib, sys\n"
        "from chroma_manager.cli.arguments import main\n"
        "with contextlib.suppress(SystemExit): main(['demo', '--help'])\n"
        "print('imported:', sorted({'chromadb', 'numpy', 'rich', 'sklearn'} & set(sys.modules)))"
    )
    assert "usage: chroma-manager demo" in done.stdout
    assert "imported: []" in done.stdout


def test_version_is_that_of_the_installed_package() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "chroma_manager.cli", "--version"],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, f"chroma-manager {importlib.metadata.version('chroma-manager')}\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--threads", "0"], "argument --threads: '0' is not a number of threads"),
        (["--threads", "many"], "argument --threads: 'many' is not a number of threads"),
        ([""], "argument PATH: it is empty"),
        (["--base-path", ""], "argument --base-path: it is empty"),
    ],
)
def test_a_wrong_argument_is_refused_with_its_name(arguments: list[str], message: str) -> None:
    done = run_demo(*arguments)
    assert done.returncode == 2
    assert message in done.stderr


# Which files, under which ids


def test_a_directory_is_the_files_in_it_at_any_depth_but_not_the_hidden_ones(tmp_path: Path) -> None:
    for name in ("b.txt", "a/deep/c.txt", ".hidden.txt", ".git/config"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("some words")
    corpus = read_corpus([tmp_path])
    assert [file.name for file in corpus.files] == [str(tmp_path / name) for name in ("b.txt", "a/deep/c.txt")]
    assert corpus.rejected == ()


def test_a_directory_without_files_is_reported(tmp_path: Path) -> None:
    assert read_corpus([tmp_path]).rejected == (Rejected(str(tmp_path), "a directory without files"),)


def test_a_file_named_twice_or_through_a_link_is_one_file(tmp_path: Path) -> None:
    real, link = tmp_path / "real.txt", tmp_path / "link.txt"
    real.write_text("some words")
    link.symlink_to(real)
    assert len(read_corpus([real, tmp_path, link, tmp_path / "." / "real.txt"]).files) == 1


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_reported_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert read_corpus([tmp_path / "pipe"]).rejected == (Rejected(str(tmp_path / "pipe"), "not a regular file"),)


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="needs POSIX permissions")
def test_what_may_not_be_read_is_reported(tmp_path: Path) -> None:
    file, folder = tmp_path / "secret.txt", tmp_path / "folder"
    file.write_text("words")
    file.chmod(0)
    folder.mkdir(0)
    user = os.geteuid()
    if user == 0:
        # Root may read everything: for a moment this is somebody else, who can get as far as the directory.
        for parent in (tmp_path, *tmp_path.parents[:2]):
            parent.chmod(0o755)
        os.seteuid(65534)
    try:
        reasons = {rejected.name: rejected.reason for rejected in read_corpus([file, folder]).rejected}
    finally:
        os.seteuid(user)
    folder.chmod(0o700)
    assert reasons == {str(file): "Permission denied", str(folder): "Permission denied"}


def test_bytes_that_are_not_utf_8_are_reported_with_their_place(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes("café".encode("latin-1"))
    (rejected,) = read_corpus([tmp_path / "latin.txt"]).rejected
    assert rejected.reason == "binary or not UTF-8: byte 3 cannot be decoded"


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "marked.txt").write_bytes(b"\xef\xbb\xbfwords")
    (file,) = read_corpus([tmp_path]).files
    assert file.chunks == ("words",)


def test_namesakes_have_different_file_ids_that_stay_the_same() -> None:
    first, second = file_id_for(Path("/a/notes.txt")), file_id_for(Path("/b/notes.txt"))
    assert first != second
    assert first.startswith("notes.txt-")
    assert first == file_id_for(Path("/a/../a/notes.txt")) == "notes.txt-b4449bfa7a"


@pytest.mark.parametrize(
    "name", ["x" * 255, "漢" * 85, "line\nbreak\t.txt", "..x", "-", "a b;c:d\\e", os.fsdecode(b"\xff\xfe.txt"), "🦆"]
)
def test_a_file_id_is_a_valid_path_component_whatever_the_name(name: str) -> None:
    file_id = file_id_for(Path("/folder", name))
    assert re.fullmatch(r"[\w.-]+", file_id)
    assert file_id.strip(".") == file_id or not file_id.endswith(".")
    assert file_id not in {"", ".", ".."}
    assert len(file_id.encode()) <= 255


@pytest.mark.skipif(sys.platform != "linux", reason="needs a file system that takes any bytes as a name")
def test_a_name_that_is_not_text_is_shown_escaped_on_one_line(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/a\nb\xff.txt")).write_text("some words")
    (file,) = read_corpus([tmp_path]).files
    assert file.name == rf"{tmp_path}/a\nb\xff.txt"


def test_the_python_reference_is_a_file_a_page() -> None:
    files = {file.file_id: file for file in python_reference().files}
    assert len(files) > 60
    assert "context manager" in "".join(files["with"].chunks)


def test_the_beginning_of_a_corpus_has_so_many_chunks_in_their_places() -> None:
    corpus = corpus_of({"a": ("a1", "a2"), "b": ("b1", "b2", "b3"), "c": ("c1",)})
    for count in range(1, 7):
        assert corpus.beginning(count).chunks == corpus.chunks[:count]
    assert [file.name for file in corpus.beginning(2).files] == ["a"]
    assert corpus.beginning(1000) == corpus


# Chunks and lines


def numbered_text(paragraphs: int, words: int) -> str:
    return "\n\n".join(" ".join(f"w{paragraph}x{word}" for word in range(words)) for paragraph in range(paragraphs))


@pytest.mark.parametrize("words", [1, 20, 90, 150, 1000])
def test_no_chunk_is_too_long_and_no_word_is_lost_or_cut(words: int) -> None:
    text = numbered_text(paragraphs=12, words=words)
    chunks = split(text)
    assert max(map(len, chunks)) <= CHUNK_CHARACTERS
    assert list(dict.fromkeys(" ".join(chunks).split())) == text.split()


def test_a_chunk_begins_with_the_end_of_the_one_before() -> None:
    chunks = split(numbered_text(paragraphs=12, words=60))
    assert len(chunks) > 3
    for before, after in pairwise(chunks):
        overlap, _, _ = after.partition("\n\n")
        assert 0 < len(overlap) <= OVERLAP_CHARACTERS
        assert before.endswith(overlap)


def test_short_paragraphs_share_a_chunk_and_are_not_cut() -> None:
    paragraphs = ["First paragraph,\n  with an indented line.", "Second paragraph."]
    assert split("\n\n".join(paragraphs)) == ("\n\n".join(paragraphs),)
    long = numbered_text(paragraphs=4, words=70).split("\n\n")
    chunks = split("\n\n".join(long))
    assert [sum(paragraph in chunk for chunk in chunks) for paragraph in long] == [1, 1, 1, 1]


def test_a_word_longer_than_a_chunk_is_cut() -> None:
    chunks = split("x" * 5000)
    assert max(map(len, chunks)) <= CHUNK_CHARACTERS
    assert "".join(chunks).replace("\n", "") == "x" * 5000


@pytest.mark.parametrize("text", ["", " \n\n\t\n", "---\n\n***\n\n!?"])
def test_a_text_without_words_has_no_chunks(text: str) -> None:
    assert split(text) == ()


def test_a_snippet_is_one_line_from_the_sentence_that_has_the_words_of_the_question() -> None:
    text = "Filler that says nothing at all. " * 10 + "Bees\ncarry pollen. " + "More filler of that kind. " * 10
    line = snippet(text, "What do bees carry?")
    assert line.startswith("...Bees carry pollen. ")
    assert line.endswith("...")
    assert "\n" not in line
    assert len(line) <= 160 + 2 * len("...")


def test_a_snippet_of_a_short_text_is_all_of_it() -> None:
    assert snippet("Bees carry\n  pollen. It is yellow.", "tea?") == "Bees carry pollen. It is yellow."


# The embedding


@pytest.mark.parametrize("count", [1, 2, 15, 16, 300])
def test_every_chunk_gets_a_unit_vector_and_is_the_nearest_to_its_own_text(count: int) -> None:
    chunks = [f"common alpha{number} beta{number} gamma{number * 7}" for number in range(count)]
    embedding = Lsa(chunks)
    assert embedding.vectors.shape[0] == count
    assert embedding.vectors.shape[1] <= MOST_DIMENSIONS
    assert np.allclose(np.linalg.norm(embedding.vectors, axis=1), 1, atol=1e-5)
    own = embedding.embed(chunks[-1])
    assert own is not None
    assert np.allclose(own[0], embedding.vectors[-1], atol=1e-5)


def test_the_same_corpus_gives_the_same_vectors_and_fingerprint_and_another_one_another() -> None:
    chunks = [f"some words {number} and {number * 3}" for number in range(50)]
    first, second, other = Lsa(chunks), Lsa(chunks), Lsa([*chunks, "more"])
    assert np.array_equal(first.vectors, second.vectors)
    assert first.fingerprint == second.fingerprint != other.fingerprint


def test_questions_are_made_of_what_marks_a_file_and_not_of_stop_words_or_of_what_is_in_all() -> None:
    marks = {"a": "granite whereupon whereupon", "b": "basalt", "c": "marble"}
    corpus = corpus_of({name: (f"{mark} {'commonplace ' * 50}",) for name, mark in marks.items()})
    questions = questions_from_terms(corpus, Lsa(corpus.chunks))
    assert [re.findall(r"granite|whereupon|basalt|marble|commonplace", question)[0] for question in questions] == [
        "granite",
        "basalt",
        "marble",
    ]
    assert not any("whereupon" in question for question in questions)


def test_questions_about_one_file_are_of_different_terms() -> None:
    corpus = corpus_of({"only": split("alpha beta gamma delta epsilon zeta eta theta iota")})
    questions = questions_from_terms(corpus, Lsa(corpus.chunks))
    assert len(questions) == 3
    assert len(set(re.findall(r"\w+(?=[,?])", " ".join(questions)))) == 9


# The application, over a manager that only watches


def corpus_of(chunks: dict[str, tuple[str, ...]]) -> Corpus:
    return Corpus(tuple(SourceFile(name, name, its_chunks) for name, its_chunks in chunks.items()), ())


class WatchingManager:
    """Stands where the manager does: its collections note what they are given and meet at a barrier in every call."""

    def __init__(self, meeting: int) -> None:
        self.barrier = threading.Barrier(meeting)
        self.batches: list[int] = []
        self.threads: set[int] = set()

    def get_collection(self, *_: Any, **__: Any) -> WatchingManager:
        return self

    def get_client(self, *_: Any) -> WatchingManager:
        return self

    def get_max_batch_size(self) -> int:
        return 3

    def upsert(self, ids: list[str], embeddings: Any, documents: list[str]) -> None:
        assert len(set(ids)) == len(embeddings) == len(documents)
        self.batches.append(len(ids))
        self.meet()

    def query(self, **_: Any) -> dict[str, list[list[Any]]]:
        self.meet()
        return {"documents": [["text"]], "distances": [[0.5]]}

    def meet(self) -> None:
        self.threads.add(threading.get_ident())
        self.barrier.wait(timeout=20)


def application_over(manager: Any, files: int, chunks: int) -> Application:
    corpus = corpus_of({f"file{file}": tuple(f"text {file} {n}" for n in range(chunks)) for file in range(files)})
    return Application(manager, corpus, Lsa(corpus.chunks))


def test_as_many_files_are_ingested_at_a_time_as_there_are_threads() -> None:
    manager = WatchingManager(meeting=8)
    application_over(manager, files=16, chunks=1).ingest(8, lambda _: None)
    assert len(manager.threads) == 8


def test_a_question_is_asked_of_all_files_at_once_a_thread_each() -> None:
    manager = WatchingManager(meeting=20)
    answered = list(application_over(manager, files=20, chunks=1).ask(["text", "text"]))
    assert len(answered) == 2
    assert len(manager.threads) == 20


def test_no_batch_is_larger_than_the_client_takes_and_every_chunk_is_counted() -> None:
    manager = WatchingManager(meeting=1)
    stored: list[int] = []
    application_over(manager, files=1, chunks=8).ingest(8, stored.append)
    assert manager.batches == stored == [3, 3, 2]


def test_a_line_that_two_files_have_is_one_passage() -> None:
    ((_, passages),) = application_over(WatchingManager(meeting=1), files=4, chunks=1).ask(["text"])
    assert [(passage.file, passage.snippet) for passage in passages] == [("file0", "text")]


class FailingManager(WatchingManager):
    """The database of one file fails, once another file's is in the middle of its batches."""

    def get_collection(self, file_id: str, *_: Any, **__: Any) -> FailingManager:
        from chromadb.errors import InternalError

        if file_id == "file1":
            self.barrier.wait(timeout=20)
            raise InternalError("disk full")
        return self

    def meet(self) -> None:
        if len(self.batches) == 1:
            self.barrier.wait(timeout=20)
        time.sleep(0.01)


def test_an_error_of_chroma_names_the_file_and_the_other_files_end_at_their_next_batch() -> None:
    manager = FailingManager(meeting=2)
    with pytest.raises(DemoError, match=r"^file1: its database, file1/lsa, failed: disk full$"):
        application_over(manager, files=2, chunks=3000).ingest(2, lambda _: None)
    assert len(manager.batches) < 100


# What is measured


def test_the_table_has_a_line_for_each_engine() -> None:
    ingests = [Ingest("isolated", 826, 3.5, 0.0254), Ingest("embedded", 826, 2.0, 0.2951)]
    assert table(ingests).splitlines() == [
        "engine    chunks  records a second  worst stall of another thread",
        "isolated  826     236               25 ms",
        "embedded  826     413               295 ms",
    ]


@pytest.mark.skipif(sys.platform == "win32", reason="usleep is POSIX")
def test_the_worst_stall_is_how_long_another_thread_waited() -> None:
    # A function called through PyDLL, unlike CDLL, keeps the interpreter lock.
    library = ctypes.PyDLL(None)
    with StallMeter() as meter:
        time.sleep(0.05)
        library.usleep(300_000)
    assert 0.25 < meter.worst < 10
