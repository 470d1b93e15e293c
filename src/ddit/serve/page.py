"""The page: draw, read, fill in and change pictures in a browser, and see how the model does it.

Everything that the browser loads comes from this server. Gradio is imported here, so import this module late.
"""

import os
from hashlib import sha256
from html import escape
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import gradio as gr
from fastapi import FastAPI
from gradio import themes
from gradio.utils import get_upload_folder
from PIL import Image

from ddit.serve.engine import Engine
from ddit.serve.files import encode_image_file
from ddit.serve.page_examples import Examples, SceneSample, examples_for, scene_sample
from ddit.serve.page_runs import Runs
from ddit.serve.page_view import look, placeholder, truth

CSS = Path(__file__).with_name("page.css")
PAINTER_JS = Path(__file__).with_name("page_painter.js")
MAX_UPLOAD = "20mb"
MAX_CHARACTERS = 500
MAX_STEPS = 50
SECONDS_KEPT = 3600
"""How long an uploaded picture stays on the server's disk."""

PAINTED = "document.querySelector('#painter canvas')?.toDataURL('image/png') ?? ''"
MEASURE_TABS = (
    "() => [0, 300, 1000, 3000, 9000].forEach(wait => "
    "setTimeout(() => dispatchEvent(new Event('resize')), wait))"
)
"""Gradio may measure the tabs before they have their style, and then hides the last in a menu on a narrow screen."""
REDRAW, VARY = "Draw a part anew", "Vary all of it"
EVENT: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
AT_ONCE = {**EVENT, "queue": False}
"""Of what answers at once. Gradio loses what is pressed while the last of the queued events ends and its stream of
answers closes, so that only the model's runs are queued."""
STREAMED = {**EVENT, "concurrency_limit": None}  # the engine's queue is the bound


def build_page(engine: Engine, *, name: str = "mini") -> gr.Blocks:
    """The page of a model. The engine must run on the event loop that serves it.

    name: of the model, for the heading.
    """
    return _Page(engine, name).blocks


def mount_page(app: FastAPI, engine: Engine, *, path: str = "/", name: str = "mini") -> FastAPI:
    """Puts the page at a path of an application whose lifespan starts the engine."""
    return gr.mount_gradio_app(
        app,
        build_page(engine, name=name),
        path=path,
        theme=_theme(),
        css_paths=[CSS],
        footer_links=[],
        max_file_size=MAX_UPLOAD,
        run_history=False,
        ssr_mode=False,
        show_error=False,
    )


def _theme() -> themes.Base:
    """Plain shapes, and fonts of the reader's own machine: Gradio's own themes fetch theirs from elsewhere."""
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


class _Page:
    """The page under construction: its tabs share the model's runs, its examples and the last picture."""

    def __init__(self, engine: Engine, name: str) -> None:
        self.runs = Runs(engine)
        self.settings = engine.pipeline.settings
        self.look = look((self.settings.image_size, self.settings.image_size))
        self.examples: Examples = examples_for(engine.pipeline.text_codec)
        with gr.Blocks(
            title="ddit",
            analytics_enabled=False,
            fill_width=False,
            delete_cache=(SECONDS_KEPT, SECONDS_KEPT),
        ) as self.blocks:
            gr.HTML(_heading(name, self.settings.image_size, self.examples.has_world), elem_id="heading")
            with gr.Tabs() as self.tabs:
                with gr.Tab("Draw", id="draw"):
                    self._draw_tab()
                with gr.Tab("Read", id="read"):
                    self.read_image = self._read_tab()
                with gr.Tab("Fill in", id="fill"):
                    self._fill_tab()
                with gr.Tab("Change", id="change"):
                    self.change_image = self._change_tab()
                with gr.Tab("How it works", id="how"):
                    self._how_tab()
            self._hand_over()
            self.blocks.load(None, js=MEASURE_TABS)

    # --- tabs ---

    def _draw_tab(self) -> None:
        with gr.Row(elem_classes="sides"):
            with gr.Column(elem_classes="main"):
                prompt = _line(self.examples.prompts[0], "What to draw")
                button = gr.Button("Draw", variant="primary")
            with gr.Column(elem_classes="result"):
                result = gr.HTML(placeholder("The picture appears here as the model draws it."))
                self.drawn = gr.State(None)
                with gr.Row(visible=False, elem_classes="pair") as next_steps:
                    self.to_read = gr.Button("Ask about it", size="sm", min_width=100)
                    self.to_change = gr.Button("Change it", size="sm", min_width=100)
            with gr.Column(elem_classes="more"):
                _suggestions("Try one of these", self.examples.prompts, prompt)
                settings = self._drawing_settings()
        inputs, outputs = [prompt, *settings], [result, self.drawn]
        _on([button.click, prompt.submit], self.runs.draw, inputs, outputs)
        self.drawn.change(_visible_if_any, self.drawn, next_steps, **AT_ONCE)

    def _read_tab(self) -> gr.Image:
        with gr.Row(elem_classes="sides"):
            with gr.Column(elem_classes="main"):
                image, scene_button, facts = self._picture_input()
            with gr.Column(elem_classes="result"):
                caption_button = gr.Button("Describe it", variant="primary")
                question = _line(self.examples.questions[0], "A question about it")
                ask_button = gr.Button("Ask", variant="primary")
                result = gr.HTML(
                    placeholder("The words appear here, in the order in which the model is sure of them.")
                )
            with gr.Column(elem_classes="more"):
                offered = _suggestions("Questions to try", self.examples.questions, question)
                slow = gr.Checkbox(False, label="Slow motion", container=False)
        read = self.runs.read
        _on([caption_button.click], _of_verb(read, "caption"), [image, question, slow], [result])
        _on([ask_button.click, question.submit], _of_verb(read, "answer"), [image, question, slow], [result])

        def show(sample: SceneSample) -> list[Any]:
            questions = [asked for asked, _ in sample.questions]
            return [
                image_file(sample.image),
                truth(sample.caption, sample.questions),
                questions[0],
                _samples(questions),
            ]

        self._offer_scenes(scene_button, show, [image, facts, question, offered], first=3)
        return image

    def _fill_tab(self) -> None:
        with gr.Row(elem_classes="sides"):
            with gr.Column(elem_classes="main"):
                image, scene_button, facts = self._picture_input()
            with gr.Column(elem_classes="result"):
                info = "Two or more underscores are a blank, for one word."
                text = _line(self.examples.blanks[0], "A text with blanks", info=info)
                button = gr.Button("Fill in", variant="primary")
                result = gr.HTML(placeholder("The filled text appears here."))
            with gr.Column(elem_classes="more"):
                offered = _suggestions("Texts to try", self.examples.blanks, text)
                slow = gr.Checkbox(False, label="Slow motion", container=False)
        _on([button.click, text.submit], _of_verb(self.runs.read, "infill"), [image, text, slow], [result])

        def show(sample: SceneSample) -> list[Any]:
            texts = [sample.blank, *self.examples.blanks]
            return [image_file(sample.image), truth(sample.caption, []), sample.blank, _samples(texts)]

        self._offer_scenes(scene_button, show, [image, facts, text, offered], first=6)

    def _change_tab(self) -> gr.Image:
        with gr.Row(elem_classes="sides"):
            with gr.Column(elem_classes="main"):
                image, scene_button, facts = self._picture_input("small")
                mode = gr.Radio([REDRAW, VARY], value=REDRAW, label="How")
                painter = gr.HTML(
                    "",
                    elem_id="painter",
                    elem_classes=self.look,
                    html_template=PAINTER_HTML,
                    js_on_load=PAINTER_JS.read_text(),
                )
                strength = gr.Slider(
                    0.05, 1, 0.6, step=0.05, label="Strength", visible=False,
                    info="How much noise the picture gets: 1 keeps nothing of it.",
                )  # fmt: skip
            with gr.Column(elem_classes="result"):
                prompt = _line(self.examples.changes[0], "What the picture is to show")
                button = gr.Button("Draw it anew", variant="primary")
                result = gr.HTML(placeholder("The new picture appears here."))
            with gr.Column(elem_classes="more"):
                offered = _suggestions("Try one of these", self.examples.changes, prompt)
                settings = self._drawing_settings()
        mask, changed = gr.Textbox(visible="hidden", label="mask"), gr.State(None)
        inputs = [mode, strength, image, mask, prompt, *settings]
        fetch = f"(...given) => {{ given[3] = {PAINTED}; return given; }}"
        _on([button.click, prompt.submit], self._change, inputs, [result, changed], js=fetch)
        mode.change(_tools_of, mode, [painter, strength], **AT_ONCE)
        image.change(self._paintable, image, painter, **AT_ONCE)

        def show(sample: SceneSample) -> list[Any]:
            changes = list(sample.changes)
            return [image_file(sample.image), truth(sample.caption, []), changes[0], _samples(changes)]

        self._offer_scenes(scene_button, show, [image, facts, prompt, offered], first=3)
        return image

    def _how_tab(self) -> None:
        with gr.Row(elem_classes="ask"):
            prompt = _line(self.examples.prompts[1], "What to draw and describe", scale=4)
            seed = gr.Number(0, label="Seed", precision=0, minimum=0, scale=1, min_width=90)
        with gr.Row(elem_classes="ask"):
            button = gr.Button("Show the steps", variant="primary", scale=0, min_width=180)
            slow = gr.Checkbox(False, label="Slow motion", container=False)
        result = gr.HTML(placeholder("The steps of a picture, and the passes of its caption, appear here."))
        _on([button.click, prompt.submit], self.runs.explain, [prompt, seed, slow], [result])

    # --- what tabs share ---

    def _drawing_settings(self) -> list[Any]:
        """Seed, steps, guidance."""
        with gr.Row(elem_classes="settings"):
            seed = gr.Number(0, label="Seed", precision=0, minimum=0, min_width=90)
            most = max(MAX_STEPS, self.settings.num_steps)
            steps = gr.Number(
                self.settings.num_steps, label="Steps", precision=0, minimum=1, maximum=most, min_width=90
            )
            guidance = gr.Number(
                self.settings.guidance_scale, label="Guidance", step=0.5, minimum=0, maximum=20, min_width=90
            )
        return [seed, steps, guidance]

    def _picture_input(self, *looks: str) -> tuple[gr.Image, gr.Button, gr.HTML]:
        image = gr.Image(
            label="EncodedImage",
            show_label=False,  # it would lie on the picture
            sources=["upload", "clipboard"],
            type="filepath",  # read by `images.read_image`, which checks it before decoding
            image_mode=None,
            format="png",
            buttons=[],
            elem_classes=["source", self.look, *looks],
            alt_text="the picture that the model looks at",
        )
        button = gr.Button("Another scene of the small world", size="sm", visible=self.examples.has_world)
        image.upload(self._as_seen, image, image, **AT_ONCE)
        return image, button, gr.HTML(visible=self.examples.has_world)

    def _offer_scenes(self, button: gr.Button, show: Any, outputs: list[Any], *, first: int) -> None:
        """The button goes through the small world's scenes; the first one is there from the start."""
        if not self.examples.has_world:
            return
        number = gr.State(first)

        def following(number: int) -> list[Any]:
            return [number + 1, *show(scene_sample(number))]

        button.click(following, number, [number, *outputs], **AT_ONCE)
        self.blocks.load(following, number, [number, *outputs], **AT_ONCE)

    def _as_seen(self, image: str | None) -> Any:
        """An uploaded picture as the model sees it, cropped and small; one that cannot be read stays."""
        try:
            return image_file(self.runs.fitted(image))
        except ValueError:  # told when a button is pressed
            return gr.skip()

    def _paintable(self, image: str | None) -> str:
        from ddit.serve.page_view import data_uri

        try:
            return data_uri(self.runs.fitted(image))
        except ValueError:  # told when the button is pressed
            return ""

    async def _change(
        self, mode: str, strength: float, image: Any, mask: str, prompt: str, *settings: Any
    ) -> Any:
        if mode == REDRAW:
            frames = self.runs.inpaint(image, mask, prompt, *settings)
        else:
            frames = self.runs.vary(image, prompt, strength, *settings)
        async for shown in frames:
            yield shown

    def _hand_over(self) -> None:
        """The buttons under a drawn picture that take it to another tab."""
        for button, image, tab in (
            (self.to_read, self.read_image, "read"),
            (self.to_change, self.change_image, "change"),
        ):
            handed = button.click(image_file, self.drawn, image, **AT_ONCE)
            handed.then(
                lambda tab=tab: gr.Tabs(selected=tab), None, self.tabs, **AT_ONCE
            )  # not before it is there


PAINTER_HTML = """<div class="painter">
<p id="painter-help">Paint over what is to be drawn anew. By keyboard: arrows move, space paints, delete clears.</p>
<div class="surface"><img alt=""><canvas tabindex="0" role="application" aria-label="What to draw anew"
aria-describedby="painter-help"></canvas><span class="cursor"></span></div>
<button type="button" class="clear">Clear the paint</button>
</div>"""


def image_file(image: Image.Image) -> str:
    """The path of a picture among Gradio's files, by its content.

    Gradio itself would write that file anew whenever a picture is shown, and whoever reads it meanwhile gets a part.
    """
    data = encode_image_file(image, "png")
    folder = Path(get_upload_folder()) / sha256(data).hexdigest()
    folder.mkdir(parents=True, exist_ok=True)
    with NamedTemporaryFile(dir=folder, delete=False) as part:
        part.write(data)
    path = folder / "picture.png"
    os.replace(part.name, path)
    return str(path)


def _heading(name: str, size: int, has_world: bool) -> str:
    knows = "It knows a small world of emoji: 24 things in ten colours." if has_world else ""
    return (
        "<header><h1>One model, both ways</h1>"
        f"<p>It draws pictures from text and reads text from pictures, both by diffusion. {knows} "
        f"<span class='model'>{escape(name)} · {size} pixels</span></p></header>"
    )


def _suggestions(label: str, texts: tuple[str, ...], target: gr.Textbox) -> gr.Dataset:
    """Texts that a click puts into a box."""
    offered = gr.Dataset(
        components=[gr.Textbox(visible=False)], samples=[[text] for text in texts], label=label, type="values"
    )
    offered.click(lambda sample: sample[0], offered, target, **AT_ONCE)
    return offered


def _samples(texts: list[str]) -> gr.Dataset:
    return gr.Dataset(samples=[[text] for text in texts])


def _line(text: str, label: str, **options: Any) -> gr.Textbox:
    """A box for one line, which the enter key sends."""
    return gr.Textbox(text, label=label, lines=1, max_lines=1, max_length=MAX_CHARACTERS, **options)


def _tools_of(mode: str) -> list[Any]:
    """The painter or the slider. "hidden" keeps what is painted."""
    return [gr.HTML(visible=True if mode == REDRAW else "hidden"), gr.Slider(visible=mode == VARY)]


def _visible_if_any(drawn: object) -> Any:
    return gr.Row(visible=drawn is not None)


def _of_verb(read: Any, verb: str) -> Any:
    """The action of one verb, as an asynchronous generator, which is how Gradio knows that it streams."""

    async def action(*inputs: Any) -> Any:
        async for html in read(verb, *inputs):
            yield html

    return action


def _on(events: list[Any], action: Any, inputs: list[Any], outputs: list[Any], js: str | None = None) -> None:
    """The same action for a button and for the enter key; of what is pressed while it runs, the last is done after."""
    gr.on(events, action, inputs, outputs, js=js, trigger_mode="always_last", **STREAMED)
