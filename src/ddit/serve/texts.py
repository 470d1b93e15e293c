"""Texts as clients see them on the way: what can be appended, and all tokens."""

from dataclasses import dataclass
from typing import Any

import torch

from ddit.diffusion.text_sampler import TextState
from ddit.pipeline import Pipeline
from ddit.serve.jobs import Verb


@dataclass(frozen=True)
class Token:
    """A position of a text: its piece, None while it is masked, its probability when it was filled, and whether that is
    final."""

    text: str | None
    confidence: float
    is_settled: bool

    def as_dict(self) -> dict[str, Any]:
        return {"text": self.text or "", "confidence": round(self.confidence, 4), "settled": self.is_settled}


class TextView:
    """One sample's text while it is sampled.

    `advance` gives what a client may append: the words before the first position that is not settled, without the last
    one, to which the next token may still belong. It is never taken back.
    """

    def __init__(self, pipeline: Pipeline, verb: Verb) -> None:
        self.codec = pipeline.text_codec
        self.block_size = pipeline.transformer.config.text_block_size
        self.prefix = self.codec.token_ids(pipeline.style.caption_prefix) if verb == "infill" else []
        self.verb = verb
        self.sent = ""

    def advance(self, state: TextState) -> str:
        """What is new after a step of this sample (a state of one row)."""
        ids, _, is_settled = self._shown(state)
        if all(is_settled):
            return ""  # the result follows, with the whole text
        words = self.codec.decode(ids[: is_settled.index(False)]).rpartition(" ")[0]
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
        """The positions of the text, up to its end if that is known; of a text in blocks, up to the block at work."""
        ids, confidence, is_settled = self._shown(state)
        if self.block_size and self.verb != "infill" and False in is_settled:
            ids = ids[: (is_settled.index(False) // self.block_size + 1) * self.block_size]
        if self.codec.eos_token_id in ids:
            ids = ids[: ids.index(self.codec.eos_token_id)]
        pieces = self.codec.tokenizer.convert_ids_to_tokens(ids)
        masked, special = self.codec.mask_token_id, set(self.codec.tokenizer.all_special_ids)
        found = []
        for token, piece, probability, settled in zip(ids, pieces, confidence, is_settled, strict=False):
            shown = "" if token in special else piece.replace("▁", " ")
            found.append(Token(None if token == masked else shown, probability, settled))
        return found

    def is_cut(self, state: TextState) -> bool:
        """Whether a finished text has no end within its positions."""
        return self.verb != "infill" and self.codec.eos_token_id not in self._shown(state)[0]

    def has_block(self, state: TextState) -> bool:
        """Whether the first block of a text in blocks is finished."""
        if not self.block_size:
            return False
        first = state.ids[0][state.answer_mask[0]][: self.block_size]
        return not (first == self.codec.mask_token_id).any()

    def num_generated(self, state: TextState) -> int:
        """Tokens that the model filled in, without end-of-text tokens."""
        ids = state.ids[0][state.answer_mask[0]].tolist()
        return ids.index(self.codec.eos_token_id) if self.codec.eos_token_id in ids else len(ids)

    def _shown(self, state: TextState) -> tuple[list[int], list[float], list[bool]]:
        """Ids, confidences and whether they are final, of the positions that the client sees."""
        ids, answer_mask, confidence, is_settled = (part[0].cpu() for part in state)
        if self.verb != "infill":
            shown = answer_mask
        else:
            start = len(self.prefix) if ids[: len(self.prefix)].tolist() == self.prefix else 0
            shown = torch.arange(len(ids)) >= start
        return ids[shown].tolist(), confidence[shown].tolist(), is_settled[shown].tolist()
