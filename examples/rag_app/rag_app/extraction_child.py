"""The process that reads one file: ``python -m rag_app.extraction_child KIND PATH`` and its limits, for ``extraction``.

It prints a JSON object: ``passages``, each with its text and place, or ``error``, a class of ``errors``, and
``message``.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

from rag_app.passages import Part, cut, paragraphs

_MOST_MEMBERS = 10_000


class _RefusedError(Exception):
    """A class of ``errors``, and what the message says of the file."""


def main() -> None:
    """Reads the file that the arguments name."""
    kind, path, seconds, memory, unpacked, characters = sys.argv[1:]
    # A parser may warn without end; what is left on stderr is of a crash.
    logging.disable()
    _limit(int(seconds), int(memory))
    try:
        parts = list(_at_most(int(characters), _READERS[kind](Path(path), int(unpacked))))
        passages = list(cut(parts))
        if not passages:
            raise _RefusedError("UnreadableError", "has no text. If it was scanned, have its text recognised first.")
        said: dict[str, object] = {"passages": passages}
    except _RefusedError as refused:
        said = dict(zip(("error", "message"), refused.args, strict=True))
    except RecursionError:
        said = {"error": "UnreadableError", "message": "cannot be read: it is nested too deep."}
    json.dump(said, sys.stdout)


def _limit(seconds: int, memory: int) -> None:
    # The app's event loop comes first where cores are few.
    if hasattr(os, "nice"):
        os.nice(10)
    if sys.platform != "win32":
        import resource  # noqa: PLC0415 - there is none on Windows

        # The app kills it sooner, unless the app is killed itself.
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _at_most(characters: int, parts: Iterator[Part]) -> Iterator[Part]:
    for part in parts:
        characters -= len(part.text)
        if characters < 0:
            raise _RefusedError("TooLargeError", "has more text than is read here. Split it.")
        yield part


def _read_text(path: Path, _: int) -> Iterator[Part]:
    return paragraphs(path.read_text(encoding="utf-8-sig"))


def _read_pdf(path: Path, _: int) -> Iterator[Part]:
    from pypdf import PdfReader  # noqa: PLC0415 - the others do without it
    from pypdf.errors import PyPdfError  # noqa: PLC0415

    try:
        reader = PdfReader(path)
        # Many are encrypted with an empty password, so that they can be read, and not changed.
        if reader.is_encrypted and not reader.decrypt(""):
            raise _RefusedError("UnreadableError", "is encrypted. Remove its password, and upload it again.")
        for number, page in enumerate(reader.pages, 1):
            yield Part("page", number, _without_halves(page.extract_text()))
    except _RefusedError:
        raise
    except Exception as error:  # pypdf raises whatever its parts raise of a broken file
        reason = "it is damaged" if isinstance(error, PyPdfError) else f"its parser fails ({type(error).__name__})"
        raise _RefusedError("UnreadableError", f"cannot be read: {reason}.") from error


def _without_halves(text: str) -> str:
    """Joins halves of surrogate pairs, to which a font may map its glyphs. Half a pair alone cannot be stored."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _read_docx(path: Path, unpacked: int) -> Iterator[Part]:
    import docx  # noqa: PLC0415 - the others do without it

    try:
        _check_members(path, unpacked)
        document = docx.Document(str(path))
    except _RefusedError:
        raise
    except Exception as error:  # python-docx raises whatever its parts raise of a broken file
        raise _RefusedError("UnreadableError", "cannot be read: it is damaged.") from error
    texts = [block.text for block in document.iter_inner_content() if hasattr(block, "text")]
    for table in document.tables:
        texts += [" | ".join(cell.text for cell in row.cells) for row in table.rows]
    yield from (Part("paragraph", number, text) for number, text in enumerate(filter(str.strip, texts), 1))


def _check_members(path: Path, unpacked: int) -> None:
    """Before anything is unpacked. Python unpacks no more of a member than its size here says."""
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if "word/document.xml" not in archive.namelist():
            raise _RefusedError("UnknownKindError", "is not what its name says: it is a zip, but no docx.")
        if len(members) > _MOST_MEMBERS or sum(member.file_size for member in members) > unpacked:
            raise _RefusedError("TooLargeError", f"is larger than {unpacked // 2**20} MB when it is unpacked.")
        if any(member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for member in members):
            raise _RefusedError("UnreadableError", "is packed in a way that no docx is.")


_READERS: dict[str, Callable[[Path, int], Iterator[Part]]] = {
    "txt": _read_text,
    "md": _read_text,
    "pdf": _read_pdf,
    "docx": _read_docx,
}

if __name__ == "__main__":
    main()
