"""A block of the MM-DiT: joint attention, then an MLP in each stream; shape legend in `ddit.model.dual_dit`."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ddit.model.attention import Attention, attend
from ddit.model.config import DualDiTConfig
from ddit.model.layers import FeedForward, Modulation, modulate


class BlockKV(NamedTuple):
    """What a block's text stream needs of the images of i2t samples.

    k, v: keys and values of their tokens, (B, heads, N, E).
    text_mod: the text stream's modulation at t = 0, 6 x (1, 1, D), the same for every image.
    """

    k: Tensor
    v: Tensor
    text_mod: tuple[Tensor, ...]

    def of(self, rows: Tensor | None) -> tuple[Tensor, Tensor]:
        """Keys and values of some images, (b, heads, N, E); of all (None), or of a single one, without a copy."""
        if rows is None:
            return self.k, self.v
        if len(self.k) == 1:
            return self.k.expand(len(rows), -1, -1, -1), self.v.expand(len(rows), -1, -1, -1)
        return self.k[rows], self.v[rows]

    def extended(self, k: Tensor, v: Tensor) -> "BlockKV":
        """With keys and values of more tokens, (B, heads, S, E)."""
        return self._replace(k=torch.cat([self.k, k], dim=2), v=torch.cat([self.v, v], dim=2))


ImageKV = list[BlockKV]
"""A `BlockKV` a block."""


Mask = Tensor | None
"""bool, which tokens each one sees; None: all."""


class Tokens(NamedTuple):
    """Samples that go through a block together: their images are of one size, their texts of one length.

    image: (B, N, D). text: (B, L, D). cond: (B, D). num_t2i: n; None asks for both streams of every sample.
    mask: (B, 1, L, N + L) bool, which image and text tokens each text token sees, of i2t samples alone; None: all.
    rows: (B,), which image each i2t text is about, where several share one: `image` is (m, N, D), and the image stream
        runs once for all groups in a row that have the same tensor of it. None: the i-th about the i-th.
    """

    image: Tensor
    text: Tensor
    cond: Tensor
    num_t2i: int | None
    mask: Mask = None
    rows: Tensor | None = None


class JointBlock(nn.Module):
    """Double-stream block: joint attention, then an MLP in each stream, all under AdaLN-zero.

    `is_last`: only the image tokens of t2i samples and the text tokens of i2t samples are computed.
    """

    def __init__(self, config: DualDiTConfig, index: int) -> None:
        super().__init__()
        dim = config.hidden_size
        self.is_last = index == config.depth - 1
        self.image_attends_text = config.image_attends_text
        self.has_dual_attention = index in config.dual_attention_layers
        self.norm1 = Modulation(dim, 9 if self.has_dual_attention else 6)
        self.norm1_context = Modulation(dim, 6)
        self.attn = Attention(dim, config.num_heads, qk_norm=config.qk_norm is not None, joint=True)
        if self.has_dual_attention:
            self.attn2 = Attention(dim, config.num_heads, qk_norm=config.qk_norm is not None, joint=False)
        self.ff = FeedForward(dim)
        self.ff_context = FeedForward(dim)

    def forward(self, groups: Sequence[Tokens], kept: ImageKV | None = None) -> list[tuple[Tensor, Tensor]]:
        """Each group's next image and text tokens; of the last block (n, N, D) and (B - n, L, D).

        Groups differ in their sizes, so that none is padded and no attention is masked. One call has them all, and
        weights that are sharded are gathered once.

        kept: gets this block's keys and values of the image tokens, group by group.
        """
        out: list[tuple[Tensor, Tensor]] = []
        shared: tuple[Tensor, Tensor, BlockKV] | None = None
        for group in groups:
            if group.rows is not None:
                if shared is None or shared[0] is not group.image:
                    shared = (group.image, *self.image_step(group.image, group.cond[:1]))
                out.append((shared[1], self.text_step(group.text, shared[2], group.rows, group.mask)[0]))
                continue
            *tokens, _ = group
            image, text, kv = self._function(group)(*tokens, keep=kept is not None)
            out.append((image, text))
            if kept is not None and kv is not None:
                kept.append(kv)
        return out

    def _function(self, group: Tokens) -> Callable[..., tuple[Tensor, Tensor, BlockKV | None]]:
        if self.is_last:
            return self.last
        if group.num_t2i == 0:
            return self.read
        return self.draw if group.num_t2i == len(group.image) else self.joint

    # The same computation under four names: the compiler keeps graphs by function, for all blocks together.

    def draw(
        self, image: Tensor, text: Tensor, cond: Tensor, n: int, mask: Mask = None, *, keep: bool = False
    ):
        """t2i samples: (B, N, D), (B, L, D), (B, D) -> the next image and text tokens."""
        return self._step(image, text, cond, n, mask, keep)

    def read(
        self, image: Tensor, text: Tensor, cond: Tensor, n: int, mask: Mask = None, *, keep: bool = False
    ):
        """i2t samples, as `draw`."""
        return self._step(image, text, cond, n, mask, keep)

    def joint(
        self,
        image: Tensor,
        text: Tensor,
        cond: Tensor,
        n: int | None,
        mask: Mask = None,
        *,
        keep: bool = False,
    ):
        """Samples of both kinds, as `draw`."""
        return self._step(image, text, cond, n, mask, keep)

    def last(
        self,
        image: Tensor,
        text: Tensor,
        cond: Tensor,
        n: int | None,
        mask: Mask = None,
        *,
        keep: bool = False,
    ):
        """The last block, of whatever samples: (n, N, D), (B - n, L, D)."""
        return self._step(image, text, cond, n, mask, keep)

    def _step(
        self, image: Tensor, text: Tensor, cond: Tensor, n: int | None, mask: Mask, keep: bool
    ) -> tuple[Tensor, Tensor, BlockKV | None]:
        num_image = image.shape[1]
        image_mod, text_mod = self.norm1(cond), self.norm1_context(cond)
        q_image, k_image, v_image = self.attn.project_image(modulate(image, image_mod[0], image_mod[1]))
        q_text, k_text, v_text = self.attn.project_text(modulate(text, text_mod[0], text_mod[1]))
        k, v = torch.cat([k_image, k_text], dim=2), torch.cat([v_image, v_text], dim=2)
        kv = BlockKV(k_image, v_image, tuple(part[:1] for part in text_mod)) if keep else None

        if n is None or (self.image_attends_text and not self.is_last):
            attended = attend(torch.cat([q_image, q_text], dim=2), k, v)  # (B, N + L, D)
            image_attended, text_attended = attended.split([num_image, text.shape[1]], dim=1)
        elif self.is_last:
            t2i, i2t = slice(n), slice(n, None)
            image_attended = attend(q_image[t2i], k[t2i], v[t2i])
            text_attended = attend(q_text[i2t], k[i2t], v[i2t], mask)
            image, image_mod = image[t2i], tuple(part[t2i] for part in image_mod)
            text, text_mod = text[i2t], tuple(part[i2t] for part in text_mod)
        else:
            t2i, i2t = slice(n), slice(n, None)
            image_attended = torch.cat(
                [
                    attend(q_image[t2i], k[t2i], v[t2i]),
                    attend(q_image[i2t], k_image[i2t], v_image[i2t]),
                ]
            )
            text_attended = attend(q_text, k, v, mask)
        image = self._finish_image(image, image_attended, image_mod)
        return image, self._finish_text(text, text_attended, text_mod), kv

    def _finish_image(self, x: Tensor, attended: Tensor, mod: tuple[Tensor, ...]) -> Tensor:
        out = x + mod[2] * self.attn.to_out[0](attended)
        if self.has_dual_attention:
            own = attend(*self.attn2.project_image(modulate(x, mod[6], mod[7])))
            out = out + mod[8] * self.attn2.to_out[0](own)
        return out + mod[5] * self.ff(modulate(out, mod[3], mod[4]))

    def _finish_text(self, x: Tensor, attended: Tensor, mod: tuple[Tensor, ...]) -> Tensor:
        x = x + mod[2] * self.attn.to_add_out(attended)
        return x + mod[5] * self.ff_context(modulate(x, mod[3], mod[4]))

    def image_step(self, image: Tensor, cond: Tensor) -> tuple[Tensor, BlockKV]:
        """The image stream alone: (B, N, D), (1, D) -> next (B, N, D), and what `text_step` needs of it."""
        mod = self.norm1(cond)
        q, k, v = self.attn.project_image(modulate(image, mod[0], mod[1]))
        if not self.is_last:
            image = self._finish_image(image, attend(q, k, v), mod)
        return image, BlockKV(k, v, self.norm1_context(cond))

    def text_step(
        self, text: Tensor, kv: BlockKV, rows: Tensor | None = None, mask: Mask = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The text stream alone, against kept keys and values: (b, L, D) -> the next (b, L, D), its keys and values.

        rows: (b,), which of those kept each text is about; None: the i-th about the i-th.
        mask: bool, which kept and own tokens each text token sees, broadcast to (b, 1, L, kept + L); None: all.
        """
        mod, (k_kept, v_kept) = kv.text_mod, kv.of(rows)
        q, k, v = self.attn.project_text(modulate(text, mod[0], mod[1]))
        attended = attend(q, torch.cat([k_kept, k], dim=2), torch.cat([v_kept, v], dim=2), mask)
        return self._finish_text(text, attended, mod), k, v
