"""The page: generate, caption, fill in and edit in a browser, and see the sampling steps.

Everything that the browser loads comes from this server. Gradio is imported here, so import this module late.
"""

import json
import posixpath
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi import FastAPI

from ddit.serve.engine import Engine
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
    project_links,
    samples,
    sampling_boxes,
    seed_box,
    stop_button,
    suggestions,
    without_suffix,
)
from ddit.serve.page_runs import Runs
from ddit.serve.page_view import STOPPED, data_uri, image_class, placeholder, truth

CSS = Path(__file__).with_name("page.css")
PAGE_JS = Path(__file__).with_name("page.js")
PAINTER_JS = Path(__file__).with_name("page_painter.js")
MAX_UPLOAD = "20mb"
SECONDS_KEPT = 3600
"""How long an uploaded image stays on the server's disk."""

PAINTED = "document.querySelector('#painter canvas')?.toDataURL('image/png') ?? ''"
STOP = f"""shown => {{
  document.activeElement.closest('.stop')?.previousElementSibling.focus(); // a disabled button has no focus
  return [{json.dumps(STOPPED)} + shown, {{__type__: 'update', interactive: false}}];
}}"""
NO_RESULT = "The result appears here."
INPAINT, VARY = "Replace a part", "Vary the whole image"
STREAMED = {**EVENT, "concurrency_limit": None}  # the engine's queue is the bound


def build_page(engine: Engine, *, name: str = "mini", api_docs: str | None = None) -> gr.Blocks:
    """The page of a model. The engine must run on the event loop that serves the page.

    Args:
        name: of the model, for the heading.
        api_docs: the address of the API's document, for a link.
    """
    links = [*project_links(), *([("API of this server", api_docs)] if api_docs else [])]
    return _Page(engine, name, links).blocks


def mount_page(app: FastAPI, engine: Engine, *, path: str = "/", name: str = "mini") -> FastAPI:
    """Puts the page at a path of an application whose lifespan starts the engine, in place of a route of that path."""
    paths = [getattr(route, "path", None) for route in app.router.routes]
    app.router.routes[:] = [route for route, own in zip(app.router.routes, paths, strict=True) if own != path]
    api_docs = posixpath.relpath("/docs", path) if "/docs" in paths else None
    return gr.mount_gradio_app(
        app,
        build_page(engine, name=name, api_docs=api_docs),
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

    def __init__(self, engine: Engine, name: str, links: Sequence[tuple[str, str]]) -> None:
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
            said = heading(name, self.settings.image_size, self.examples.has_world, links)
            gr.HTML(said, elem_id="heading")
            with gr.Tabs() as self.tabs:
                with gr.Tab("Generate", id="generate", elem_id="generate"):
                    self._generate_tab()
                with gr.Tab("Ask", id="ask", elem_id="ask"):
                    self.ask_tab = self._ask_tab()
                with gr.Tab("Fill in", id="fill", elem_id="fill"):
                    self._fill_tab()
                with gr.Tab("Edit", id="edit", elem_id="edit"):
                    self.edit_tab = self._edit_tab()
                with gr.Tab("How it works", id="how", elem_id="how"):
                    self._how_tab()
            self._hand_over()
            self.blocks.load(None, js=PAGE_JS.read_text())

    # --- tabs ---

    def _generate_tab(self) -> None:
        with gr.Row(elem_classes="sides"):
            with gr.Column(elem_classes="main"):
                prompt = line(self.examples.prompts[0], "Prompt")
                with gr.Row(elem_classes="run"):
                    button, stop = gr.Button("Generate", variant="primary"), stop_button()
            with gr.Column(elem_classes="result"):
                result = gr.HTML(placeholder("The image appears here, step by step."))
                self.generated = gr.State(None)
                with gr.Row(visible=False, elem_classes="pair") as next_steps:
                    self.to_ask = gr.Button("Ask about it", size="md", min_width=100)
                    self.to_edit = gr.Button("Edit it", size="md", min_width=100)
            with gr.Column(elem_classes="more"):
                suggestions("Examples", self.examples.prompts, prompt)
                settings = self._sampling_boxes()
        inputs, outputs = [prompt, *settings], [result, self.generated]
        run = _on([button.click, prompt.submit], self.runs.generate, inputs, outputs, stop)
        _stops(stop, [run], result)
        self.generated.change(_visible_if_any, self.generated, next_steps, **AT_ONCE)

    def _ask_tab(self) -> SceneTab:
        with gr.Row(elem_classes="sides"):
            with gr.Column(elem_classes="main"):
                image, scene_button, facts = self._image_input()
            with gr.Column(elem_classes="result"):
                question = line(self.examples.questions[0], "Question")
                with gr.Row(elem_classes="run"):
                    ask_button = gr.Button("Ask", variant="primary", min_width=100)
                    caption_button = gr.Button("Caption", min_width=100)
                    describe_button = gr.Button("Describe", min_width=100, visible=self.runs.can_describe)
                    stop = stop_button()
                result = gr.HTML(placeholder("The text appears here, word by word, in any order."))
            with gr.Column(elem_classes="more"):
                offered = suggestions("Example questions", self.examples.questions, question)
                slow = gr.Checkbox(False, label="Slow motion", container=False)
        inputs = [image, question, slow]
        caption = _on([caption_button.click], partial(self.runs.write, "caption"), inputs, [result], stop)
        describe = _on(
            [describe_button.click],
            partial(self.runs.write, "caption", style="detailed"),
            inputs,
            [result],
            stop,
        )
        ask = _on(
            [ask_button.click, question.submit], partial(self.runs.write, "answer"), inputs, [result], stop
        )
        _stops(stop, [caption, describe, ask], result)

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
                with gr.Row(elem_classes="run"):
                    button, stop = gr.Button("Fill in", variant="primary"), stop_button()
                result = gr.HTML(placeholder("The whole text appears here."))
            with gr.Column(elem_classes="more"):
                offered = suggestions("Example texts", self.examples.blanks, text)
                slow = gr.Checkbox(False, label="Slow motion", container=False)
        inputs = [image, text, slow]
        run = _on([button.click, text.submit], partial(self.runs.write, "infill"), inputs, [result], stop)
        _stops(stop, [run], result)

        tab = SceneTab(image, facts, text, offered, result, self.examples.blanks)
        self._offer_scenes(scene_button, tab, lambda sample: [sample.blank, *self.examples.blanks], first=6)

    def _edit_tab(self) -> SceneTab:
        with gr.Row(elem_classes=["sides", "edit"]):
            with gr.Column(elem_classes="main"):
                image, scene_button, facts = self._image_input("bar")
                mode = gr.Radio([INPAINT, VARY], value=INPAINT, label="Edit")
            with gr.Column(elem_classes="ask"):
                prompt = line(self.examples.changes[0], "Prompt", info="What the whole image should show.")
                strength = gr.Slider(
                    0.05, 1, 0.6, step=0.05, label="Strength", visible=False,
                    info="How much noise is added: 1 keeps nothing of the image.",
                )  # fmt: skip
            with gr.Column(elem_classes="canvas"):
                painter = gr.HTML(
                    "",
                    elem_id="painter",
                    elem_classes=self.image_class,
                    html_template=PAINTER_HTML,
                    js_on_load=PAINTER_JS.read_text(),
                )
            with gr.Column(elem_classes="go"), gr.Row(elem_classes="run"):
                button, stop = gr.Button("Generate", variant="primary"), stop_button()
            with gr.Column(elem_classes="result"):
                result = gr.HTML(placeholder("The new image appears here."))
            with gr.Column(elem_classes="more"):
                offered = suggestions("Examples", self.examples.changes, prompt)
                settings = self._sampling_boxes()
        mask, changed = gr.Textbox(visible="hidden", label="mask"), gr.State(None)
        inputs = [mode, strength, image, mask, prompt, *settings]
        fetch = f"(...given) => {{ given[3] = {PAINTED}; return given; }}"
        run = _on([button.click, prompt.submit], self._edit, inputs, [result, changed], stop, js=fetch)
        _stops(stop, [run], result)
        mode.change(self._tools_of, mode, [painter, strength], **AT_ONCE)
        image.change(self._paintable, image, painter, **AT_ONCE)

        tab = SceneTab(image, facts, prompt, offered, result, self.examples.changes)
        return self._offer_scenes(scene_button, tab, lambda sample: sample.changes, first=3)

    def _how_tab(self) -> None:
        with gr.Row(elem_classes="above"):
            with gr.Column(scale=3):
                prompt = line(self.examples.prompts[1], "Prompt")
            with gr.Column(scale=2):
                seed = seed_box()
        with gr.Row(elem_classes="run"):
            button, stop = gr.Button("Show the steps", variant="primary"), stop_button()
        slow = gr.Checkbox(False, label="Slow motion", container=False)
        result = gr.HTML(placeholder("The sampling steps of an image and of its caption appear here."))
        run = _on([button.click, prompt.submit], self.runs.explain, [prompt, seed, slow], [result], stop)
        _stops(stop, [run], result)

    # --- what tabs share ---

    def _sampling_boxes(self) -> list[gr.Number]:
        return sampling_boxes(self.settings.image_sampling, self.runs.max_steps, self.runs.max_guidance)

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
        button = gr.Button("Another example image", size="md", visible=self.examples.has_world)
        return image, button, gr.HTML()

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
            about = self.runs.frame_note(image)
            return [about, text, samples(tab.texts), self.runs.image_fault(image) or placeholder(NO_RESULT)]

        def take(number: int, text: str, image: str | None) -> list[Any]:
            return [*forget(number, text, image), self._fit(image)]

        inputs, outputs = [number, tab.text, tab.image], [*told, tab.result]
        tab.forget.update(fn=forget, inputs=inputs, outputs=outputs)
        tab.image.clear(**tab.forget, **AT_ONCE)
        tab.image.upload(take, inputs, [*outputs, tab.image], **AT_ONCE)
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

    def _edit(self, mode: str, strength: float, image: Any, mask: str, prompt: str, *settings: Any) -> Any:
        if mode == INPAINT:
            return self.runs.inpaint(image, mask, prompt, *settings)
        return self.runs.vary(image, prompt, strength, *settings)

    def _tools_of(self, mode: str) -> list[Any]:
        """The brush or the slider; the paint is kept."""
        classes = [self.image_class, *([] if mode == INPAINT else ["plain"])]
        return [gr.HTML(elem_classes=classes), gr.Slider(visible=mode == VARY)]

    def _hand_over(self) -> None:
        """The buttons under a generated image that take it to another tab."""
        for button, tab, name in ((self.to_ask, self.ask_tab, "ask"), (self.to_edit, self.edit_tab, "edit")):
            handed = button.click(image_file, self.generated, tab.image, **AT_ONCE)
            forgotten = handed.then(**tab.forget, **AT_ONCE)
            # the tab is opened once the image is there
            forgotten.then(lambda name=name: gr.Tabs(selected=name), None, self.tabs, **AT_ONCE)


def _visible_if_any(image: object) -> Any:
    return gr.Row(visible=image is not None)


def _on(
    events: list[Any],
    action: Callable[..., Any],
    inputs: list[Any],
    outputs: list[Any],
    stop: gr.Button,
    js: str | None = None,
) -> Any:
    """One action for a button and for the enter key; `stop` can be pressed while it runs.

    Of the clicks while it runs, the last one is done afterwards.
    """
    same = [gr.skip()] * len(outputs)

    async def streamed(*given: Any) -> AsyncIterator[tuple[Any, ...]]:
        yield *same, gr.Button(interactive=True)
        async with aclosing(action(*given)) as frames:
            async for shown in frames:
                yield *(shown if isinstance(shown, tuple) else (shown,)), gr.skip()
        yield *same, gr.Button(interactive=False)

    return gr.on(events, streamed, inputs, [*outputs, stop], js=js, trigger_mode="always_last", **STREAMED)


def _stops(stop: gr.Button, runs: list[Any], result: gr.HTML) -> None:
    """Makes a button end runs. What they have shown stays, with a line that says so."""
    ended = stop.click(None, cancels=runs, **AT_ONCE)
    ended.then(None, result, [result, stop], js=STOP, **AT_ONCE)
