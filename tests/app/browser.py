"""The page in a real browser: Debian's Chromium, headless (`make test-browser`). Not collected by `make test`.

With `SCREENSHOTS=1` it writes the pictures of `docs/figures`.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect, sync_playwright
from serving import HERON, App, long_text, pdf, serving

FIGURES = Path(__file__).parents[2] / "docs/figures"
DOCS = Path(__file__).parents[2] / "docs"
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
SECONDS = 60_000
DESKTOP, PHONE = {"width": 1280, "height": 800}, {"width": 360, "height": 740}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    assert CHROMIUM, "there is no Chromium: apt-get install chromium, or name one in CHROMIUM"
    with sync_playwright() as playwright:
        # Its sandbox does without root, and root without it.
        sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=sandbox)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    with serving(tmp_path_factory.mktemp("app") / "data", max_upload_bytes=2**20) as app:
        yield app


@pytest.fixture
def page(browser: Browser, app: App) -> Iterator[Page]:
    yield from opened(browser, app, viewport=DESKTOP)
    for file in app.files():
        app.client.delete(f"/api/files/{file['file_id']}")


def opened(browser: Browser, app: App, **options: object) -> Iterator[Page]:
    """The page, whose scripts must not fail."""
    context = browser.new_context(**options)
    context.set_default_timeout(SECONDS)
    expect.set_options(timeout=SECONDS)
    page = context.new_page()
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto(str(app.client.base_url))
    expect(page.locator("#engine-note")).not_to_have_text("Connecting…")
    yield page
    context.close()
    assert problems == []


def choose(page: Page, *files: tuple[str, bytes]) -> None:
    kept = [{"name": name, "mimeType": "application/octet-stream", "buffer": content} for name, content in files]
    page.locator("#chooser").set_input_files(kept)


def ask(page: Page, question: str) -> None:
    expect(page.locator("#send")).to_be_enabled()
    page.locator("#question").fill(question)
    page.keyboard.press("Enter")
    expect(page.locator(".turn-answer").last).to_have_attribute("aria-busy", "false")


def test_a_file_is_added_asked_and_deleted(page: Page, app: App) -> None:
    expect(page.locator("#no-files")).to_be_visible()
    expect(page.locator("#send")).to_be_disabled()
    choose(page, ("birds.txt", HERON.encode()))
    row = page.locator("#files .item")
    expect(row).to_contain_text("bytes, 1 passage")
    expect(page.locator("#asked")).to_have_text("Asks 1 file: birds.txt")
    ask(page, "Where does the heron stand?")
    expect(page.locator(".turn-question")).to_have_text("Where does the heron stand?")
    expect(page.locator(".turn-answer")).to_contain_text(HERON)
    passage = page.locator(".passage")
    expect(passage.locator(".file")).to_have_text("birds.txt")
    expect(passage.locator(".place")).to_have_text("paragraph 1")
    expect(passage.locator(".score")).to_have_text(re.compile(r"score 0\.\d\d"))
    expect(passage.locator("blockquote")).to_have_text(HERON)
    page.get_by_role("button", name="Delete birds.txt").click()
    page.get_by_role("button", name="Keep it").click()
    expect(row).to_have_count(1)
    page.get_by_role("button", name="Delete birds.txt").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(row).to_have_count(0)
    expect(page.locator("#no-files")).to_be_visible()
    assert app.files() == []


def test_progress_is_seen_and_told_to_those_who_hear_the_page(page: Page) -> None:
    choose(page, ("rivers.txt", long_text(700).encode()))
    bar = page.get_by_role("progressbar", name="rivers.txt is being embedded")
    expect(bar).to_be_visible()
    expect(page.locator("#files .item-about")).to_contain_text("of 700 passages")
    expect(page.locator("#announcer")).to_have_text("rivers.txt can be asked now")


def test_a_dropped_file_is_added_wherever_it_falls(page: Page) -> None:
    page.evaluate(
        """text => {
            const carried = new DataTransfer();
            carried.items.add(new File([text], "birds.txt"));
            const drop = new DragEvent("drop", { dataTransfer: carried, bubbles: true, cancelable: true });
            document.body.dispatchEvent(drop);
        }""",
        HERON,
    )
    expect(page.locator("#files .item-name")).to_have_text("birds.txt")


def test_what_is_refused_says_why_and_can_be_dismissed(page: Page) -> None:
    choose(page, ("program.exe", b"MZ"), ("large.txt", bytes(2**20 + 1)), ("empty.txt", b""))
    rows = page.locator("#uploads .item.failed")
    expect(rows).to_have_count(3)
    expect(page.locator("#uploads")).to_contain_text("program.exe is none of them")
    expect(page.locator("#uploads")).to_contain_text("1.0 MB is more than is taken")
    expect(page.locator("#uploads")).to_contain_text("empty.txt has no text")
    for name in ("program.exe", "large.txt", "empty.txt"):
        page.get_by_role("button", name=f"Dismiss {name}").click()
    expect(rows).to_have_count(0)


def test_a_name_that_is_markup_is_shown_as_it_is(page: Page) -> None:
    name = "<img src=x onerror=document.title=1><b>a.txt"
    choose(page, (name, HERON.encode()))
    expect(page.locator("#files .item-name")).to_have_text(name)
    ask(page, "heron <script>document.title=1</script>")
    expect(page).to_have_title("Ask your files")
    assert page.locator("main img, main b:not(.score b), main script").count() == 0


def test_only_the_files_with_a_mark_are_asked(page: Page) -> None:
    choose(page, ("birds.txt", HERON.encode()), ("rivers.txt", b"The heron is not at these rivers."))
    expect(page.locator("#asked")).to_contain_text("Asks 2 files")
    page.get_by_role("checkbox", name="rivers.txt").uncheck()
    expect(page.locator("#asked")).to_have_text("Asks 1 file: birds.txt")
    ask(page, "heron")
    assert set(page.locator(".passage .file").all_inner_texts()) == {"birds.txt"}
    page.get_by_role("checkbox", name="birds.txt").uncheck()
    expect(page.locator("#asked")).to_have_text("Choose a file to ask.")
    page.get_by_role("checkbox", name="Ask all").check()
    expect(page.locator("#asked")).to_contain_text("Asks 2 files")
    with page.expect_request("**/api/chat") as asked:
        ask(page, "heron")
    assert asked.value.post_data_json == {"question": "heron"}


def test_everything_can_be_done_with_the_keyboard(page: Page) -> None:
    choose(page, ("birds.txt", HERON.encode()))
    expect(page.locator("#files .item")).to_contain_text("bytes, 1 passage")
    page.locator("body").click(position={"x": 1, "y": 1})
    reached = []
    for _ in range(8):
        page.keyboard.press("Tab")
        focused = page.evaluate(
            """() => {
                const e = document.activeElement;
                const shown = e.matches("#chooser, #engine input") ? e.closest("label") : e;
                const ring = [shown, ...shown.children].some(each => getComputedStyle(each).outlineStyle !== "none");
                return [e.id || e.value || e.getAttribute("aria-label") || e.textContent.slice(0, 30), ring];
            }"""
        )
        reached.append(focused[0])
        assert focused[1], f"the focus is not seen after {reached}"
    for name in ("isolated", "chooser", "Delete birds.txt", "turns", "question", "send"):
        assert name in reached, reached
    page.locator("#question").focus()
    page.keyboard.type("Where does the heron stand?")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("And why?")
    page.keyboard.press("Enter")
    expect(page.locator(".turn-answer")).to_contain_text(HERON)
    page.get_by_role("button", name="Delete birds.txt").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Keep it")).to_be_focused()
    page.keyboard.press("Escape")
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.locator("#files .item")).to_have_count(0)
    expect(page.locator("#chooser")).to_be_focused()


def test_the_engine_is_changed_and_the_page_says_which_runs(page: Page, app: App) -> None:
    choose(page, ("birds.txt", HERON.encode()))
    expect(page.locator("#files .item")).to_contain_text("bytes, 1 passage")
    for engine, note in (("embedded", "the app stands still"), ("isolated", "a process of its own")):
        page.get_by_role("radio", name=engine).check(force=True)
        expect(page.locator("#announcer")).to_have_text(f"The engine is {engine} now")
        expect(page.locator("#engine-note")).to_contain_text(note)
        assert app.client.get("/api/engine").json()["engine"] == engine
        ask(page, "heron")
        expect(page.locator(".turn-answer").last).to_contain_text(HERON)


def test_the_strip_shows_the_event_loop(page: Page) -> None:
    expect(page.locator("#late")).to_have_text(re.compile(r"^\d+ ms$|^\d+\.\d s$"))
    expect(page.get_by_role("img", name="In the last minute the event loop was late by")).to_be_visible()
    painted = "() => document.getElementById('pulse').getContext('2d').getImageData(0, 0, 2000, 400).data.some(x => x)"
    page.wait_for_function(painted)


def test_a_page_without_its_app_says_so_and_goes_on_when_it_is_back(browser: Browser, tmp_path: Path) -> None:
    with serving(tmp_path / "data") as app:
        port = app.client.base_url.port
        pages = opened(browser, app, viewport=DESKTOP)
        page = next(pages)
        app.kill()
        expect(page.locator("#engine-note")).to_have_text("The app does not answer. Trying again…")
        expect(page.get_by_role("radio", name="embedded")).to_be_disabled()
    with serving(tmp_path / "data", port=port) as app:
        expect(page.locator("#engine-note")).to_contain_text("a process of its own")
        next(pages, None)


def test_nothing_moves_while_an_answer_and_progress_come(page: Page) -> None:
    choose(page, ("birds.txt", HERON.encode()))
    expect(page.locator("#files .item")).to_contain_text("bytes, 1 passage")
    page.evaluate(
        """() => {
            window.moved = 0;
            new PerformanceObserver(list => {
                for (const entry of list.getEntries()) if (!entry.hadRecentInput) window.moved += entry.value;
            }).observe({ type: "layout-shift", buffered: false });
        }"""
    )
    ask(page, "heron")
    page.wait_for_timeout(1000)
    assert page.evaluate("window.moved") < 0.02


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_the_page_is_accessible_and_fits(browser: Browser, app: App, scheme: str, viewport: dict[str, int]) -> None:
    for page in opened(browser, app, viewport=viewport, color_scheme=scheme):
        check(page, viewport)
        name = "a-name-that-is-long-and-has-no-blank-" * 3 + ".txt"
        choose(page, ("program.exe", b"MZ"), (name, f"{HERON} {'x' * 300}".encode()), ("of.pdf", pdf(HERON)))
        expect(page.locator("#files .item-about", has_text="bytes, 1 passage")).to_have_count(2)
        ask(page, "heron")
        check(page, viewport)
        page.get_by_role("button", name="Delete of.pdf").click()
        check(page, viewport)
        page.keyboard.press("Escape")
    for file in app.files():
        app.client.delete(f"/api/files/{file['file_id']}")


def check(page: Page, viewport: dict[str, int]) -> None:
    found = Axe().run(
        page, options={"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]}
    )
    assert found.violations_count == 0, found.generate_report()
    assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]


@pytest.mark.skipif("SCREENSHOTS" not in os.environ, reason="writes docs/figures; SCREENSHOTS=1 has it do so")
@pytest.mark.parametrize(
    ("name", "scheme", "viewport"),
    [("light", "light", DESKTOP), ("dark", "dark", DESKTOP), ("phone", "light", PHONE)],
)
def test_screenshots_are_taken(browser: Browser, app: App, name: str, scheme: str, viewport: dict[str, int]) -> None:
    for page in opened(browser, app, viewport=viewport, color_scheme=scheme):
        pages = ("operations.md", "nothing-lost.md", "architecture.md")
        choose(page, *((page_name, (DOCS / page_name).read_bytes()) for page_name in pages))
        expect(page.locator("#files .item-about", has_text="passages")).to_have_count(len(pages))
        expect(page.locator("#files progress")).to_have_count(0)
        page.wait_for_timeout(12_000)  # for the strip to have something to show
        choose(page, ("handbook.txt", long_text(900).encode()))
        expect(page.locator("#files progress")).to_have_count(1)
        ask(page, "What happens to an acknowledged write when the power is cut?")
        page.locator("#question").blur()
        page.screenshot(path=FIGURES / f"app-{name}.png", full_page=viewport is PHONE)
    for file in app.files():
        app.client.delete(f"/api/files/{file['file_id']}")
