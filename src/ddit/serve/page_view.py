"""What the page shows, as HTML: images, words with confidences, the sampling steps of an image and of a text."""

import base64
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

from PIL import Image

from ddit.model.encoders import TextCodec
from ddit.serve.files import encode_image_file

LARGEST_SMALL = 256
"""Pixels a side up to which an image is enlarged with crisp pixels, and sent as a PNG at every step. At the steps of a
larger one a JPEG is sent, a tenth of the size."""


@dataclass(frozen=True)
class Word:
    """One position of a text.

    Attributes:
        text: empty where it is masked, and after the end of the text.
        kind: "given", "masked", "filled", or "end" for an end-of-text token.
        confidence: the probability when it was filled.
        step: that filled it, from 1; 0 if none did.
    """

    text: str
    kind: Literal["given", "masked", "filled", "end"]
    confidence: float = 1.0
    step: int = 0


Words = tuple[Word, ...]


class TextHistory:
    """Follows one text through its steps: what each filled, and how confident it was.

    frames: the positions before the first step, and after every step that filled some.
    """

    def __init__(self, codec: TextCodec) -> None:
        self._codec = codec
        self._step_of: list[int] = []
        self.frames: list[Words] = []

    def add(self, ids: Sequence[int], answer_mask: Sequence[bool], confidence: Sequence[float]) -> bool:
        """Adds the text after a step: ids, answer mask and confidences, (L,) each. Gives whether the step filled any.

        As in `text_sampler.TextState`.
        """
        if not self.frames:
            self._step_of = [0] * len(ids)
            masked = Word("", "masked")
            given = [self._word(token, "given", 1.0, 0) for token in ids]
            self.frames.append(
                tuple(masked if ours else word for word, ours in zip(given, answer_mask, strict=True))
            )
        step = len(self.frames)
        words = []
        for place, (token, ours, probability) in enumerate(zip(ids, answer_mask, confidence, strict=True)):
            if ours and token == self._codec.mask_token_id:
                words.append(Word("", "masked"))
                continue
            if ours and not self._step_of[place]:
                self._step_of[place] = step
            words.append(self._word(token, "filled" if ours else "given", probability, self._step_of[place]))
        if tuple(words) == self.frames[-1]:
            return False
        self.frames.append(tuple(words))
        return True

    def _word(self, token: int, kind: Literal["given", "filled"], confidence: float, step: int) -> Word:
        if token == self._codec.eos_token_id:  # a given one is padding
            return Word("", "given" if kind == "given" else "end", confidence, step)
        text = piece_text(str(self._codec.tokenizer.convert_ids_to_tokens(token)))
        return Word(text, kind, confidence, step)


def piece_text(piece: str) -> str:
    """A token of the tokenizer as it is shown."""
    return piece.replace("▁", " ").strip() or "␣"


def percent(confidence: float) -> str:
    """Whole percents, rounded down: only certainty is 100."""
    return f"{int(confidence * 100 + 1e-6)}"


def image_class(size: tuple[int, int]) -> str:
    """The style of an image of so many pixels."""
    return "crisp" if max(size) <= LARGEST_SMALL else "smooth"


def data_uri(image: Image.Image, *, final: bool = True) -> str:
    """The image as a `data:` address; a large one that is not final is compressed with loss."""
    kind = "png" if final or image_class(image.size) == "crisp" else "jpeg"
    data = encode_image_file(image, kind, quality=85)
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def note(text: str, *, fault: bool = False) -> str:
    """A line for the user: a fault, or a hint."""
    role, kind = ("alert", "fault") if fault else ("status", "hint")
    return f'<p class="note {kind}" role="{role}">{escape(text)}</p>'


STOPPED = note("Stopped.")


def figure(image: Image.Image, alt: str, *, done: int = 0, total: int = 0, name: str = "") -> str:
    """An image as large as its place allows.

    done, total: steps, shown as a bar until all are done; then the image can be saved as `name`.
    """
    is_final = done >= total
    address = data_uri(image, final=is_final)
    below = (
        f'<p class="aside"><a class="save" href="{address}" download="{escape(name)}">Save the image</a></p>'
        if is_final and name
        else f'<p class="aside"><progress value="{done}" max="{total}" aria-label="Steps"></progress> '
        f"step {done} of {total}</p>"
        if not is_final
        else ""
    )
    shown = f'<img class="{image_class(image.size)}" src="{address}" alt="{escape(alt)}">'
    return f'<figure class="generated">{shown}{below}</figure>'


def answer(text: str) -> str:
    """A finished text."""
    return f'<p class="answer" role="status">{escape(text)}</p>'


def placeholder(text: str) -> str:
    """Stands where a result will be."""
    return f'<div class="placeholder"><p>{escape(text)}</p></div>'


def words_line(words: Words, *, finished: bool = False) -> str:
    """The text and its legend: blocks where it is masked, words shaded by their confidence, also shown as a number.

    Of the end-of-text tokens of a finished text only the first is shown.
    """
    shown = shorten(words) if finished else words
    return f'<p class="words">{"".join(_chip(word) for word in shown)}</p>{legend(shown)}'


def legend(words: Words) -> str:
    """What the shades of the words mean, and "end" if it is among them."""
    has_end = any(word.kind == "end" for word in words)
    return (
        '<p class="legend"><span class="range">0 % <span class="scale" aria-hidden="true"></span> 100 %</span> '
        "The model's confidence in a word when it filled it in."
        f"{' <b>end</b> marks the end of the text.' if has_end else ''}</p>"
    )


def shorten(words: Words) -> Words:
    """The words up to and including the first end of the text."""
    ends = [place for place, word in enumerate(words) if word.kind == "end"]
    return words[: ends[0] + 1] if ends else words


@dataclass(frozen=True)
class ImageStep:
    """A step from time t = `begin` to `end`: the clean image that was predicted, and the noisy one after the step."""

    predicted: Image.Image
    begin: float
    end: float
    noisy: Image.Image | None = None


def image_steps(steps: Sequence[ImageStep], total: int) -> str:
    """An image's steps side by side, of `total`; those to come are empty."""
    head = "".join(f'<th scope="col">{number + 1}</th>' for number in range(total))
    waiting = '<td><span class="empty"></span></td>' * (total - len(steps))
    predicted = "".join(_small(step.predicted, "predicted at", step.begin) for step in steps)
    noisy = "".join(
        _small(step.noisy, "noisy image at", step.end)
        if step.noisy is not None
        else '<td><span class="empty"></span></td>'
        for step in steps
    )
    table = (
        f'<table class="strip"><thead><tr><th scope="row">step</th>{head}</tr></thead><tbody>'
        f'<tr><th scope="row">predicted</th>{predicted}{waiting}</tr>'
        f'<tr><th scope="row">result</th>{noisy}{waiting}</tr></tbody></table>'
    )
    return (
        "<h2>From noise to an image</h2>"
        "<p>Sampling starts from pure noise, at t = 1. Each step <b>predicts</b> the clean image and moves "
        "part of the way towards it. The <b>result</b> has less noise; at t = 0 none is left.</p>"
        f"{_scroller(table, 'The image, step by step')}"
    )


def text_steps(frames: Sequence[Words]) -> str:
    """A text's steps, a row each, a column a position: shaded by its confidence in the step that filled it.

    A later block in which there is only the end is left out.
    """
    last = max((place for place, word in enumerate(frames[-1]) if word.kind != "end"), default=0)
    frames = [words[: max(len(frames[0]), last + 2)] for words in frames]
    frames = [words for words, before in zip(frames, [None, *frames], strict=False) if words != before]
    head = "".join(f'<th scope="col">{place + 1}</th>' for place in range(len(frames[-1])))
    rows = []
    for step, words in enumerate(frames):
        name = f"step {step}" if step else "start"
        rows.append(f'<tr><th scope="row">{name}</th>{"".join(_cell(word, step) for word in words)}</tr>')
    table = (
        f'<table class="grid"><thead><tr><th scope="row">position</th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table>"
    )
    return (
        "<h2>From masks to a caption</h2>"
        "<p>Then the same model captions its image. At first all positions are masked. Each step reads the whole "
        "text and fills the positions in which the model is most confident, in any order.</p>"
        f"{_scroller(table, 'The text, step by step')}{legend(frames[-1])}"
    )


def truth(caption: str, pairs: Iterable[tuple[str, str]]) -> str:
    """The contents of a scene of the small world, folded away."""
    items = "".join(f"<dt>{escape(question)}</dt><dd>{escape(answer)}</dd>" for question, answer in pairs)
    return (
        "<details class='truth'><summary>What the scene shows</summary>"
        f"<p>{escape(caption)}</p><dl>{items}</dl></details>"
    )


def _scroller(table: str, name: str) -> str:
    """A wide table that scrolls by itself, also by keyboard, so that the page does not."""
    return f'<div class="scroller" role="region" aria-label="{escape(name)}" tabindex="0">{table}</div>'


def _chip(word: Word) -> str:
    if word.kind == "masked":
        return '<span class="word masked" title="masked"><span class="text">&nbsp;</span></span>'
    if word.kind == "given":
        return (
            f'<span class="word given"><span class="text">{escape(word.text)}</span></span> '
            if word.text
            else ""
        )
    text = escape(word.text) if word.kind == "filled" else "end"
    return (
        f'<span class="word {word.kind}" style="--p:{word.confidence:.3f}" title="{_title(word)}">'
        f'<span class="text">{text}</span><small>{percent(word.confidence)}</small></span> '
    )


def _small(image: Image.Image, what: str, time: float) -> str:
    address = data_uri(image, final=False)
    alt = f"{what} t = {time:.2f}"
    return f'<td><img class="{image_class(image.size)}" src="{address}" alt="{alt}"><small>t = {time:.2f}</small></td>'


def _cell(word: Word, step: int) -> str:
    if word.kind == "masked":
        return '<td class="masked"><span class="hidden">masked</span></td>'
    text = escape(word.text) if word.kind != "end" else "end"
    if word.kind == "given" or word.step < step:
        return f'<td class="old">{text}</td>'
    return (
        f'<td class="new {word.kind}" style="--p:{word.confidence:.3f}" title="{_title(word)}">{text}'
        f"<small>{percent(word.confidence)}</small></td>"
    )


def _title(word: Word) -> str:
    return f"confidence {percent(word.confidence)} %, filled in step {word.step}"
