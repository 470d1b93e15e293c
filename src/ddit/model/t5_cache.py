"""States of texts that are being sampled: T5 run only where a token changed. Knows the insides of the encoder."""

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ddit.model.offload import present

if TYPE_CHECKING:  # takes seconds to import
    from transformers import T5EncoderModel


class T5Cache:
    """Keys and values of every layer for a batch of texts (B, L), and the states that came of them.

    Where a text is refreshed, all of its positions are computed; elsewhere only those whose token differs from
    its last step, against the kept keys and values of the others (as in dLLM-Cache, arXiv 2506.06295). The first is
    exact, the second an approximation: what was not computed has not seen the new tokens.
    """

    def __init__(self, encoder: "T5EncoderModel", batch_size: int) -> None:
        self._stack: Any = encoder.encoder
        self._batch_size = batch_size
        self._ids = self._states = torch.empty(0)
        self._keys: list[Tensor] = []  # (B, L, inner) a layer
        self._values: list[Tensor] = []

    def states(self, ids: Tensor, rows: Tensor, refreshed: Tensor) -> Tensor:
        """States (b, L, D) of the texts `rows` (b,), whose tokens are now `ids` (b, L).

        refreshed: (b,) bool; a row's first call must be.
        """
        if not self._keys:
            self._make_room(ids.shape[1], ids)
        for part, chosen in ((refreshed, None), (~refreshed, self._ids[rows] != ids)):
            if not part.any():
                continue
            if chosen is None:
                positions = torch.arange(ids.shape[1], device=ids.device).expand(int(part.sum()), -1)
            else:
                positions = _positions(chosen[part])
            self._run(ids[part], rows[part], positions)
        self._ids[rows] = ids
        return self._states[rows]

    def _make_room(self, length: int, like: Tensor) -> None:
        first = self._stack.block[0].layer[0].SelfAttention
        dtype, device = self._stack.final_layer_norm.weight.dtype, like.device
        self._ids = like.new_full((self._batch_size, length), -1)
        shape = (self._batch_size, length, first.inner_dim)
        self._keys = [torch.zeros(shape, dtype=dtype, device=device) for _ in self._stack.block]
        self._values = [torch.zeros(shape, dtype=dtype, device=device) for _ in self._stack.block]
        self._states = torch.zeros(*shape[:2], first.d_model, dtype=dtype, device=device)
        with present(self._stack.block[0]):
            self._bias = first.compute_bias(length, length, device=device)[0]  # (heads, L, L)

    def _run(self, ids: Tensor, rows: Tensor, positions: Tensor) -> None:
        """The layers at `positions` (b, c) of the texts `rows`, against what is kept of the rest."""
        places = (rows[:, None], positions)
        bias = self._bias[:, positions].transpose(0, 1)  # (b, heads, c, L)
        x = self._stack.embed_tokens(ids.gather(1, positions))  # (b, c, D)
        for block, keys, values in zip(self._stack.block, self._keys, self._values, strict=True):
            with present(block):
                attention = block.layer[0].SelfAttention
                hidden = block.layer[0].layer_norm(x)
                keys[places] = attention.k(hidden).to(keys.dtype)
                values[places] = attention.v(hidden).to(values.dtype)
                q, k, v = (
                    y.unflatten(-1, (attention.n_heads, -1)).transpose(1, 2)
                    for y in (attention.q(hidden).to(keys.dtype), keys[rows], values[rows])
                )  # (b, heads, c or L, E)
                attended = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype), scale=1.0)
                x = x + attention.o(attended.transpose(1, 2).flatten(2))
                x = block.layer[-1](x)
        self._states[places] = self._stack.final_layer_norm(x).to(self._states.dtype)


def _positions(chosen: Tensor) -> Tensor:
    """Where (b, L) is True, (b, c) with the largest count; a row that has fewer names its first one again."""
    count = int(chosen.sum(1).amax())
    ordered = chosen.int().argsort(dim=1, descending=True, stable=True)[:, :count]
    is_spare = torch.arange(count, device=chosen.device) >= chosen.sum(1, keepdim=True)
    return torch.where(is_spare, ordered[:, :1], ordered)
