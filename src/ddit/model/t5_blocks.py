"""T5's encoder over texts in blocks (`text_blocks`). Knows the insides of the encoder."""

import math
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ddit.model.offload import present
from ddit.model.text_blocks import BlockText, of_rows

if TYPE_CHECKING:  # takes seconds to import
    from transformers import T5EncoderModel


class T5Blocks:
    """States of texts block by block: keys and values of finished tokens are computed once, and kept exactly.

    Shape legend: b texts, s next tokens of each, k kept ones, E width of a head.
    """

    def __init__(self, encoder: "T5EncoderModel") -> None:
        self._stack: Any = encoder.encoder
        self._kept: list[tuple[Tensor, Tensor]] = []  # (b, heads, k, E) a layer
        self._positions: Tensor | None = None  # (b or 1, k)

    def states(self, ids: Tensor, text: BlockText, rows: Tensor | None = None, keep: int = 0) -> Tensor:
        """States (b, s, D) of the next tokens `ids` (b, s), which lie and see each other by `text` and see all kept.

        rows: (b,), which of the texts these are; None: all.
        keep: so many of the tokens, the first ones, are finished, and kept from now on; of all texts.
        """
        kept = [(of_rows(k, rows), of_rows(v, rows)) for k, v in self._kept]
        bias, positions = self._bias(text, rows)
        x, found = self._stack.embed_tokens(ids), []
        for index, block in enumerate(self._stack.block):
            with present(block):
                x, k, v = _layer(block, x, bias, kept[index] if kept else None)
            found.append((k, v))
        if keep:
            end = found[0][0].shape[2] - ids.shape[1] + keep
            self._kept = [(k[:, :, :end], v[:, :, :end]) for k, v in found]
            self._positions = positions[:, :end]
        return self._stack.final_layer_norm(x)

    def narrow(self, rows: Tensor) -> None:
        """Goes on with the texts `rows` alone."""
        self._kept = [(k[rows], v[rows]) for k, v in self._kept]
        if self._positions is not None:
            self._positions = of_rows(self._positions, rows)

    def _bias(self, text: BlockText, rows: Tensor | None) -> tuple[Tensor, Tensor]:
        """T5's own bias by distance, minus infinity where a token does not see another: (b or 1, heads, s, k + s).

        And the positions (b or 1, k + s).
        """
        positions = text.positions
        if self._positions is not None:
            positions = torch.cat([of_rows(self._positions, rows), positions], dim=1)
        num_kept = positions.shape[1] - text.positions.shape[1]
        first = self._stack.block[0].layer[0].SelfAttention
        buckets = first._relative_position_bucket(
            positions[:, None] - text.positions[:, :, None],
            bidirectional=True,
            num_buckets=first.relative_attention_num_buckets,
            max_distance=first.relative_attention_max_distance,
        )  # (b or 1, s, k + s)
        with present(self._stack.block[0]):
            bias = first.relative_attention_bias(buckets).permute(0, 3, 1, 2)
        if text.sees is not None:
            bias = bias.masked_fill(~F.pad(text.sees, (num_kept, 0), value=True)[:, None], -math.inf)
        return bias, positions


def _layer(
    block: Any, x: Tensor, bias: Tensor, kept: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor, Tensor]:
    """A layer's next tokens (b, s, D), and the keys and values that they saw, (b, heads, k + s, E)."""
    attention = block.layer[0].SelfAttention
    hidden = block.layer[0].layer_norm(x)
    q, k, v = (
        project(hidden).unflatten(-1, (attention.n_heads, -1)).transpose(1, 2)
        for project in (attention.q, attention.k, attention.v)
    )
    if kept is not None:
        k, v = torch.cat([kept[0], k], dim=2), torch.cat([kept[1], v], dim=2)
    attended = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype), scale=1.0)
    x = x + attention.o(attended.transpose(1, 2).flatten(2))
    return block.layer[-1](x), k, v
