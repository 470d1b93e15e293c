"""Texts that are written in blocks: a step computes the block at work, behind what is kept of the finished ones.

The first step of a block computes the block before it, now finished, as well, and keeps its keys and values, so that no
pass is spent on keeping. The prompt is block 0. All of this is exact.

Shape legend: B samples of a batch, b those of a step, L positions of a text, s those that a step computes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ddit.diffusion.masked import LogitsFn
from ddit.inference.callables import ImageContext
from ddit.model.block import BlockKV
from ddit.model.dual_dit import DualDiT, ImageKV
from ddit.model.encoders import TextCodec
from ddit.model.t5_blocks import T5Blocks
from ddit.model.text_blocks import BlockText, of_rows, text_blocks


class BlockCache:
    """What is kept of a batch of texts: by the text encoder, and by the text stream about each set of images.

    For `blocks.sample_blocks`, which calls `begin` before every block.

    Attributes:
        blocks: (B or 1, L), of each position.
    """

    def __init__(self, model: DualDiT, codec: TextCodec, answer_mask: Tensor) -> None:
        self.blocks = text_blocks(answer_mask, model.config.text_block_size)
        self._model, self._codec, self._dtype = model, codec, next(model.parameters()).dtype
        self._order = self.blocks.argsort(dim=1, stable=True)  # block after block
        self._ends = self.blocks[0].bincount().cumsum(0).tolist()
        self._encoder, self._kvs = T5Blocks(codec.encoder), list[ImageKV]()
        self._place = torch.arange(
            len(answer_mask), device=answer_mask.device
        )  # of each sample in what is kept
        self._count = len(answer_mask)
        # Of what the next step computes, in `_order`: from the first that is not kept, by the block at work.
        self._first = self._start = self._end = 0
        self._asked, self._states = torch.empty(0), torch.empty(0)

    def begin(self, block: int, rows: Tensor) -> None:
        """From now on `block` is at work, of the samples `rows` (b,); the others are done."""
        if len(rows) < self._count:
            some = self._place[rows]
            self._encoder.narrow(some)
            for kv in self._kvs:
                kv[:] = [BlockKV(*of_block.of(some), of_block.text_mod) for of_block in kv]
            self._place[rows] = torch.arange(len(rows), device=rows.device)
            self._count = len(rows)
        self._start, self._end = self._ends[block - 1], self._ends[block]

    def logits_fn(self, images: ImageContext) -> LogitsFn:
        """Logits of the block at work about images, whose keys and values there are."""
        assert images.kv is not None
        kv = [BlockKV(*of_block.of(images.index), of_block.text_mod) for of_block in images.kv]
        self._kvs.append(kv)

        def logits(noisy_ids: Tensor, is_masked: Tensor, rows: Tensor) -> Tensor:
            states = self._states_of(noisy_ids, rows)
            num_finished, mask = states.shape[1] - (self._end - self._start), None
            if num_finished:
                mask = F.pad(_sees(states.shape[1], num_finished, rows), (kv[0].k.shape[2], 0), value=True)
            positions = of_rows(self._order, rows)[:, self._end - states.shape[1] : self._end]
            is_masked = is_masked.gather(1, positions.expand(len(rows), -1))
            return self._model.text_logits(
                states, kv, is_masked, rows=self._some(rows), mask=mask, keep=num_finished
            )

        return logits

    def _states_of(self, noisy_ids: Tensor, rows: Tensor) -> Tensor:
        """States (b, s, D). Asked twice in one step, as by guidance, it computes them once."""
        if self._asked is not noisy_ids:
            positions = of_rows(self._order, rows)[:, self._first : self._end]
            ids, keep = noisy_ids.gather(1, positions.expand(len(rows), -1)), self._start - self._first
            text = BlockText(positions, _sees(ids.shape[1], keep, rows) if keep else None)
            if self._model.config.text_input == "embeddings":
                states = self._codec.i2t_states(ids, text, "embeddings")
            else:
                states = self._encoder.states(ids, text, self._some(rows), keep)
            self._states = states.to(self._dtype)
            self._asked, self._first = noisy_ids, self._start
        return self._states

    def _some(self, rows: Tensor) -> Tensor | None:
        """The places of samples in what is kept; None for all."""
        return None if len(rows) == self._count else self._place[rows]


def _sees(count: int, num_finished: int, like: Tensor) -> Tensor:
    """Which tokens each one sees, where the first ones are finished: (1, s, s) bool."""
    is_open = torch.arange(count, device=like.device) >= num_finished
    return (is_open[:, None] >= is_open)[None]
