"""The page: generate, caption, fill in and edit in a browser, and see the sampling steps.

Everything that the browser loads comes from this server. Gradio is imported here, so import this module late.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi import FastAPI

from ddit.serve.engine import Engine
from ddit.serve.jobs import Verb
from ddit.serve.page_examples import Examples, SceneSample, examples_for, scene_sample
from ddit.serve.page_parts import (
    AT_ONCE,
    EVENT,
    PAINTER_HTML,
    checked_later,
    heading,
    image_file,
    line,
    make_theme,
    samples,
    suggestions,
    without_suffix,
)
from ddit.serve.page_runs import Runs
from ddit.serve.page_view import data_uri, image_class, placeholder, truth

CSS = Path(__file__).with_name("page.css")
PAINTER_JS = Path(__file__).with_name("page_painter.js")
MAX_UPLOAD = "20mb"
SECONDS_KEPT = 3600
"""How long an uploaded image stays on the server's disk."""

PAINTED = "document.querySelector('#painter canvas')?.toDataURL('image/png') ?? ''"
MEASURE_TABS = (
    "() => [0, 300, 1000, 3000, 9000].forEach(wait => "
    "setTimeout(() => dispatchEvent(new Event('resize')), wait))"
)
"""Gradio may measure the tabs before they have their style, and then hides the last in a menu on a narrow screen."""
NO_RESULT = "The result appears here."
INPAINT, VARY = "Replace a part", "Vary the whole image"
STREAMED = {**EVENT, "concurrency_limit": None}  # the engine's queue is the bound


def build_page(engine: Engine, *, name: str = "mini") -> gr.Blocks:
    """The page of a model; `name` is in its heading. The engine must run on the event loop that serves the page."""
    return _Page(engine, name).blocks


def mount_page(app: FastAPI, engine: Engine, *, path: str = "/", name: str = "mini") -> FastAPI:
    """Puts the page at a path of an application whose lifespan starts the engine."""
    return gr.mount_gradio_app(
        app,
        build_page(engine, name=name),
        path=path,
        theme=make_theme(),
        css_paths=[CSS],
        footer_links=[],
        max_file_size=MAX_UPLOAD,
        run_history=False,
        ssr_mode=False,
        show_error=False,
    )


@dataclass(frozen=True)
class SceneTab:
    """A tab about an image: its components, and its example texts for an image that is no scene.

    shows_answers: whether the facts of a scene have answers to its questions. forget: a listener's keywords that take
    away what is said about the last scene.
    """

    image: gr.Image
    facts: gr.HTML
    text: gr.Textbox
    offered: gr.Dataset
    result: gr.HTML
    texts: Sequence[str]
    shows_answers: bool = False
    forget: dict[str, Any] = field(default_factory=dict)


class _Page:
    """The page under construction: its tabs share the model's runs, the examples and the last image."""

    def __init__(self, engine: Engine, name: str) -> None:
        self.runs = Runs(engine)
        self.settings = engine.pipeline.settings
        self.image_class = image_class((self.settings.image_size, self.settings.image_size))
        self.examples: Examples = examples_for(engine.pipeline.text_codec)
        with gr.Blocks(
            title="ddit",
            analytics_enabled=False,
            fill_width=False,
            delete_cache=(SECONDS_KEPT, SECONDS_KEPT),
        ) as self.blocks:
            gr.HTML(heading(name, self.settings.image_size, self.examples.has_world), elem_id="heading")
            with gr.Tabs() as self.tabs:
                with gr.Tab("Generate", id="generate"):
                    self._generate_tab()
                with gr.Tab("Ask", id="ask"):
                    self.ask_tab = self._ask_tab()
                with gr.Tab("Fill in", id="fill"):
                    self._fill_tab()
                with gr.Tab("Edit", id="edit"):
                    self.edit_tab = self._edit_tab()
                with gr.Tab("How it works", id="how"):
                    self._how_tab()
            self._hand_over()
            self.blocks.load(None, js=MEASURE_TABS)

    # --- tabs ---

    def _generate_tab(self) -> None:
        with gr.Row(elem_classes="sides"):
            with gr.Column(elem_classes="main"):
                prompt = line(self.examples.prompts[0], "Prompt")
                button = gr.Button("Generate", variant="primary")
            with gr.Column(elem_classes="result"):
                result = gr.HTML(placeholder("The image appears here, step by step."))
                self.generated = gr.State(None)
                with gr.Row(visible=False, elem_classes="pair") as next_steps:
                    self.to_ask = gr.Button("Ask about it", size="sm", min_width=100)
                    self.to_edit = gr.Button("Edit it", size="sm", min_width=100)
            with gr.Column(elem_classes="more"):
                suggestions("Examples", self.examples.prompts, prompt)
                settings = self._sampling_settings()
        inputs, outputs = [prompt, *settings], [result, self.generated]
        _on([button.click, prompt.submit], self.runs.generate, inputs, outputs)
        self.generated.change(_visible_if_any, self.generated, next_steps, **AT_ONCE)

    def _ask_tab(self) -> SceneTab:
        with gr.Row(elem_classes="sides"):
            with gr.Column(elem_classes="main"):
                image, scene_button, facts = self._image_input()
            with gr.Column(elem_classes="result"):
                caption_button = gr.Button("Caption", variant="primary")
                question = line(self.examples.questions[0], "Question")
                ask_button = gr.Button("Ask", variant="primary")
                result = gr.HTML(placeholder("The text appears here, word by word, in any order."))
            with gr.Column(elem_classes="more"):
                offered = suggestions("Example questions", self.examples.questions, question)
                slow = gr.Checkbox(False, label="Slow motion", container=False)
        _on([caption_button.click], self._action("caption"), [image, question, slow], [result])
        _on([ask_button.click, question.submit], self._action("answer"), [image, question, slow], [result])

        tab = SceneTab(image, facts, question, offered, result, self.examples.questions, shows_answers=True)
        return self._offer_scenes(
            scene_button, tab, lambda sample: [text for text, _ in sample.questions], first=3
        )

    def _fill_tab(self) -> None:
        with gr.Row(elem_classes="sides"):
            with gr.Column(elem_classes="main"):
                image, scene_button, facts = self._image_input()
            with gr.Column(elem_classes="result"):
                info = "Two or more underscores are a blank for one word."
                text = line(self.examples.blanks[0], "Text with blanks", info=info)
                button = gr.Button("Fill in", variant="primary")
                result = gr.HTML(placeholder("The whole text appears here."))
            with gr.Column(elem_classes="more"):
                offered = suggestions("Example texts", self.examples.blanks, text)
                slow = gr.Checkbox(False, label="Slow motion", container=False)
        _on([button.click, text.submit], self._action("infill"), [image, text, slow], [result])

        tab = SceneTab(image, facts, text, offered, result, self.examples.blanks)
        self._offer_scenes(scene_button, tab, lambda sample: [sample.blank, *self.examples.blanks], first=6)

    def _edit_tab(self) -> SceneTab:
        with gr.Row(elem_classes="sides"):
            with gr.Column(elem_classes="main"):
                image, scene_button, facts = self._image_input("small")
                mode = gr.Radio([INPAINT, VARY], value=INPAINT, label="Edit")
                painter = gr.HTML(
                    "",
                    elem_id="painter",
                    elem_classes=self.image_class,
                    html_template=PAINTER_HTML,
                    js_on_load=PAINTER_JS.read_text(),
                )
                strength = gr.Slider(
                    0.05, 1, 0.6, step=0.05, label="Strength", visible=False,
                    info="How much noise is added: 1 keeps nothing of the image.",
                )  # fmt: skip
            with gr.Column(elem_classes="result"):
                prompt = line(self.examples.changes[0], "Prompt", info="What the whole image should show.")
                button = gr.Button("Generate", variant="primary")
                result = gr.HTML(placeholder("The new image appears here."))
            with gr.Column(elem_classes="more"):
                offered = suggestions("Examples", self.examples.changes, prompt)
                settings = self._sampling_settings()
        mask, changed = gr.Textbox(visible="hidden", label="mask"), gr.State(None)
        inputs = [mode, strength, image, mask, prompt, *settings]
        fetch = f"(...given) => {{ given[3] = {PAINTED}; return given; }}"
        _on([button.click, prompt.submit], self._edit, inputs, [result, changed], js=fetch)
        mode.change(_tools_of, mode, [painter, strength], **AT_ONCE)
        image.change(self._paintable, image, painter, **AT_ONCE)

        tab = SceneTab(image, facts, prompt, offered, result, self.examples.changes)
        return self._offer_scenes(scene_button, tab, lambda sample: sample.changes, first=3)

    def _how_tab(self) -> None:
        with gr.Row(elem_classes="ask"):
            prompt = line(self.examples.prompts[1], "Prompt", scale=4)
            seed = gr.Number(0, label="Seed", precision=0, minimum=0, scale=1, min_width=90)
            checked_later(seed)
        with gr.Row(elem_classes="ask"):
            button = gr.Button("Show the steps", variant="primary", scale=0, min_width=180)
            slow = gr.Checkbox(False, label="Slow motion", container=False)
        result = gr.HTML(placeholder("The sampling steps of an image and of its caption appear here."))
        _on([button.click, prompt.submit], self.runs.explain, [prompt, seed, slow], [result])

    # --- what tabs share ---

    def _sampling_settings(self) -> list[Any]:
        """Seed, steps, guidance."""
        sampling = self.settings.image_sampling
        with gr.Row(elem_classes="settings"):
            seed = gr.Number(0, label="Seed", precision=0, minimum=0, min_width=90)
            steps = gr.Number(
                sampling.num_steps,
                label="Steps",
                precision=0,
                minimum=1,
                maximum=self.runs.max_steps,
                min_width=90,
            )
            guidance = gr.Number(
                sampling.guidance_scale, label="Guidance", step=0.5, minimum=0, maximum=self.runs.max_guidance,
                min_width=90,
            )  # fmt: skip
        for number in (seed, steps, guidance):
            checked_later(number)
        return [seed, steps, guidance]

    def _image_input(self, *classes: str) -> tuple[gr.Image, gr.Button, gr.HTML]:
        image = gr.Image(
            label="Image",
            show_label=False,  # it would cover the image
            sources=["upload", "clipboard"],
            type="filepath",  # read by `images.read_image`, which checks it before decoding
            image_mode=None,
            format="png",
            buttons=[],
            elem_classes=["source", self.image_class, *classes],
            alt_text="the image that the model sees",
        )
        checked_later(image)
        button = gr.Button("Another example image", size="sm", visible=self.examples.has_world)
        image.upload(self._fit, image, image, **AT_ONCE)
        return image, button, gr.HTML(visible=self.examples.has_world)

    def _offer_scenes(
        self,
        button: gr.Button,
        tab: SceneTab,
        texts_of: Callable[[SceneSample], Sequence[str]],
        *,
        first: int,
    ) -> SceneTab:
        """The button goes through scenes of the small world; the first one is shown from the start.

        What is said about a scene leaves with it: nothing is known about an image of the user's own.

        texts_of: the texts that are offered for a scene; the first of them is put into the box.
        """
        number = gr.State(first)
        told = [tab.facts, tab.text, tab.offered]

        def following(number: int) -> list[Any]:
            sample = scene_sample(number)
            texts = texts_of(sample)
            facts = truth(sample.caption, sample.questions if tab.shows_answers else ())
            return [number + 1, image_file(sample.image), facts, texts[0], samples(texts)]

        def forget(number: int, text: str, image: str | None) -> list[Any]:
            is_of_scene = self.examples.has_world and text in texts_of(scene_sample(number - 1))
            text = tab.texts[0] if is_of_scene else text
            return ["", text, samples(tab.texts), self.runs.image_fault(image) or placeholder(NO_RESULT)]

        tab.forget.update(fn=forget, inputs=[number, tab.text, tab.image], outputs=[*told, tab.result])
        gr.on([tab.image.upload, tab.image.clear], **tab.forget, **AT_ONCE)
        if self.examples.has_world:
            outputs = [number, tab.image, *told]
            button.click(following, number, outputs, **AT_ONCE).then(
                lambda: placeholder(NO_RESULT), None, tab.result, **AT_ONCE
            )
            self.blocks.load(following, number, outputs, **AT_ONCE)
        return tab

    def _fit(self, image: str | None) -> str | None:
        """An uploaded image as the model sees it, cropped and small."""
        try:
            return image_file(self.runs.fitted(image))
        except ValueError:  # reported beside it
            return image and without_suffix(image)

    def _paintable(self, image: str | None) -> str:
        try:
            return data_uri(self.runs.fitted(image))
        except ValueError:  # reported when the button is pressed
            return ""

    def _action(self, verb: Verb) -> Any:
        """The action of a verb that writes, as an asynchronous generator, by which Gradio knows that it streams."""

        async def action(*inputs: Any) -> Any:
            async for html in self.runs.write(verb, *inputs):
                yield html

        return action

    async def _edit(
        self, mode: str, strength: float, image: Any, mask: str, prompt: str, *settings: Any
    ) -> Any:
        if mode == INPAINT:
            frames = self.runs.inpaint(image, mask, prompt, *settings)
        else:
            frames = self.runs.vary(image, prompt, strength, *settings)
        async for shown in frames:
            yield shown

    def _hand_over(self) -> None:
        """The buttons under a generated image that take it to another tab."""
        for button, tab, name in ((self.to_ask, self.ask_tab, "ask"), (self.to_edit, self.edit_tab, "edit")):
            handed = button.click(image_file, self.generated, tab.image, **AT_ONCE)
            forgotten = handed.then(**tab.forget, **AT_ONCE)
            # the tab is opened once the image is there
            forgotten.then(lambda name=name: gr.Tabs(selected=name), None, self.tabs, **AT_ONCE)


def _tools_of(mode: str) -> list[Any]:
    """The painter or the slider. "hidden" keeps the paint."""
    return [gr.HTML(visible=True if mode == INPAINT else "hidden"), gr.Slider(visible=mode == VARY)]


def _visible_if_any(image: object) -> Any:
    return gr.Row(visible=image is not None)


def _on(events: list[Any], action: Any, inputs: list[Any], outputs: list[Any], js: str | None = None) -> None:
    """One action for a button and for the enter key; of the clicks while it runs, the last one is done afterwards."""
    gr.on(events, action, inputs, outputs, js=js, trigger_mode="always_last", **STREAMED)
