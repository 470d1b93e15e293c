"""Parts of the page: its theme, its heading, boxes with examples, the painter, files of images."""

import shutil
from collections.abc import Sequence
from hashlib import sha256
from html import escape
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

MAX_CHARACTERS = 500
EVENT: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
AT_ONCE = {**EVENT, "queue": False}
"""Of actions that answer at once. Gradio loses a click that comes while the last queued event ends and its stream of
answers closes, so that only runs of the model are queued."""

PAINTER_HTML = """<div class="painter">
<p id="painter-help">Paint over the part to replace. By keyboard: arrows move, space paints, delete clears.</p>
<div class="surface"><img alt=""><canvas tabindex="0" role="application" aria-label="Part to replace"
aria-describedby="painter-help"></canvas><span class="cursor"></span></div>
<button type="button" class="clear">Clear</button>
</div>"""


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


def heading(name: str, size: int, has_world: bool) -> str:
    world = "It knows a small world of emoji: 24 things in ten colours." if has_world else ""
    return (
        "<header><h1>One model, both ways</h1>"
        f"<p>It generates images from text and text from images, both by diffusion. {world} "
        f"<span class='model'>{escape(name)} · {size} pixels</span></p></header>"
    )


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
