"""The kinds of files that are read, by the suffix of their name and by their first bytes."""

from __future__ import annotations

from pathlib import Path, PurePath

from rag_app.errors import UnknownKindError

KINDS = {".txt": "txt", ".md": "md", ".markdown": "md", ".pdf": "pdf", ".docx": "docx"}
READ = "Files with text (.txt, .md), .pdf and .docx can be read"

# A pdf may have something before its header, as in mails that were saved.
_PDF_HEADER_WITHIN = 1024


def kind_of_name(name: str) -> str:
    """Returns the kind that a name claims.

    Raises:
        UnknownKindError: No file of that kind is read.
    """
    suffix = PurePath(name).suffix.lower()
    if suffix not in KINDS:
        raise UnknownKindError(f"{READ}, and {name} is none of them.")
    return KINDS[suffix]


def check_content(name: str, kind: str, path: Path) -> None:
    """Compares the content of a file with the kind that its name claims.

    Raises:
        UnknownKindError: It is something else.
    """
    if not _LOOKS[kind](path):
        raise UnknownKindError(f"{name} is not what its name says: its content is not that of a {kind} file.")


def _is_text(path: Path) -> bool:
    content = path.read_bytes()
    if b"\0" in content:
        return False
    try:
        content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return False
    return True


def _is_pdf(path: Path) -> bool:
    with path.open("rb") as file:
        return b"%PDF-" in file.read(_PDF_HEADER_WITHIN)


def _is_zip(path: Path) -> bool:
    # Whether the zip is a docx is found out by the process that reads it: its list of members may be hostile, too.
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


_LOOKS = {"txt": _is_text, "md": _is_text, "pdf": _is_pdf, "docx": _is_zip}
