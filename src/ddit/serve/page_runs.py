"""What the page's buttons do: jobs for the engine, and their steps as HTML while they come."""

import asyncio
import base64
import binascii
import logging
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from ddit.images import fit_image, read_image
from ddit.inference.batching import Step
from ddit.serve import page_view as view
from ddit.serve.engine import Engine
from ddit.serve.jobs import Job, Overloaded, Preview, Result, Stopping, TimedOut, make_options

if TYPE_CHECKING:
    from ddit.serve.page_view import Words

log = logging.getLogger(__name__)

Shown = tuple[str, Image.Image | None]
"""HTML, and the picture once it is finished."""

NO_PICTURE = "there is no picture yet: upload or paste one"


class Runs:
    """The page's actions on one engine. Each is an asynchronous iterator over what to show, and never raises.

    pace, slow_pace: seconds that a step stays at least, so that an eye can follow a model that is quicker.
    """

    def __init__(self, engine: Engine, *, pace: float = 0.15, slow_pace: float = 0.8) -> None:
        self.engine, self.pace, self.slow_pace = engine, pace, slow_pace

    @property
    def image_size(self) -> int:
        return self.engine.pipeline.settings.image_size

    # --- actions ---

    async def draw(
        self, prompt: str, seed: float | None, num_steps: float | None, guidance_scale: float | None
    ) -> AsyncIterator[Shown]:
        """Draws a prompt, then has the model caption the picture."""
        job = self._drawing_job("generate", {"prompt": prompt}, seed, num_steps, guidance_scale)
        async for shown in guarded(self._draw_and_caption(job, _file_name(prompt, job.seed))):
            yield shown

    async def inpaint(
        self,
        image: str | Image.Image | None,
        mask: str,
        prompt: str,
        seed: float | None,
        num_steps: float | None,
        guidance_scale: float | None,
    ) -> AsyncIterator[Shown]:
        """Draws the painted part of a picture anew. mask: a `data:` address of what was painted, on transparency."""

        async def frames() -> AsyncIterator[Shown]:
            sample = {"image": self.fitted(image), "mask": painted(mask, self.image_size), "prompt": prompt}
            job = self._drawing_job("inpaint", sample, seed, num_steps, guidance_scale)
            async for shown in self._draw_and_caption(job, _file_name(prompt, job.seed)):
                yield shown

        async for shown in guarded(frames()):
            yield shown

    async def vary(
        self,
        image: str | Image.Image | None,
        prompt: str,
        strength: float,
        seed: float | None,
        num_steps: float | None,
        guidance_scale: float | None,
    ) -> AsyncIterator[Shown]:
        """Draws a picture anew from a noisy version of itself."""

        async def frames() -> AsyncIterator[Shown]:
            sample = {"image": self.fitted(image), "prompt": prompt}
            job = self._drawing_job("vary", sample, seed, num_steps, guidance_scale, strength=strength)
            async for shown in self._draw_and_caption(job, _file_name(prompt, job.seed)):
                yield shown

        async for shown in guarded(frames()):
            yield shown

    async def read(
        self, verb: str, image: str | Image.Image | None, text: str, slow: bool
    ) -> AsyncIterator[str]:
        """Captions a picture, answers the question `text` about it, or fills the blanks of `text`; by the verb."""
        names = {"answer": "question", "infill": "text"}

        async def frames() -> AsyncIterator[Shown]:
            sample: dict[str, Any] = {"image": self.fitted(image)}
            if verb in names:
                sample[names[verb]] = text
            job = Job(verb, sample)  # type: ignore[arg-type]
            async for html in self._write(job, self.slow_pace if slow else self.pace):
                yield html, None

        async for html, _ in guarded(frames()):
            yield html

    async def explain(self, prompt: str, seed: float | None, slow: bool) -> AsyncIterator[str]:
        """Draws and captions, with every step of both kept in sight."""
        async for html, _ in guarded(self._explain(prompt, seed, self.slow_pace if slow else self.pace)):
            yield html

    # --- frames of a job ---

    async def _draw_and_caption(self, job: Job, name: str) -> AsyncIterator[Shown]:
        alt = f"Drawn from: {job.sample['prompt']}"
        drawn, notes = None, ""
        async for event in self._paced(job, self.pace, Preview | Result):
            if isinstance(event, Preview):
                yield view.picture(event.image, alt, done=event.done, total=event.total), None
            else:
                drawn, notes = event.value, "".join(map(_hint, event.notices))
        assert drawn is not None
        html = notes + view.picture(drawn, alt, name=name)
        yield html, drawn
        heading = "<h2>The model reads its picture back</h2>"
        async for words in self._write(Job("caption", {"image": drawn}, seed=job.seed), self.pace):
            yield html + heading + words, drawn

    async def _write(self, job: Job, pace: float) -> AsyncIterator[str]:
        async for frames, result in self._passes(job, pace):
            if result is None:
                yield view.words_line(self._own_words(job, frames[-1])) + view.legend()
                continue
            words = view.words_line(self._own_words(job, frames[-1]), finished=True) + view.legend()
            text = result.value or "(no words)"
            yield "".join(map(_hint, result.notices)) + view.answer(text) + words

    async def _passes(self, job: Job, pace: float) -> AsyncIterator[tuple[list["Words"], Result | None]]:
        """The text after every pass until now; at the end also the result."""
        settling = view.Settling(self.engine.pipeline.text_codec)
        async for event in self._paced(job, pace, Step | Result):
            if isinstance(event, Result):
                yield settling.frames, event
                return
            ids, answer_mask, confidence = (part[0].tolist() for part in event.state)
            is_first = not settling.frames
            settling.add(ids, answer_mask, confidence)
            if is_first:
                yield settling.frames[:1], None
                await asyncio.sleep(pace)
            yield settling.frames, None

    async def _explain(self, prompt: str, seed: float | None, pace: float) -> AsyncIterator[Shown]:
        settings, latents = self.engine.pipeline.settings, []
        num_steps, times = settings.num_steps, settings.times.tolist()
        job = self._drawing_job("generate", {"prompt": prompt}, seed, num_steps, None)
        steps: list[view.DrawingStep] = []
        result: Result | None = None
        async for event in self._paced(
            job, pace, Preview | Result, lambda step: latents.append(step.state.latents)
        ):
            result = event if isinstance(event, Result) else None
            expected = (
                event.value if isinstance(event, Result) else event.image
            )  # the last step goes all the way
            steps.append(view.DrawingStep(expected, *times[len(steps) : len(steps) + 2]))
            yield view.drawing_steps(steps, num_steps), None
        assert result is not None
        reached = await self.engine.in_worker(self.engine.pipeline.decode, torch.cat(latents))
        steps = [replace(step, reached=image) for step, image in zip(steps, reached, strict=True)]
        html = "".join(map(_hint, result.notices)) + view.drawing_steps(steps, num_steps)
        yield html, None
        caption = Job("caption", {"image": result.value}, seed=job.seed)
        async for frames, _ in self._passes(caption, pace):
            own = [self._own_words(caption, words) for words in frames]
            yield html + view.writing_passes(own), None

    async def _paced(
        self, job: Job, pace: float, kinds: Any, on_step: Callable[[Step], object] | None = None
    ) -> AsyncIterator[Any]:
        """The job's events of some kinds, each at least `pace` seconds after the last. on_step gets every step."""
        last = -pace
        async with aclosing(self.engine.stream(job)) as events:
            async for event in events:
                if on_step is not None and isinstance(event, Step):
                    on_step(event)
                if not isinstance(event, kinds):
                    continue
                await asyncio.sleep(max(last + pace - time.monotonic(), 0))
                last = time.monotonic()
                yield event

    # --- inputs ---

    def fitted(self, image: str | Image.Image | None) -> Image.Image:
        """A picture, or that of a file, at the size that the model reads. Raises ValueError if there is none."""
        if image is None:
            raise ValueError(NO_PICTURE)
        try:
            return fit_image(read_image(image), self.image_size, self.image_size)
        except ValueError as error:  # the file's name is the server's, of no use to who sent it
            raise ValueError(str(error).replace(f"'{image}'", "the file")) from None

    def _drawing_job(
        self,
        verb: Any,
        sample: dict[str, Any],
        seed: float | None,
        num_steps: float | None,
        guidance_scale: float | None,
        **options: float,
    ) -> Job:
        """A drawing job that shows every step; None is the model's own setting, and seed 0."""
        num_steps = int(num_steps or self.engine.pipeline.settings.num_steps)
        given = make_options(num_steps=num_steps, guidance_scale=guidance_scale, **options)
        return Job(verb, sample, seed=int(seed or 0), options=given, num_previews=num_steps - 1)

    def _own_words(self, job: Job, words: "Words") -> "Words":
        """What the page shows of a text: what was written, or, of one with blanks, all but the model's own prefix."""
        if job.verb != "infill":
            return tuple(word for word in words if word.kind != "given")
        pipeline = self.engine.pipeline
        prefix = pipeline.text_codec.tokenizer.convert_ids_to_tokens(
            pipeline.text_codec.token_ids(pipeline.style.caption_prefix)
        )
        opening = [word.text for word in words[: len(prefix)]]
        return words[len(prefix) :] if opening == [view.piece_text(piece) for piece in prefix] else words


async def guarded(frames: AsyncIterator[Shown]) -> AsyncIterator[Shown]:
    """The frames, and, where they fail, the last of them with a line that says why."""
    shown: Shown = ("", None)
    try:
        async for shown in frames:
            yield shown
        return
    except ValueError as error:
        reason = str(error)
    except Overloaded as error:
        reason = f"the model is busy: try again in {error.retry_after} s"
    except (TimedOut, Stopping) as error:
        reason = str(error)
    except Exception:  # the page's edge: whoever runs the server finds the traceback in its log
        log.exception("an action of the page failed")
        reason = "something went wrong on the server; its log says what"
    yield view.note(_sentence(reason), fault=True) + shown[0], shown[1]


def painted(address: str, size: int) -> Image.Image:
    """The mask of what was painted: white where there is paint, size x size.

    address: a PNG on transparency as a `data:` address, paint without green. Raises ValueError for something else, and
    if there is no paint.
    """
    head, _, data = (address or "").partition(",")
    try:
        if head != "data:image/png;base64":
            raise binascii.Error
        layer = read_image(base64.b64decode(data, validate=True))
    except (binascii.Error, ValueError):
        raise ValueError("nothing is painted yet: paint over what is to be drawn anew") from None
    mask = layer.resize((size, size)).getchannel("G").point(_below_half)
    if mask.getbbox() is None:
        raise ValueError("nothing is painted yet: paint over what is to be drawn anew")
    return mask


def _below_half(green: int) -> int:
    return 255 if green < 128 else 0


def _hint(notice: str) -> str:
    return view.note(_sentence(notice))


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}" + ("" if text.endswith((".", "!", "?")) else ".")


def _file_name(prompt: str, seed: int) -> str:
    return f"{re.sub(r'[^a-z0-9]+', '-', prompt.lower()).strip('-')[:60] or 'picture'}-{seed}.png"
