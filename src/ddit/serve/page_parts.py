"""Parts of the page: its theme, its heading, boxes and buttons, the painter, files of images."""

import shutil
from collections.abc import Sequence
from hashlib import sha256
from html import escape
from importlib.metadata import metadata
from pathlib import Path
from typing import Any

import gradio as gr
from gradio import themes
from gradio.components import Component
from gradio.data_classes import ImageData
from gradio.utils import get_upload_folder
from PIL import Image

from ddit.files import write_atomically
from ddit.serve.files import encode_image_file
from ddit.settings import ImageSampling

MAX_CHARACTERS = 500
EVENT: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
AT_ONCE = {**EVENT, "queue": False}
"""Of actions that answer at once. Gradio loses a click that comes while the last queued event ends and its stream of
answers closes, so that only runs of the model are queued."""

PAINTER_HTML = """<div class="painter">
<div class="surface"><img alt="The image to edit"><canvas tabindex="0" role="application"
aria-roledescription="brush" aria-label="Part to replace" aria-describedby="painter-help"></canvas><span
class="cursor"></span></div>
<div class="state"><button type="button" class="clear">Clear</button><p role="status"></p></div>
<p id="painter-help" class="help">Arrows move the brush, Space paints, Shift with an arrow paints a line, Delete
clears.</p>
</div>"""

SEED_HELP = "The same seed gives the same image."
STEPS_HELP = "More take longer, fewer are coarser."
GUIDANCE_HELP = "Higher keeps closer to the prompt."
RANDOM_SEED = "() => Math.floor(Math.random() * 2 ** 32)"

LINKS = {"Documentation": "Documentation", "Issues": "Report a problem", "Paper": "The paper"}
"""Links of the package's metadata that the page shows, and under what name."""


def make_theme() -> themes.Base:
    """Plain shapes and the reader's own fonts; Gradio's own themes fetch theirs from elsewhere."""
    fonts = [themes.Font(family) for family in ("system-ui", "sans-serif")]
    mono = [themes.Font(family) for family in ("ui-monospace", "monospace")]
    theme = themes.Base(
        primary_hue="blue", neutral_hue="stone", font=fonts, font_mono=mono, radius_size="lg", text_size="md"
    )
    return theme.set(
        body_background_fill="#f7f6f3",
        body_background_fill_dark="#171614",
        block_background_fill="transparent",
        block_background_fill_dark="transparent",
        block_border_width="0px",
        block_padding="0px",
        block_shadow="none",
        input_border_width="1px",
        input_border_color="*neutral_400",
        input_border_color_dark="*neutral_600",
        block_label_text_color="*neutral_600",
        block_label_text_color_dark="*neutral_300",
        block_title_text_color="*neutral_700",
        block_title_text_color_dark="*neutral_200",
        input_background_fill="white",
        input_background_fill_dark="*neutral_800",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_600",
        button_primary_background_fill_hover_dark="*primary_700",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_400",
        button_primary_text_color="white",
        button_secondary_background_fill="white",
        button_secondary_background_fill_dark="*neutral_800",
        button_secondary_border_color="*neutral_300",
        button_secondary_border_color_dark="*neutral_600",
        button_border_width="1px",
        input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_400",
    )


def checked_later(component: Component) -> None:
    """Passes an input on as it is: our actions answer a fault in a sentence, Gradio's own checks with a traceback.

    An event may give the component a value, but no update (`gr.skip` is one), for which Gradio would make it again.
    """
    component.preprocess = _plain_value


def _plain_value(payload: Any) -> Any:
    return payload.path if isinstance(payload, ImageData) else payload


def image_file(image: Image.Image) -> str:
    """The path of an image among Gradio's files, by its content.

    Gradio itself would write that file again whenever the image is shown, and a reader could get part of it.
    """
    data = encode_image_file(image, "png")
    path = Path(get_upload_folder()) / sha256(data).hexdigest() / "image.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    with write_atomically(path) as part:
        part.write_bytes(data)
    return str(path)


def without_suffix(path: str) -> str:
    """A copy of an uploaded file that Gradio shows as it is; one named .svg it would read itself, and fail."""
    return str(shutil.copyfile(path, f"{path}.unread"))


def project_links() -> list[tuple[str, str]]:
    """Names and addresses of the project's documents, as the package's metadata gives them."""
    given = metadata("ddit").get_all("Project-URL") or []
    found = dict(entry.split(", ", 1) for entry in given)
    return [(shown, found[label]) for label, shown in LINKS.items() if label in found]


def heading(name: str, size: int, has_world: bool, links: Sequence[tuple[str, str]]) -> str:
    world = "It knows a small world of emoji in ten colours." if has_world else ""
    return (
        "<header><h1>One model, both ways</h1>"
        f"<p>It generates images from text and text from images, both by diffusion. {world} "
        f"<span class='model'>{escape(name)} · {size} pixels</span></p>"
        f"{_navigation(links) if links else ''}</header>"
    )


def _navigation(links: Sequence[tuple[str, str]]) -> str:
    shown = (
        f'<a href="{escape(url)}" target="_blank" rel="noreferrer">{escape(text)}</a>' for text, url in links
    )
    return f'<nav aria-label="Documents">{"".join(shown)}</nav>'


def stop_button() -> gr.Button:
    return gr.Button("Stop", interactive=False, scale=0, min_width=80, elem_classes="stop")


def seed_box() -> gr.Number:
    """The seed, and the button that draws another one."""
    with gr.Row(elem_classes="seed"):
        seed = gr.Number(0, label="Seed", info=SEED_HELP, precision=0, minimum=0, min_width=120)
        button = gr.Button("Random seed", size="md", scale=0, min_width=120)
    button.click(None, None, seed, js=RANDOM_SEED, **EVENT)
    checked_later(seed)
    return seed


def sampling_boxes(sampling: ImageSampling, max_steps: int, max_guidance: float) -> list[gr.Number]:
    """Seed, steps, guidance."""
    seed = seed_box()
    with gr.Row(elem_classes="settings"):
        steps = gr.Number(
            sampling.num_steps, label="Steps", info=STEPS_HELP, precision=0, minimum=1, maximum=max_steps, min_width=90
        )  # fmt: skip
        guidance = gr.Number(
            sampling.guidance_scale, label="Guidance", info=GUIDANCE_HELP, step=0.5, minimum=0, maximum=max_guidance,
            min_width=90,
        )  # fmt: skip
    for number in (steps, guidance):
        checked_later(number)
    return [seed, steps, guidance]


def suggestions(label: str, texts: tuple[str, ...], target: gr.Textbox) -> gr.Dataset:
    """Texts that a click puts into a box."""
    offered = gr.Dataset(
        components=[gr.Textbox(visible=False)], samples=[[text] for text in texts], label=label, type="values"
    )
    offered.click(lambda sample: sample[0], offered, target, **AT_ONCE)
    return offered


def samples(texts: Sequence[str]) -> gr.Dataset:
    return gr.Dataset(samples=[[text] for text in texts])


def line(text: str, label: str, **options: Any) -> gr.Textbox:
    """A box for one line, which the enter key sends."""
    return gr.Textbox(text, label=label, lines=1, max_lines=1, max_length=MAX_CHARACTERS, **options)
