"""Texts as clients see them on the way: what can be appended, and all tokens."""

from dataclasses import dataclass
from typing import Any

from ddit.diffusion.masked import TextState
from ddit.pipeline import Pipeline
from ddit.serve.jobs import Verb


@dataclass(frozen=True)
class Token:
    """A position of a text: its piece, None while it is masked, and its probability when it was filled."""

    text: str | None
    confidence: float

    @property
    def is_settled(self) -> bool:
        return self.text is not None

    def as_dict(self) -> dict[str, Any]:
        return {"text": self.text or "", "confidence": round(self.confidence, 4), "settled": self.is_settled}


class TextView:
    """One sample's text while it is sampled.

    `advance` gives what a client may append: the words before the first masked position, without the last one, to which
    the next token may still belong. It is never taken back.
    """

    def __init__(self, pipeline: Pipeline, verb: Verb) -> None:
        self.codec = pipeline.text_codec
        self.prefix = self.codec.token_ids(pipeline.style.caption_prefix) if verb == "infill" else []
        self.verb = verb
        self.sent = ""

    def advance(self, state: TextState) -> str:
        """What is new after a step of this sample (a state of one row)."""
        ids, _ = self._shown(state)
        masked = self.codec.mask_token_id
        if masked not in ids:
            return ""  # the result follows, with the whole text
        words = self.codec.decode(ids[: ids.index(masked)]).rpartition(" ")[0]
        return self._append(words)

    def finish(self, text: str) -> str:
        """The rest of the whole text."""
        return self._append(text)

    def _append(self, text: str) -> str:
        if not text.startswith(self.sent):
            return ""
        new, self.sent = text[len(self.sent) :], text
        return new

    def tokens(self, state: TextState) -> list[Token]:
        """The positions of the text, up to its end if that is known."""
        ids, confidence = self._shown(state)
        if self.codec.eos_token_id in ids:
            ids = ids[: ids.index(self.codec.eos_token_id)]
        pieces = self.codec.tokenizer.convert_ids_to_tokens(ids)
        masked, special = self.codec.mask_token_id, set(self.codec.tokenizer.all_special_ids)
        found = []
        for token, piece, probability in zip(ids, pieces, confidence, strict=False):
            shown = "" if token in special else piece.replace("▁", " ")
            found.append(Token(None if token == masked else shown, probability))
        return found

    def is_cut(self, state: TextState) -> bool:
        """Whether a finished text has no end within its positions."""
        return self.verb != "infill" and self.codec.eos_token_id not in self._shown(state)[0]

    def num_generated(self, state: TextState) -> int:
        """Tokens that the model filled in, without end-of-text tokens."""
        ids = state.ids[0][state.answer_mask[0]].tolist()
        return ids.index(self.codec.eos_token_id) if self.codec.eos_token_id in ids else len(ids)

    def _shown(self, state: TextState) -> tuple[list[int], list[float]]:
        """Ids and confidences of the positions that the client sees."""
        ids, answer_mask, confidence = (part[0].cpu() for part in state)
        if self.verb != "infill":
            return ids[answer_mask].tolist(), confidence[answer_mask].tolist()
        row = ids.tolist()
        start = len(self.prefix) if row[: len(self.prefix)] == self.prefix else 0
        return row[start:], confidence.tolist()[start:]
