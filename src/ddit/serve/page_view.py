"""What the page shows, as HTML: pictures, words with confidences, a drawing's steps, a text's passes."""

import base64
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Literal

from PIL import Image

from ddit.serve.files import encode_image_file

if TYPE_CHECKING:
    from ddit.model.encoders import TextCodec

LARGEST_SMALL = 256
"""Pixels a side up to which a picture is enlarged with crisp pixels, and is a PNG on the way. A larger one is a JPEG
on the way, a tenth of the size."""


@dataclass(frozen=True)
class Word:
    """One position of a text.

    Attributes:
        text: empty where nothing is written, or where the text has ended.
        kind: "given", "masked", "written", or "end" for an end-of-text token.
        confidence: the probability when it was written.
        number: of the pass that wrote it, from 1; 0 if none did.
    """

    text: str
    kind: Literal["given", "masked", "written", "end"]
    confidence: float = 1.0
    number: int = 0


Words = tuple[Word, ...]


class Settling:
    """Follows one text through the passes: what each wrote, and how sure it was.

    frames: the positions after every pass that wrote something, before the first pass included.
    """

    def __init__(self, codec: "TextCodec") -> None:
        self._codec = codec
        self._numbers: list[int] = []
        self.frames: list[Words] = []

    def add(self, ids: Sequence[int], answer_mask: Sequence[bool], confidence: Sequence[float]) -> bool:
        """Takes the text's ids, where the answer is, and confidences after a pass; whether that wrote anything.

        All are of one length (L,), as in `masked.TextState`.
        """
        if not self.frames:
            self._numbers = [0] * len(ids)
            masked = Word("", "masked")
            given = [self._word(token, "given", 1.0, 0) for token in ids]
            self.frames.append(
                tuple(masked if ours else word for word, ours in zip(given, answer_mask, strict=True))
            )
        number = len(self.frames)
        words = []
        for place, (token, ours, sure) in enumerate(zip(ids, answer_mask, confidence, strict=True)):
            if ours and token == self._codec.mask_token_id:
                words.append(Word("", "masked"))
                continue
            if ours and not self._numbers[place]:
                self._numbers[place] = number
            words.append(self._word(token, "written" if ours else "given", sure, self._numbers[place]))
        if tuple(words) == self.frames[-1]:
            return False
        self.frames.append(tuple(words))
        return True

    def _word(self, token: int, kind: Literal["given", "written"], sure: float, number: int) -> Word:
        if token == self._codec.eos_token_id:
            return Word("", "given" if kind == "given" else "end", sure, number)  # given ones are padding
        return Word(piece_text(str(self._codec.tokenizer.convert_ids_to_tokens(token))), kind, sure, number)


def piece_text(piece: str) -> str:
    """A token of the tokenizer as a person reads it."""
    return piece.replace("▁", " ").strip() or "␣"


def percent(confidence: float) -> str:
    """Whole percents, rounded down: 100 is certainty."""
    return f"{int(confidence * 100 + 1e-6)}"


def look(size: tuple[int, int]) -> str:
    """The class of a picture of so many pixels."""
    return "crisp" if max(size) <= LARGEST_SMALL else "smooth"


def data_uri(image: Image.Image, *, final: bool = True) -> str:
    """The picture as a `data:` address; a large one that is not final loses a little."""
    kind = "png" if final or look(image.size) == "crisp" else "jpeg"
    data = encode_image_file(image, kind, quality=85)
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def note(text: str, *, fault: bool = False) -> str:
    """A line for the user: what went wrong, or what to know."""
    role, look = ("alert", "fault") if fault else ("status", "hint")
    return f'<p class="note {look}" role="{role}">{escape(text)}</p>'


def picture(image: Image.Image, alt: str, *, done: int = 0, total: int = 0, name: str = "") -> str:
    """A picture as large as its place allows.

    done, total: steps of a picture on the way, shown as a bar; without them it is finished and can be saved as `name`.
    """
    is_final = done >= total
    address = data_uri(image, final=is_final)
    below = (
        f'<p class="aside"><a class="save" href="{address}" download="{escape(name)}">Save the picture</a></p>'
        if is_final and name
        else f'<p class="aside"><progress value="{done}" max="{total}" aria-label="Steps"></progress> '
        f"step {done} of {total}</p>"
        if not is_final
        else ""
    )
    shown = f'<img class="{look(image.size)}" src="{address}" alt="{escape(alt)}">'
    return f'<figure class="picture">{shown}{below}</figure>'


def answer(text: str) -> str:
    """A finished text."""
    return f'<p class="answer" role="status">{escape(text)}</p>'


def placeholder(text: str) -> str:
    """What stands where a result will be."""
    return f'<div class="placeholder"><p>{escape(text)}</p></div>'


def words_line(words: Words, *, finished: bool = False) -> str:
    """The text in its places: blocks where nothing is written, each word shaded by its confidence, with the number.

    A finished text has one mark for its end instead of all the end-of-text tokens.
    """
    shown = shorten(words) if finished else words
    return f'<p class="words">{"".join(_chip(word) for word in shown)}</p>'


def legend() -> str:
    """What the shades mean."""
    return (
        '<p class="legend"><span class="scale" aria-hidden="true"></span> how sure the model was of a word when it '
        "wrote it, in percent; <b>end</b> is where the text stops</p>"
    )


def shorten(words: Words) -> Words:
    """The words up to the first end of the text, which stays."""
    ends = [place for place, word in enumerate(words) if word.kind == "end"]
    return words[: ends[0] + 1] if ends else words


@dataclass(frozen=True)
class DrawingStep:
    """A step of a drawing, with times t: what the model expected, seen from `begin`, and where it got to, at `end`."""

    expected: Image.Image
    begin: float
    end: float
    reached: Image.Image | None = None


def drawing_steps(steps: Sequence[DrawingStep], total: int) -> str:
    """A drawing's steps side by side, of `total`; those to come are empty."""
    head = "".join(f'<th scope="col">{number + 1}</th>' for number in range(total))
    waiting = '<td><span class="empty"></span></td>' * (total - len(steps))
    expected = "".join(_small(step.expected, "expected from", step.begin) for step in steps)
    reached = "".join(
        _small(step.reached, "reached at", step.end)
        if step.reached is not None
        else '<td><span class="empty"></span></td>'
        for step in steps
    )
    table = (
        f'<table class="strip"><thead><tr><th scope="row">step</th>{head}</tr></thead><tbody>'
        f'<tr><th scope="row">expects</th>{expected}{waiting}</tr>'
        f'<tr><th scope="row">gets to</th>{reached}{waiting}</tr></tbody></table>'
    )
    return (
        "<h2>Drawing: from noise to a picture</h2>"
        "<p>The model begins with noise, at t = 1. In each step it looks at what it has, <b>expects</b> a finished "
        "picture, and moves some way towards it; what it then <b>gets to</b> has less noise, until t = 0.</p>"
        f"{_scroller(table, 'The picture, step by step')}"
    )


def writing_passes(frames: Sequence[Words]) -> str:
    """A text's passes, one a row, a column a position: filled in the pass that wrote it, shaded by its confidence."""
    head = "".join(f'<th scope="col">{place + 1}</th>' for place in range(len(frames[-1])))
    rows = []
    for number, words in enumerate(frames):
        name = f"pass {number}" if number else "start"
        rows.append(f'<tr><th scope="row">{name}</th>{"".join(_cell(word, number) for word in words)}</tr>')
    table = (
        f'<table class="grid"><thead><tr><th scope="row">position</th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table>"
    )
    return (
        "<h2>Reading: from blanks to a text</h2>"
        "<p>Then it looks at that picture and writes a caption. All positions are masked at first; each pass reads the "
        "whole text and writes the positions that it is sure of, in any order.</p>"
        f"{_scroller(table, 'The text, pass by pass')}{legend()}"
    )


def truth(caption: str, pairs: Iterable[tuple[str, str]]) -> str:
    """What a scene of the small world holds, folded away."""
    items = "".join(f"<dt>{escape(question)}</dt><dd>{escape(answer)}</dd>" for question, answer in pairs)
    return (
        "<details class='truth'><summary>What the scene really shows</summary>"
        f"<p>{escape(caption)}</p><dl>{items}</dl></details>"
    )


def _scroller(table: str, name: str) -> str:
    """Wide tables scroll on their own, by keyboard too, so that the page does not."""
    return f'<div class="scroller" role="region" aria-label="{escape(name)}" tabindex="0">{table}</div>'


def _chip(word: Word) -> str:
    if word.kind == "masked":
        return '<span class="word masked" title="not written yet"><span class="text">&nbsp;</span></span>'
    if word.kind == "given":
        return (
            f'<span class="word given"><span class="text">{escape(word.text)}</span></span> '
            if word.text
            else ""
        )
    text = escape(word.text) if word.kind == "written" else "end"
    return (
        f'<span class="word {word.kind}" style="--p:{word.confidence:.3f}" title="{_told(word)}">'
        f'<span class="text">{text}</span><small>{percent(word.confidence)}</small></span> '
    )


def _small(image: Image.Image, what: str, time: float) -> str:
    address = data_uri(image, final=False)
    alt = f"{what} t = {time:.2f}"
    return (
        f'<td><img class="{look(image.size)}" src="{address}" alt="{alt}"><small>t = {time:.2f}</small></td>'
    )


def _cell(word: Word, number: int) -> str:
    if word.kind == "masked":
        return '<td class="masked"><span class="hidden">masked</span></td>'
    text = escape(word.text) if word.kind != "end" else "end"
    if word.kind == "given" or word.number < number:
        return f'<td class="old">{text}</td>'
    return (
        f'<td class="new {word.kind}" style="--p:{word.confidence:.3f}" title="{_told(word)}">{text}'
        f"<small>{percent(word.confidence)}</small></td>"
    )


def _told(word: Word) -> str:
    return f"{percent(word.confidence)} % sure, written in pass {word.number}"
