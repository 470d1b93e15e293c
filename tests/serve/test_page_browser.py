"""The page in a real browser: every tab from end to end, no fault on the console, no request to another host.

With DDIT_SCREENSHOTS=DIR the tabs are also photographed at both widths, as the documentation shows them.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

CHROMIUM = shutil.which("chromium")
FLAGS = [
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
NARROW, WIDE = 390, 1440
PATIENCE = 60_000
"""Milliseconds that a busy machine may take."""

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here"),
]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The page of the shipped model, in a process of its own, which logs no fault."""
    command = [sys.executable, "-m", "ddit", "demo", "--port", "0"]
    log = tmp_path_factory.mktemp("demo") / "log.txt"
    with (
        log.open("w") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as server,
    ):
        assert server.stdout is not None
        try:
            yield server.stdout.readline().strip()
        finally:
            server.terminate()
            server.wait(timeout=30)
    assert "Traceback" not in log.read_text()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS, timeout=PATIENCE)
        yield browser
        browser.close()


class Visit:
    """A browser's window on the page, which collects its faults."""

    def __init__(self, browser: Any, address: str, width: int, scheme: str = "light") -> None:
        self.context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        self.page, self.width, self.address = self.context.new_page(), width, address
        self.page.set_default_timeout(PATIENCE)
        self.faults: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", self._hear)
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("response", lambda response: response.status >= 400 and self.faults.append(response.url))
        self.page.goto(address)
        self.panel().get_by_label("Prompt", exact=True).wait_for()

    def _hear(self, message: Any) -> None:
        if message.type == "error":  # warnings are Gradio's own: a stream that it cannot close
            self.faults.append(message.text)

    def tab(self, name: str) -> Any:
        """Opens a tab; gives its panel."""
        self.page.get_by_role("tab", name=name, exact=True).click()
        return self.panel()

    def panel(self) -> Any:
        return self.page.locator("[role=tabpanel]:visible")

    def press(self, name: str) -> None:
        self.panel().get_by_role("button", name=name, exact=True).click()

    def answer(self) -> str:
        """The finished text of the tab."""
        return self.panel().locator(".answer").inner_text()

    def photograph(self, name: str) -> None:
        """For the documentation, if that is asked for: the whole page, which must fit the screen."""
        self.fits()
        folder = os.environ.get("DDIT_SCREENSHOTS")
        if folder:
            self.page.mouse.move(0, 0)
            path = Path(folder) / f"page_{name}_{self.width}.png"
            self.page.screenshot(path=path, full_page=True)
            Image.open(path).convert("RGB").quantize(256).save(path, optimize=True)

    def fits(self) -> None:
        assert self.page.evaluate("document.documentElement.scrollWidth") == self.width

    def end(self) -> None:
        outside = [url for url in self.requests if not url.startswith((self.address, "data:", "blob:"))]
        self.context.close()
        assert self.requests
        assert outside == []
        assert self.faults == []


@pytest.fixture
def visit(request: pytest.FixtureRequest, browser: Any, address: str) -> Iterator[Visit]:
    """A window as wide as a screen, or as the test's parameter says."""
    visit = Visit(browser, address, getattr(request, "param", WIDE))
    yield visit
    visit.end()


at_both_widths = pytest.mark.parametrize("visit", [NARROW, WIDE], indirect=True)


@at_both_widths
def test_generating_shows_the_steps_the_image_and_its_caption(visit: Visit) -> None:
    # the page itself records its steps: one may be gone before the test could ask for it
    visit.page.evaluate(
        """() => {
          window.steps = new Set();
          new MutationObserver(() => {
            const bar = document.querySelector('.generated progress');
            if (bar) window.steps.add(bar.value);
          }).observe(document.body, {subtree: true, childList: true, attributes: true});
        }"""
    )
    visit.panel().get_by_label("Prompt", exact=True).fill("a photo of a red car")
    visit.press("Generate")
    assert visit.answer() == "a photo of a red car"
    image = visit.panel().locator(".generated img")
    assert image.get_attribute("alt") == "Generated from: a photo of a red car"
    assert image.evaluate("image => [image.naturalWidth, image.naturalHeight]") == [64, 64]
    assert image.evaluate("image => getComputedStyle(image).imageRendering") == "pixelated"
    assert set(visit.page.evaluate("() => [...window.steps]")) >= {2, 4, 6}
    assert visit.panel().get_by_role("link", name="Save the image").get_attribute("download")
    visit.photograph("generate")

    visit.press("Ask about it")
    visit.panel().get_by_label("Question", exact=True).fill("what color is the car?")
    visit.press("Ask")
    assert visit.answer() == "red"


@at_both_widths
def test_a_scene_is_captioned_and_a_question_answered(visit: Visit) -> None:
    panel = visit.tab("Ask")
    panel.get_by_text("What the scene shows").click()
    assert panel.locator(".truth p").inner_text() == "a dog left of a blue carrot"
    panel.get_by_text("What the scene shows").click()
    visit.press("Caption")
    assert set(visit.answer().split()) >= {"dog", "blue", "carrot"}
    confidences = panel.locator(".word small").all_inner_texts()
    assert confidences
    assert all(0 <= int(number) <= 100 for number in confidences)
    visit.photograph("ask")
    question = panel.get_by_label("Question", exact=True)
    question.fill("what color is the carrot?")
    question.press("Enter")
    panel.locator(".answer", has_text=re.compile("^blue$")).wait_for()

    before = panel.locator(".source img").get_attribute("src")
    visit.press("Another example image")
    visit.page.wait_for_function(
        "before => [...document.querySelectorAll('.source img')].every(image => image.src !== before)",
        arg=before,
    )
    assert panel.locator(".truth p").text_content() == "two dogs and a green sheep"


def test_words_appear_one_after_the_other(visit: Visit) -> None:
    panel = visit.tab("Ask")
    panel.get_by_label("Slow motion").check()
    panel.locator(".source img").wait_for()
    visit.press("Caption")
    panel.locator(".word.masked").first.wait_for()
    few = panel.locator(".word.filled, .word.end").count()
    panel.locator(".answer").wait_for()
    assert few < panel.locator(".word.filled, .word.end").count() + 8
    assert panel.locator(".word.masked").count() == 0


def test_an_uploaded_image_is_captioned(visit: Visit, tmp_path: Path) -> None:
    from ddit.serve.page_examples import scene_sample

    path = tmp_path / "cup.png"
    scene_sample(1).image.resize((200, 200)).save(path)
    panel = visit.tab("Ask")
    panel.locator(".source img").wait_for()
    panel.get_by_role("button", name="Remove Image").click()
    visit.press("Caption")
    assert "no image yet" in panel.get_by_role("alert").inner_text()
    panel.locator("input[type=file]").set_input_files(path)
    visit.page.wait_for_function(  # it is shown as the model sees it
        "() => [...document.querySelectorAll('.source img')].filter(image => image.checkVisibility())"
        ".some(image => image.naturalWidth === 64)"
    )
    visit.press("Caption")
    assert set(visit.answer().split()) >= {"pink", "cup"}


def test_an_image_of_ones_own_has_nothing_of_the_scene_before(visit: Visit, tmp_path: Path) -> None:
    path = tmp_path / "red.png"
    Image.new("RGB", (64, 64), "red").save(path)
    for name in ("Ask", "Fill in", "Edit"):
        panel = visit.tab(name)
        panel.locator(".truth").wait_for()
        panel.get_by_role("button", name="Remove Image").click()
        panel.locator(".truth").wait_for(state="detached")
        panel.locator("input[type=file]").set_input_files(path)
        offered = panel.locator(".gallery-item, .gallery button, tbody button").all_inner_texts()
        assert not any("carrot" in text or "banana" in text for text in offered)
        assert "carrot" not in panel.locator("textarea, input[type=text]").first.input_value()
        assert panel.locator(".truth").count() == 0
    visit.tab("Ask")
    question = visit.panel().get_by_label("Question", exact=True)
    question.fill("is there a bus?")
    visit.press("Another example image")
    visit.panel().locator(".truth").wait_for()
    question.fill("is there a tree?")
    visit.panel().get_by_role("button", name="Remove Image").click()
    visit.panel().locator(".truth").wait_for(state="detached")
    assert question.input_value() == "is there a tree?"


def test_a_generated_image_that_is_handed_over_has_nothing_of_a_scene(visit: Visit) -> None:
    visit.press("Generate")
    visit.answer()
    visit.press("Ask about it")
    visit.panel().get_by_label("Question", exact=True).wait_for()
    assert visit.panel().locator(".truth").count() == 0


def test_a_file_that_is_no_image_and_steps_of_zero_are_answered_in_a_sentence(
    visit: Visit, tmp_path: Path
) -> None:
    panel = visit.tab("Ask")
    panel.locator(".source img").wait_for()
    for name in ("fake.svg", "fake.png"):
        (tmp_path / name).write_bytes(b"no image\xff")
        panel.get_by_role("button", name="Remove Image").click()
        panel.get_by_role("alert").wait_for(state="detached")
        panel.locator("input[type=file]").set_input_files(tmp_path / name)
        panel.get_by_role("alert").filter(has_text="not an image of a known format").wait_for()
    visit.press("Caption")
    assert "not an image of a known format" in panel.get_by_role("alert").inner_text()
    panel = visit.tab("Generate")
    panel.get_by_label("Steps").fill("0")
    visit.press("Generate")
    assert panel.get_by_role("alert").inner_text() == "Steps must be 1 to 50, got 0."


@at_both_widths
def test_blanks_are_filled_in(visit: Visit) -> None:
    panel = visit.tab("Fill in")
    box = panel.get_by_label("Text with blanks")
    visit.page.wait_for_function("() => [...document.querySelectorAll('input, textarea')].some(box => "
                                 "box.value === 'a picture of a ___ banana below a ___ sheep')")  # fmt: skip
    visit.press("Fill in")
    assert visit.answer() == "a picture of a blue banana below a pink sheep"
    assert panel.locator(".word.filled").all_inner_texts()[0].startswith("blue")
    visit.photograph("fill")
    box.fill("a banana")
    box.press("Enter")
    assert "no blank" in panel.get_by_role("alert").inner_text()


@at_both_widths
def test_a_part_is_replaced_and_the_whole_is_varied(visit: Visit) -> None:
    panel = visit.tab("Edit")
    panel.locator("#painter img").wait_for()
    visit.press("Generate")
    assert "Nothing is painted" in panel.get_by_role("alert").inner_text()
    canvas = panel.locator("#painter canvas")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    for row in range(12):
        y = box["y"] + box["height"] * (0.04 + 0.083 * row)
        visit.page.mouse.move(box["x"] + box["width"] * 0.6, y)
        visit.page.mouse.down()
        visit.page.mouse.move(box["x"] + box["width"] * 0.97, y, steps=3)
        visit.page.mouse.up()
    panel.get_by_label("Prompt").fill("a dog left of a red car")
    visit.press("Generate")
    assert set(visit.answer().split()) >= {"dog", "car"}
    visit.photograph("edit")
    panel.get_by_label("Vary the whole image").check()
    panel.get_by_label("Strength").first.wait_for()
    panel.get_by_label("Prompt").fill("a photo of a dog")
    visit.press("Generate")
    panel.locator(".generated img[alt='Generated from: a photo of a dog']").wait_for()
    panel.locator(".answer", has_text="dog").wait_for()


@at_both_widths
def test_how_it_works_shows_the_steps_of_both(visit: Visit) -> None:
    panel = visit.tab("How it works")
    visit.press("Show the steps")
    panel.locator(".grid tr:last-child td").first.wait_for()
    visit.page.wait_for_function(
        "() => { const rows = document.querySelectorAll('.grid tr'); "
        "return rows.length > 2 && !rows[rows.length - 1].querySelector('.masked'); }"
    )
    assert panel.locator(".strip img").count() == 16
    times = [float(text[4:]) for text in panel.locator(".strip small").all_inner_texts()]
    assert times[:8] == sorted(times[:8], reverse=True)
    assert (times[0], times[-1]) == (1.0, 0.0)
    words = panel.locator(".grid tr:last-child td").all_inner_texts()
    assert {"umbrella", "dog"} <= {word.split("\n")[0] for word in words}
    visit.photograph("how")


def test_the_generate_tab_needs_no_mouse(visit: Visit) -> None:
    """Tab reaches everything in order, the focus is visible, enter generates."""
    keyboard = visit.page.keyboard
    focused = "document.activeElement"
    reached = []
    for _ in range(14):
        keyboard.press("Tab")
        reached.append(
            visit.page.evaluate(f"{focused}.innerText || {focused}.ariaLabel || {focused}.value || ''")
        )
        outline = visit.page.evaluate(f"getComputedStyle({focused}).outlineStyle")
        assert outline != "none", reached
        if visit.page.evaluate(f"{focused}.type === 'text' || {focused}.tagName === 'TEXTAREA'"):
            break
    assert reached[-1] == "a photo of a red car"
    keyboard.press("ControlOrMeta+a")
    keyboard.type("a photo of a pink donut")
    keyboard.press("Enter")
    assert visit.answer() == "a photo of a pink donut"
    keyboard.press("Tab")
    assert visit.page.evaluate(f"{focused}.innerText") == "Generate"


def test_painting_needs_no_mouse(visit: Visit) -> None:
    panel = visit.tab("Edit")
    panel.locator("#painter img").wait_for()
    canvas = panel.locator("#painter canvas")
    paint = """canvas => canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height)
        .data.filter((value, index) => index % 4 === 3 && value > 127).length"""
    visit.page.wait_for_function("() => document.querySelector('#painter canvas').width === 64")
    canvas.focus()
    assert canvas.evaluate(paint) == 0
    visit.page.keyboard.press("Space")
    once = canvas.evaluate(paint)
    assert once > 0
    visit.page.keyboard.press("ArrowRight")
    visit.page.keyboard.press("Space")
    assert canvas.evaluate(paint) > once
    visit.page.keyboard.press("Delete")
    assert canvas.evaluate(paint) == 0


def test_the_page_follows_a_dark_screen_and_words_stay_legible(browser: Any, address: str) -> None:
    visit = Visit(browser, address, NARROW, "dark")
    visit.press("Generate")
    assert visit.answer() == "a photo of a red car"
    contrasts = visit.page.evaluate(CONTRASTS)
    assert contrasts["page"] > 7
    assert min(contrasts["words"]) > 4.5
    visit.photograph("dark")
    visit.end()


CONTRASTS = """() => {
  const numbers = color => {
    const canvas = document.createElement('canvas').getContext('2d');
    canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3).map(value => value / 255)
      .map(value => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
  };
  const light = color => { const [r, g, b] = numbers(color); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const contrast = (one, other) => {
    const [low, high] = [light(one), light(other)].sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05);
  };
  const style = element => getComputedStyle(element);
  const words = [...document.querySelectorAll('.word.filled')].map(
    word => contrast(style(word).color, style(word).backgroundColor));
  const heading = document.querySelector('h1');
  return {words, page: contrast(style(heading).color, style(document.body).backgroundColor)};
}"""
