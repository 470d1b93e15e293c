"""The page in a real browser: every tab from end to end, no fault on the console, no request to another host."""

import re
from pathlib import Path

from page_visit import Visit, at_both_widths, needs_chromium
from PIL import Image

pytestmark = needs_chromium


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
    assert set(visit.answer().split()) >= {"red", "car"}
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
    assert {"horse", "cake"} <= {word.split("\n")[0] for word in words}
    visit.photograph("how")
