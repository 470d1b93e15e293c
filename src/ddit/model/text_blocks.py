"""Texts in blocks (block diffusion, arXiv 2503.09573): which token sees which, in the text encoder and the text stream
alike.

Block 0 is what is given, and is seen by all; the answer is blocks 1, 2, ... from left to right. A token sees the blocks
up to its own, so that nothing of a finished block depends on what comes after it.

Shape legend: B texts (1 where it is the same for all), L tokens of a text, S tokens of a sequence.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class BlockText(NamedTuple):
    """How the tokens of sequences lie and see each other.

    positions: (B, S), of each token in its text; the text encoder's bias is by their distances.
    sees: (B, S, S) bool, which tokens each one sees; None: all.
    """

    positions: Tensor
    sees: Tensor | None

    def to(self, device: torch.device) -> "BlockText":
        return BlockText(self.positions.to(device), None if self.sees is None else self.sees.to(device))


def text_blocks(answer_mask: Tensor, block_size: int) -> Tensor:
    """The block of each token of texts, (B, L) bool -> (B, L): 0 where it is given, then k answer tokens each."""
    blocks = torch.where(answer_mask, 1 + (answer_mask.cumsum(1) - 1) // block_size, 0)
    return blocks[:1] if (blocks == blocks[:1]).all() else blocks


def last_answer(answer_mask: Tensor) -> Tensor:
    """The last answer of conversations, (B, L) bool -> (B, L) bool: in blocks, the earlier turns are given."""
    return answer_mask & ((~answer_mask).flip(1).cumsum(1).flip(1) == 0)


def of_rows(x: Tensor, rows: Tensor | slice | None) -> Tensor:
    """What belongs to the texts `rows`, of something for all texts or the same for each."""
    return x if rows is None or len(x) == 1 else x[rows]


def one_copy(blocks: Tensor) -> BlockText:
    """Texts (B, L) as they are; of blocks with noise, a text can show one alone, and those after it mean nothing."""
    positions = torch.arange(blocks.shape[1], device=blocks.device)[None]
    return BlockText(positions, blocks[:, :, None] >= blocks[:, None])


def clean_and_noisy(blocks: Tensor) -> BlockText:
    """Sequences (B, 2 L) of clean texts and then the same texts with noise, for the loss of all blocks in one pass.

    A clean token sees the clean blocks up to its own; a noisy one sees its own block with noise and the clean blocks
    before it.
    """
    own, others = blocks[:, :, None], blocks[:, None]
    clean = torch.cat([own >= others, torch.zeros_like(own == others)], dim=2)
    noisy = torch.cat([own > others, own == others], dim=2)
    positions = torch.arange(blocks.shape[1], device=blocks.device)[None]
    return BlockText(positions.repeat(1, 2), torch.cat([clean, noisy], dim=1))
