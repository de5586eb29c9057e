"""Whatever is sent gets a clear answer with the right status, and harms nobody else's file."""

from __future__ import annotations

import io
import socket
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pypdf
import pytest
from conftest import eventually
from rag_app.configs import Configs
from rag_app.errors import UnreadableError
from rag_app.extraction import extract
from rag_app.guard import is_ours
from serving import HERON, App, docx_of, long_text, pdf, serving

MEGABYTE = 2**20


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    limits = {"max_upload_bytes": MEGABYTE, "max_unpacked_bytes": 4 * MEGABYTE, "max_characters": 500_000}
    with serving(tmp_path_factory.mktemp("app") / "data", extraction_seconds=60, **limits) as app:
        app.add("birds.txt", HERON)
        yield app


@pytest.fixture(autouse=True)
def nobody_else_is_harmed(app: App) -> Iterator[None]:
    """The file of somebody else answers as before, nothing is left behind, and nothing has failed unforeseen."""
    yield
    for file in app.files()[:-1]:
        assert app.client.delete(f"/api/files/{file['file_id']}").status_code == 204
    (birds,) = app.files()
    assert app.ask("heron")[0][0]["text"] == HERON
    assert eventually(lambda: app.databases() == [birds["file_id"]])
    assert [path.name for path in (app.data / "bucket").iterdir()] == [birds["file_id"]]
    assert eventually(lambda: list((app.data / "incoming").iterdir()) == [])
    assert {path.name for path in app.data.parent.iterdir()} == {"data", "data.log"}
    assert "Traceback" not in app.said()


def refused(answer: httpx.Response, status: int) -> str:
    assert answer.status_code == status, answer.text
    return str(answer.json()["detail"])


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("../../etc/passwd.txt", "passwd.txt"),
        ("..\\..\\windows\\system.txt", "system.txt"),
        ("/etc/cron.d/job.txt", "job.txt"),
        ("CON.txt", "CON.txt"),
        ("....txt", "....txt"),
        ("-rf.txt", "-rf.txt"),
        ("<img src=x onerror=alert(1)>.txt", "<img src=x onerror=alert(1)>.txt"),
        ("日本語 ünï 🎉.txt", "日本語 ünï 🎉.txt"),
        ("u\u0308.txt", "ü.txt"),
        ("report\u202etxt.fdp.txt", "reporttxt.fdp.txt"),
        ("x" * 300 + ".txt", "x" * 115 + "….txt"),
        ("' OR 1=1; drop table files; --.txt", "' OR 1=1; drop table files; --.txt"),
    ],
)
def test_a_name_is_shown_and_is_never_a_path(app: App, name: str, shown: str) -> None:
    answer = app.upload(name, "of rivers")
    assert answer.status_code == 201, answer.text
    file = answer.json()
    assert file["name"] == shown
    assert file["file_id"].isalnum()
    app.wait(file["file_id"])
    assert app.ask("rivers", [file["file_id"]])[0][0]["name"] == shown


@pytest.mark.parametrize("name", ["", "..", "/", "a\0.txt", "a\n.txt", "folder/", "\u202e"])
def test_a_name_that_cannot_be_shown_is_refused(app: App, name: str) -> None:
    refused(app.upload(name, "of rivers"), 422)


def test_a_name_that_is_longer_than_any_is_refused(app: App) -> None:
    assert app.upload("x" * 5000 + ".txt", "of rivers").status_code == 422


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("program.exe", b"MZ"),
        ("none", b"of rivers"),
        (".txt", b"of rivers"),
        ("picture.txt", b"\x89PNG\r\n\x1a\n\0\0"),
        ("latin.txt", "Größe".encode("latin-1")),
        ("page.pdf", b"<html>of rivers</html>"),
        ("letter.docx", b"of rivers"),
        ("letter.docx", pdf("of rivers")),
    ],
)
def test_what_is_not_of_a_kind_that_is_read_is_refused(app: App, name: str, content: bytes) -> None:
    refused(app.upload(name, content), 415)


def test_a_zip_that_is_no_docx_is_refused(app: App) -> None:
    assert "it is a zip, but no docx" in refused(app.upload("letter.docx", zipped(("a.txt", b"of rivers"))), 415)


@pytest.mark.parametrize("content", [b"", b" \n\n ", b"---\n***"], ids=["empty", "blank", "without a word"])
def test_a_file_without_text_is_refused(app: App, content: bytes) -> None:
    assert "has no text" in refused(app.upload("rivers.txt", content), 422)


def test_a_file_that_is_too_large_is_refused_while_it_is_sent(app: App) -> None:
    def pieces() -> Iterator[bytes]:
        for _ in range(40):
            yield bytes(MEGABYTE // 8)

    assert "larger than 1 MB" in refused(app.upload("rivers.txt", bytes(3 * MEGABYTE)), 413)
    # Whose size nobody knows beforehand.
    assert "larger than 1 MB" in refused(app.upload("rivers.txt", pieces()), 413)


def test_a_text_that_is_too_long_is_refused(app: App) -> None:
    assert "more text than is read" in refused(app.upload("rivers.txt", "of rivers\n\n" * 60_000), 413)


def test_a_question_that_is_too_large_is_refused(app: App) -> None:
    assert app.client.post("/api/chat", json={"question": "x" * MEGABYTE}).status_code == 413


def zipped(*members: tuple[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", method) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return written.getvalue()


BOMB = zipped(("[Content_Types].xml", b"<Types/>"), ("word/document.xml", bytes(64 * MEGABYTE)))


def with_sizes_said(archive: bytes, size: int) -> bytes:
    """The same zip, whose list of members says another size of the last one."""
    place = archive.rindex(b"PK\x01\x02") + 24
    return archive[:place] + struct.pack("<L", size) + archive[place + 4 :]


def test_a_docx_that_is_a_bomb_is_refused_before_it_is_unpacked(app: App) -> None:
    assert len(BOMB) < MEGABYTE // 8
    assert "is larger than 4 MB when it is unpacked" in refused(app.upload("letter.docx", BOMB), 413)


def test_a_docx_that_lies_of_its_size_is_refused(app: App) -> None:
    assert "is damaged" in refused(app.upload("letter.docx", with_sizes_said(BOMB, 1000)), 422)


def test_a_docx_with_too_many_members_is_refused(app: App) -> None:
    # Their names are all there is of them: 11,000 empty members.
    members = [("word/document.xml", b""), *((str(number), b"") for number in range(11_000))]
    answer = app.upload("letter.docx", zipped(*members)[: 2 * MEGABYTE])
    assert answer.status_code == 413, answer.text


def test_a_docx_that_is_packed_in_an_unusual_way_is_refused(app: App) -> None:
    archive = zipped(("word/document.xml", bytes(1000)), method=zipfile.ZIP_LZMA)
    assert "packed in a way" in refused(app.upload("letter.docx", archive), 422)


def test_the_entities_of_a_docx_are_not_multiplied(app: App) -> None:
    entities = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 20}">' for n in range(1, 12))
    document = f'<!DOCTYPE d [<!ENTITY e0 "lol">{entities}]><d>&e11;</d>'.encode()
    with zipfile.ZipFile(io.BytesIO(docx_of("of rivers"))) as whole:
        members = [(name, document if name == "word/document.xml" else whole.read(name)) for name in whole.namelist()]
    refused(app.upload("letter.docx", zipped(*members)), 422)


def test_a_docx_that_is_broken_is_refused(app: App) -> None:
    whole = docx_of("of rivers")
    # Half of it has no list of its members any more.
    refused(app.upload("letter.docx", whole[: len(whole) // 2]), 422)


@pytest.mark.parametrize("left", [0.3, 0.6])
def test_a_pdf_that_is_broken_is_refused_or_read_as_far_as_it_goes(app: App, left: float) -> None:
    whole = pdf("of rivers", "of lakes")
    answer = app.upload("rivers.pdf", whole[: int(len(whole) * left)])
    assert answer.status_code in (201, 422), answer.text


def test_a_pdf_of_garbage_is_refused(app: App) -> None:
    assert "cannot be read" in refused(app.upload("rivers.pdf", b"%PDF-1.7\n" + bytes(range(256)) * 100), 422)


@pytest.mark.parametrize(("letter_a", "read"), [("D835", "\ufffd"), ("D835DC00", "\U0001d400"), ("0000", "\0")])
def test_a_pdf_whose_font_maps_to_half_a_character_is_read(app: App, letter_a: str, read: str) -> None:
    file_id = app.add("rivers.pdf", pdf("of A rivers", letter_a=letter_a))
    assert app.ask("rivers", [file_id])[0][0]["text"] == f"of {read} rivers"


@pytest.mark.parametrize("algorithm", ["RC4-128", "AES-256"])
def test_an_encrypted_pdf_is_refused_and_one_without_a_password_is_read(app: App, algorithm: str) -> None:
    def encrypted(password: str) -> bytes:
        writer, written = pypdf.PdfWriter(io.BytesIO(pdf("of rivers"))), io.BytesIO()
        writer.encrypt(password, owner_password="owner", algorithm=algorithm)
        writer.write(written)
        return written.getvalue()

    assert "is encrypted" in refused(app.upload("rivers.pdf", encrypted("secret")), 422)
    assert app.upload("rivers.pdf", encrypted("")).status_code == 201


def test_a_pdf_that_takes_too_long_is_given_up(tmp_path: Path) -> None:
    content = zlib.compress(b"BT /F1 12 Tf (of rivers) Tj ET\n" * 1_500_000)
    stream = b"<< /Length %d /Filter /FlateDecode >>\nstream\n" % len(content) + content + b"\nendstream"
    plain = pdf("of rivers")
    begin, end = plain.index(b"<< /Length"), plain.index(b"endstream") + len(b"endstream")
    path = tmp_path / "rivers.pdf"
    path.write_bytes(plain[:begin] + stream + plain[end:])
    # Without the app, whose other files are to have their time, also where the machine is slow.
    with pytest.raises(UnreadableError, match=r"rivers\.pdf takes longer than 2 s to read") as refusal:
        extract(Configs(extraction_seconds=2), "rivers.pdf", "pdf", path)
    assert refusal.value.status == 422
    # What has read it is gone.
    assert not [child for child in psutil.Process().children() if "extraction_child" in " ".join(child.cmdline())]


def test_a_pdf_whose_reader_warns_without_end_is_read_in_silence(tmp_path: Path) -> None:
    path = tmp_path / "rivers.pdf"
    path.write_bytes(pdf("of rivers").replace(b"/MediaBox", b"/X 1 " * 2000 + b"/MediaBox"))
    command = [sys.executable, "-m", "rag_app.extraction_child", "pdf", str(path), "60", str(2**30), "1", "1000"]
    ran = subprocess.run(command, capture_output=True, timeout=60, check=True)
    assert b"of rivers" in ran.stdout
    assert ran.stderr == b""


def test_what_a_reader_says_when_it_crashes_is_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "rivers.txt"
    path.write_text("of rivers " * 5_000_000)
    with pytest.raises(UnreadableError, match="needs too much memory"):
        extract(Configs(extraction_memory_bytes=100 * MEGABYTE), "rivers.txt", "txt", path)
    assert "the process that reads rivers.txt has ended with 1" in caplog.text
    assert caplog.text.rstrip().endswith("MemoryError")


def test_of_two_uploads_of_one_content_at_once_one_wins(app: App) -> None:
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda number: app.upload(f"rivers-{number}.txt", "of rivers"), range(6)))
    assert sorted(answer.status_code for answer in answers) == [201, 409, 409, 409, 409, 409]
    (winner,) = (answer.json() for answer in answers if answer.status_code == 201)
    for answer in answers:
        if answer.status_code == 409:
            assert answer.json()["file_id"] == winner["file_id"]
            assert f"is here already, as {winner['name']}" in answer.json()["detail"]
    assert len(app.files()) == 2


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site", "Origin": "http://localhost:3000"}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "same-origin", "Origin": "http://server:8000", "Host": "server:8000"}, 201),
        ({"Origin": "http://192.168.0.9:8000", "Host": "192.168.0.9:8000"}, 201),
    ],
)
def test_what_another_page_sends_is_refused(app: App, headers: dict[str, str], status: int) -> None:
    answer = app.client.post("/api/files", params={"name": "a.txt"}, content=b"of rivers", headers=headers)
    assert answer.status_code == status, answer.text


def test_a_page_whose_name_was_led_to_the_app_gets_nothing(app: App) -> None:
    for method, path in (("GET", "/"), ("GET", "/api/files"), ("DELETE", "/api/files/0")):
        headers = {"Host": "evil.example:8000", "Origin": "http://evil.example:8000", "Sec-Fetch-Site": "same-origin"}
        answer = app.client.request(method, path, headers=headers)
        assert "does not answer for evil.example:8000. Use its address, or have RAG_HOSTS" in refused(answer, 421)


@pytest.mark.parametrize(
    ("host", "is_let_in"),
    [
        *(
            (host, True)
            for host in ("localhost", "localhost:8000", "LOCALHOST", "127.0.0.1:8000", "[::1]:8000", "[::1]")
        ),
        *(
            (host, True)
            for host in ("192.168.0.9", "server:8000", "server.local", "app.localhost", "files.example.org")
        ),
        *(
            (host, False)
            for host in ("evil.example", "evil.example:80", "127.0.0.1.evil.example", "localhost.evil.example")
        ),
        *(
            (host, False)
            for host in ("", ":8000", "[evil.example]", "example.org", "a.files.example.org", "evil.example.")
        ),
    ],
)
def test_the_app_answers_for_its_names_and_for_addresses(host: str, is_let_in: bool) -> None:
    assert is_ours(host, Configs(hosts="Files.example.org, other.example.org").host_names) is is_let_in
    assert is_ours(host, Configs(hosts="*").host_names) is (host not in ("", ":8000"))


@pytest.mark.parametrize("file_id", ["..%2f..", "%00", "x" * 300, "..", "birds.txt"])
def test_a_file_id_that_nobody_gave_is_not_found(app: App, file_id: str) -> None:
    assert app.client.delete(f"/api/files/{file_id}").status_code in (404, 405)
    assert app.client.post(f"/api/files/{file_id}/retry").status_code in (404, 405)


def test_a_client_that_goes_away_in_the_middle_of_an_upload_leaves_nothing(app: App) -> None:
    address = app.client.base_url
    with socket.create_connection((address.host, address.port)) as stream:
        stream.sendall(
            b"POST /api/files?name=rivers.txt HTTP/1.1\r\nHost: a\r\nContent-Length: 900000\r\n\r\n" + bytes(1000)
        )
        assert eventually(lambda: len(list((app.data / "incoming").iterdir())) == 1)
    assert eventually(lambda: list((app.data / "incoming").iterdir()) == [])
    assert len(app.files()) == 1


def test_a_client_that_goes_away_in_the_middle_of_an_answer_harms_nobody(app: App) -> None:
    for _ in range(3):
        with app.client.stream("POST", "/api/chat", json={"question": "heron"}) as answer:
            next(answer.iter_lines())


def test_a_file_that_is_deleted_while_it_is_embedded_is_gone(app: App) -> None:
    for _ in range(3):
        file_id = app.upload("rivers.txt", long_text(300)).json()["file_id"]
        assert eventually(lambda file_id=file_id: 0 < app.file(file_id)["done"] < 300, 60)
        assert app.client.delete(f"/api/files/{file_id}").status_code == 204
        assert len(app.files()) == 1


def test_a_file_that_is_deleted_while_it_is_asked_ends_no_answer_badly(app: App) -> None:
    def ask() -> httpx.Response:
        return app.chat("heron and rivers")

    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            file_id = app.add("rivers.txt", "of rivers")
            asked = [pool.submit(ask) for _ in range(12)]
            assert app.client.delete(f"/api/files/{file_id}").status_code == 204
            answers: list[Any] = [each.result() for each in asked]
            assert {answer.status_code for answer in answers} == {200}
            assert all(HERON in answer.text and "event: done" in answer.text for answer in answers)
