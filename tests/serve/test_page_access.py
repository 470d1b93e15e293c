"""The page by keyboard, by screen reader and on a dark screen, in a real browser, checked by axe."""

import re
from pathlib import Path
from typing import Any

from page_visit import NARROW, WIDE, Visit, at_both_widths, needs_chromium
from PIL import Image

pytestmark = needs_chromium

TABS = ["Generate", "Ask", "Fill in", "Edit", "How it works"]
FOCUSED = "document.activeElement.innerText"


@at_both_widths
def test_every_tab_is_accessible_before_it_is_used(visit: Visit) -> None:
    """Once it is used, `photograph` checks it again."""
    for name in TABS:
        visit.tab(name)
        visit.fits()
        visit.is_accessible()
    panel = visit.tab("Edit")
    panel.get_by_label("Vary the whole image").check()
    panel.get_by_label("Strength").first.wait_for()
    visit.is_accessible()
    panel.get_by_role("button", name="Remove Image").click()
    panel.locator("#painter img").wait_for(state="hidden")
    visit.is_accessible()


def test_axe_finds_what_is_wrong(visit: Visit) -> None:
    """Tried again: on a busy machine something may lie over the text for a while, whose contrast then is not judged."""
    visit.page.add_style_tag(content="#heading p { color: #8a8a8a !important; }")
    for _ in range(30):
        findings = visit.findings()
        if any(found.startswith("color-contrast") for found in findings):
            return
        visit.page.wait_for_timeout(1000)
    raise AssertionError(findings)


def test_the_page_follows_a_dark_screen(browser: Any, page_address: str) -> None:
    visit = Visit(browser, page_address, NARROW, "dark")
    visit.press("Generate")
    assert set(visit.answer().split()) >= {"red", "car"}
    dark = "getComputedStyle(document.body).backgroundColor"
    assert visit.page.evaluate(dark) == "rgb(23, 22, 20)"
    assert min(visit.page.evaluate(WORD_CONTRASTS)) > 4.5  # of colours that axe does not judge
    visit.photograph("dark")
    visit.end()


def test_arrows_move_between_the_tabs(visit: Visit) -> None:
    keyboard = visit.page.keyboard
    visit.page.get_by_role("tab", name="Generate", exact=True).focus()
    pressed = ["ArrowRight", "ArrowRight", "ArrowLeft", "End", "ArrowRight", "ArrowLeft", "Home"]
    opened = ["Ask", "Fill in", "Ask", "How it works", "Generate", "How it works", "Generate"]
    for key, name in zip(pressed, opened, strict=True):
        keyboard.press(key)
        assert visit.page.evaluate(FOCUSED) == name
        tab = visit.page.get_by_role("tab", name=name, exact=True)
        assert tab.get_attribute("aria-selected") == "true"
        assert visit.panel().get_attribute("aria-labelledby") == tab.get_attribute("id")
        assert [one.get_attribute("tabindex") for one in visit.page.get_by_role("tab").all()] == [
            "0" if other == name else "-1" for other in TABS
        ]


def test_the_generate_tab_needs_no_mouse(visit: Visit) -> None:
    """Tab reaches everything in order, the focus is visible, enter generates."""
    keyboard = visit.page.keyboard
    focused = "document.activeElement"
    reached = []
    for _ in range(20):
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
    assert set(visit.answer().split()) >= {"pink", "donut"}
    keyboard.press("Tab")
    assert visit.page.evaluate(f"{focused}.innerText") == "Generate"


def test_painting_needs_no_mouse_and_says_where_the_brush_is(visit: Visit) -> None:
    panel = visit.tab("Edit")
    visit.page.wait_for_function("() => document.querySelector('#painter canvas').width === 64")
    canvas, status = panel.locator("#painter canvas"), panel.locator("#painter [role=status]")
    assert status.inner_text() == "Paint over the part to replace."
    panel.get_by_label("Prompt").focus()
    visit.page.keyboard.press("Tab")
    assert canvas.evaluate("canvas => canvas === document.activeElement")
    assert status.inner_text() == "Brush 50 % from the left, 50 % from the top. Nothing is painted."
    assert panel.locator("#painter-help").is_visible()
    assert canvas.get_attribute("aria-describedby") == "painter-help"

    def press(key: str) -> str:
        visit.page.keyboard.press(key)
        return status.inner_text()

    assert press("ArrowRight") == "Brush 55 % from the left, 50 % from the top."
    assert (
        press("Space") == "2 % of the image is painted. Brush 55 % from the left, 50 % from the top, painted."
    )
    wider = press("Shift+ArrowUp")
    assert wider == "Brush 55 % from the left, 46 % from the top, painted. 3 % of the image is painted."
    assert press("Delete") == "Nothing is painted."
    canvas.click()
    assert re.fullmatch(r"[23] % of the image is painted\.", status.inner_text())
    panel.get_by_role("button", name="Clear").click()
    assert status.inner_text() == "Nothing is painted."


@at_both_widths
def test_the_image_to_edit_is_shown_once_with_the_result_beside_it_or_below(visit: Visit) -> None:
    panel = visit.tab("Edit")
    panel.locator("#painter img").wait_for()
    assert panel.locator("img:visible").count() == 1
    panel.get_by_label("Vary the whole image").check()
    panel.locator("#painter canvas").wait_for(state="hidden")
    visit.press("Generate")
    visit.answer()
    image, result = (
        panel.locator("#painter img").bounding_box(),
        panel.locator(".generated img").bounding_box(),
    )
    if visit.width == WIDE:
        assert result["x"] > image["x"] + image["width"]
        assert abs(result["y"] - image["y"]) < 4
    else:
        assert 0 < result["y"] - image["y"] - image["height"] < 130


def test_a_run_can_be_stopped(visit: Visit) -> None:
    panel = visit.tab("Ask")
    panel.locator(".source img").wait_for()
    stop = panel.get_by_role("button", name="Stop")
    assert stop.is_disabled()
    panel.get_by_label("Slow motion").check()
    visit.press("Caption")
    panel.locator(".word.masked").first.wait_for()
    stop.click()
    panel.get_by_role("status").filter(has_text="Stopped.").wait_for()
    assert stop.is_disabled()
    assert visit.page.evaluate(FOCUSED) == "Describe"  # the button before it
    visit.page.wait_for_timeout(2000)
    assert panel.locator(".word.masked").count() > 0
    assert panel.locator(".answer").count() == 0
    panel.get_by_label("Slow motion").uncheck()
    visit.press("Caption")
    assert "dog" in visit.answer()


def test_a_random_seed_is_drawn_and_taken(visit: Visit) -> None:
    panel = visit.panel()
    seed = panel.get_by_label("Seed")
    assert seed.input_value() == "0"
    visit.press("Random seed")
    visit.page.wait_for_function("seed => seed.value !== '0'", arg=seed.element_handle())
    visit.press("Generate")
    visit.answer()
    saved = panel.get_by_role("link", name="Save the image").get_attribute("download")
    assert saved == f"a-photo-of-a-red-car-{seed.input_value()}.png"
    for name in ("Seed", "Steps", "Guidance"):
        assert panel.locator("label", has_text=name).locator(".info-text").inner_text()


def test_an_animated_file_says_which_frame_was_taken(visit: Visit, tmp_path: Path) -> None:
    path = tmp_path / "two.gif"
    Image.new("RGB", (64, 64), "red").save(
        path, save_all=True, append_images=[Image.new("RGB", (64, 64), "blue")]
    )
    for name in ("Ask", "Edit"):
        panel = visit.tab(name)
        panel.locator(".truth").wait_for()
        panel.get_by_role("button", name="Remove Image").click()
        panel.locator(".truth").wait_for(state="detached")
        panel.locator("input[type=file]").set_input_files(path)
        panel.get_by_role("status").filter(has_text="its first frame is used").wait_for()
        panel.get_by_role("button", name="Another example image").click()
        panel.locator(".truth").wait_for()
        assert panel.get_by_text("its first frame is used").count() == 0


def test_the_page_links_to_the_document_of_its_api(visit: Visit) -> None:
    link = visit.page.get_by_role("navigation", name="Documents").get_by_role(
        "link", name="API of this server"
    )
    address = link.evaluate("link => link.href")
    assert address == f"{visit.address}/docs"
    assert visit.page.request.get(address).ok


WORD_CONTRASTS = """() => {
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
  return [...document.querySelectorAll('.word.filled')].map(
    word => contrast(style(word).color, style(word).backgroundColor));
}"""
