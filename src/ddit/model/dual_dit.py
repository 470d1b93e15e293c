"""The two-headed multimodal diffusion transformer of D-DiT (arXiv 2501.00289): SD3's MM-DiT with a text output.

Shape legend
    B  batch               C, H, W  latent channels, height, width
    N  image tokens        L        text tokens            S  tokens of one stream
    D  hidden size         E        width of one head      V  vocabulary
    n  text-to-image samples of the batch (the first n); the other B - n are image-to-text

A sample is text-to-image, *t2i* (noisy latents and clean text give a velocity), or image-to-text, *i2t* (clean
latents, t = 0, and partly masked text give logits). One batch may hold both kinds. Parameter names are those of the
published checkpoints, so that they load as they are.
"""

import math
from typing import NamedTuple, cast

import torch
import torch._functorch.config as functorch_config
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ddit.model.attention import Attention, attend, part_of
from ddit.model.config import DualDiTConfig
from ddit.model.embeddings import PatchEmbed, TimeEmbed, is_meta
from ddit.model.layers import FeedForward, Modulation, modulate
from ddit.model.offload import move_rest, offload_blocks

NUM_NULL_TOKENS = 8


class DualOutput(NamedTuple):
    """What `DualDiT.forward` returns; a part that was not asked for is None.

    velocity: (n, C, H, W). logits: (B - n, L, V), or (selected, V) with a logit mask.
    features: (B, N, D), image tokens after an inner block.
    text_hidden: in place of logits, what the text head would be applied to: (B - n, L, D), or (selected, D).
    image_kv: what the text streams of later steps need of the images.
    """

    velocity: Tensor | None
    logits: Tensor | None
    features: Tensor | None = None
    text_hidden: Tensor | None = None
    image_kv: "ImageKV | None" = None


class BlockKV(NamedTuple):
    """What a block's text stream needs of the images of i2t samples.

    k, v: keys and values of their tokens, (B, heads, N, E).
    text_mod: the text stream's modulation at t = 0, 6 x (1, 1, D), the same for every image.
    """

    k: Tensor
    v: Tensor
    text_mod: tuple[Tensor, ...]

    def of(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of some images, (b, heads, N, E); of a single one without a copy."""
        if len(self.k) == 1:
            return self.k.expand(len(rows), -1, -1, -1), self.v.expand(len(rows), -1, -1, -1)
        return self.k[rows], self.v[rows]


ImageKV = list[BlockKV]
"""A `BlockKV` a block."""


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

    def forward(
        self,
        image: Tensor,
        text: Tensor,
        cond: Tensor,
        n: int | None,
        visible: Tensor | None = None,
        kept: ImageKV | None = None,
    ) -> tuple[Tensor, Tensor]:
        """(B, N, D), (B, L, D), (B, D) -> the same, or in the last block (n, N, D) and (B - n, L, D).

        n: number of t2i samples; None asks for both streams of every sample.
        visible: (B, 1, 1, N + L) bool, the tokens that may be attended to; None: all.
        kept: gets this block's keys and values of the image tokens.
        """
        num_image, every = image.shape[1], slice(None)
        image_mod, text_mod = self.norm1(cond), self.norm1_context(cond)
        q_image, k_image, v_image = self.attn.project_image(modulate(image, image_mod[0], image_mod[1]))
        q_text, k_text, v_text = self.attn.project_text(modulate(text, text_mod[0], text_mod[1]))
        k, v = torch.cat([k_image, k_text], dim=2), torch.cat([v_image, v_text], dim=2)
        if kept is not None:
            kept.append(BlockKV(k_image, v_image, tuple(part[:1] for part in text_mod)))

        if n is None or (self.image_attends_text and not self.is_last):
            attended = attend(torch.cat([q_image, q_text], dim=2), k, v, visible)  # (B, N + L, D)
            image_attended, text_attended = attended.split([num_image, text.shape[1]], dim=1)
        elif self.is_last:
            t2i, i2t = slice(n), slice(n, None)
            image_attended = attend(q_image[t2i], k[t2i], v[t2i], part_of(visible, t2i))
            text_attended = attend(q_text[i2t], k[i2t], v[i2t], part_of(visible, i2t))
            image, image_mod = image[t2i], tuple(part[t2i] for part in image_mod)
            text, text_mod = text[i2t], tuple(part[i2t] for part in text_mod)
            every = t2i
        else:
            t2i, i2t = slice(n), slice(n, None)
            image_attended = torch.cat(
                [
                    attend(q_image[t2i], k[t2i], v[t2i], part_of(visible, t2i)),
                    attend(q_image[i2t], k_image[i2t], v_image[i2t], part_of(visible, i2t, num_image)),
                ]
            )
            text_attended = attend(q_text, k, v, visible)
        image = self._finish_image(image, image_attended, image_mod, part_of(visible, every, num_image))
        return image, self._finish_text(text, text_attended, text_mod)

    def _finish_image(
        self, x: Tensor, attended: Tensor, mod: tuple[Tensor, ...], visible: Tensor | None = None
    ) -> Tensor:
        out = x + mod[2] * self.attn.to_out[0](attended)
        if self.has_dual_attention:
            own = attend(*self.attn2.project_image(modulate(x, mod[6], mod[7])), visible)
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

    def text_step(self, text: Tensor, kv: BlockKV, rows: Tensor) -> Tensor:
        """The text stream alone, against kept keys and values of the images `rows`: (b, L, D) -> (b, L, D)."""
        mod, (k_image, v_image) = kv.text_mod, kv.of(rows)
        q, k, v = self.attn.project_text(modulate(text, mod[0], mod[1]))
        k, v = torch.cat([k_image, k], dim=2), torch.cat([v_image, v], dim=2)
        return self._finish_text(text, attend(q, k, v), mod)


class DualDiT(nn.Module):
    """MM-DiT with an image head (velocity) and a text head (logits)."""

    def __init__(self, config: DualDiTConfig) -> None:
        super().__init__()
        self.config = config
        self.gradient_checkpointing = False
        dim = config.hidden_size
        self.pos_embed = PatchEmbed(
            dim, config.in_channels, config.patch_size, config.pos_embed_max_size, config.sample_size
        )
        self.time_text_embed = TimeEmbed(dim)
        self.context_embedder = nn.Linear(config.text_dim, dim)
        self.transformer_blocks = nn.ModuleList([JointBlock(config, i) for i in range(config.depth)])
        self.image_norm_out = Modulation(dim, 2)
        self.image_proj_out = nn.Linear(dim, config.patch_size**2 * config.in_channels)
        self.text_proj_out = nn.Linear(dim, config.vocab_size)
        shape = (1, NUM_NULL_TOKENS, dim)
        self.null_image_embd = nn.Parameter(
            torch.empty(shape) if is_meta() else torch.randn(shape) / dim**0.5
        )

    def _blocks(self) -> list[JointBlock]:
        return cast(list[JointBlock], list(self.transformer_blocks))

    def compile_blocks(self) -> None:
        """Has every block compiled when it first runs; for training, with nothing but products kept for backward."""
        # Recomputing what is not a matrix product costs next to nothing in compiled loops and saves a third.
        functorch_config.aggressive_recomputation = True
        for block in self._blocks():
            # Hooks, such as those that gather weights, stay outside.
            block.forward = torch.compile(block.forward)

    def offload_blocks(self, device: torch.device) -> None:
        """Has the blocks on `device` one at a time, and everything else there for good; see `offload`."""
        offload_blocks(self._blocks(), device, methods=("forward", "image_step", "text_step"))
        move_rest(self, device)

    def compile_text_step(self) -> None:
        """Has what `text_logits` runs in every block compiled when it first runs; on CUDA replayed as graphs.

        A step is many small kernels there, whose launches cost more than they do.
        """
        mode = "reduce-overhead" if self.context_embedder.weight.is_cuda else None
        for block in self._blocks():
            block.text_step = torch.compile(block.text_step, mode=mode)

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Fresh weights for training from scratch: Xavier, with AdaLN and the image head at zero (AdaLN-zero)."""
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                if (
                    isinstance(self.get_submodule(name.rpartition(".")[0]), Modulation)
                    or name == "image_proj_out"
                ):
                    module.weight.zero_()
                else:
                    weight = module.weight.flatten(1)
                    bound = math.sqrt(6 / sum(weight.shape))
                    weight.uniform_(-bound, bound, generator=generator)
                if module.bias is not None:
                    module.bias.zero_()
        self.null_image_embd.normal_(0, self.config.hidden_size**-0.5, generator=generator)

    def forward(
        self,
        latents: Tensor | None,
        t: Tensor,
        text_states: Tensor,
        *,
        num_t2i: int | None = None,
        null_rows: Tensor | None = None,
        logit_mask: Tensor | None = None,
        text_hidden: bool = False,
        features_after: int | None = None,
        keep_image: bool = False,
    ) -> DualOutput:
        """Velocity of the t2i samples and logits of the i2t samples.

        Args:
            latents: (B, C, H, W), noisy of t2i samples and clean of i2t samples; None is the null image (i2t only).
            t: (B,) in [0, 1], the image's time; 0 of i2t samples.
            text_states: (B, L, text_dim), states of the text encoder.
            num_t2i: n, the first n samples are t2i, the rest i2t; None: both outputs of every sample.
            null_rows: (B,) bool, i2t samples that have the null image in place of their latents; the same as
                `latents=None` for them, in a batch where others have images.
            logit_mask: (B - n, L) bool; logits are computed at these positions only, in row-major order.
            text_hidden: return the text head's input in place of the logits.
            features_after: index of the block whose image tokens are returned as well.
            keep_image: return the image side's keys and values as well, for `text_logits`; all samples are i2t. They
                are those of this text: for another it is an approximation, unless `image_attends_text` is False.

        Raises:
            ValueError: on latents whose size the patch size or the position table does not fit, or on a null
                image of a t2i sample, or on `num_t2i=None` with `image_attends_text=False`.
        """
        n = 0 if latents is None and num_t2i is None else num_t2i
        if latents is None and n:
            raise ValueError(f"the null image is of i2t samples only, but num_t2i is {num_t2i}")
        if n is None and not self.config.image_attends_text:
            raise ValueError("image_attends_text=False needs num_t2i: which samples are t2i, which are i2t")
        image, visible = self._image_tokens(latents, null_rows, n, text_states.shape)
        cond = self.time_text_embed(t)  # (B, D)
        text = self.context_embedder(text_states)  # (B, L, D)

        features, kept = None, [] if keep_image else None
        for index, block in enumerate(self.transformer_blocks):
            if self.gradient_checkpointing and torch.is_grad_enabled() and kept is None:
                image, text = checkpoint(block, image, text, cond, n, visible, use_reentrant=False)
            else:
                image, text = block(image, text, cond, n, visible, kept)
            if index == features_after:
                features = image

        velocity = logits = hidden = None
        if latents is not None and n != 0:
            velocity = self._image_head(image, cond[:n], latents.shape[-2:])
        if n is None or n < text_states.shape[0]:
            hidden = self._text_hidden(text, logit_mask)
            if not text_hidden:
                logits, hidden = self.text_proj_out(hidden), None
        return DualOutput(velocity, logits, features, hidden, kept)

    def _image_tokens(
        self, latents: Tensor | None, null_rows: Tensor | None, n: int | None, text_shape: torch.Size
    ) -> tuple[Tensor, Tensor | None]:
        """Image tokens (B, N, D), and which tokens (B, 1, 1, N + L) may be attended to; None: all."""
        if latents is None:
            return self.null_image_embd.expand(text_shape[0], -1, -1), None
        image = self.pos_embed(latents)
        if null_rows is None:
            return image, None
        return self._put_null_image(image, null_rows, n, text_shape[1])

    def _put_null_image(
        self, image: Tensor, null_rows: Tensor, n: int | None, num_text: int
    ) -> tuple[Tensor, Tensor | None]:
        """Null tokens first in the null rows of (B, N, D), and which tokens (B, 1, 1, N + L) may be attended to."""
        if not null_rows.any():
            return image, None
        if n is None or null_rows[:n].any():
            raise ValueError(f"the null image is of i2t samples only, but num_t2i is {n}")
        batch_size, num_image, _ = image.shape
        if num_image < NUM_NULL_TOKENS:
            raise ValueError(
                f"a null image of {NUM_NULL_TOKENS} tokens in a batch of {num_image} image tokens"
            )
        null_image = F.pad(self.null_image_embd, (0, 0, 0, num_image - NUM_NULL_TOKENS))
        image = torch.where(null_rows[:, None, None], null_image.to(image.dtype), image)
        is_unused = torch.arange(num_image + num_text, device=image.device)
        is_unused = (is_unused >= NUM_NULL_TOKENS) & (is_unused < num_image)
        return image, ~(null_rows[:, None] & is_unused).view(batch_size, 1, 1, -1)

    def _image_head(self, image: Tensor, cond: Tensor, size: torch.Size) -> Tensor:
        scale, shift = self.image_norm_out(cond)
        patches = self.image_proj_out(modulate(image, shift, scale))  # (n, N, p * p * C)
        p = self.config.patch_size
        patches = patches.unflatten(1, (size[0] // p, size[1] // p)).unflatten(-1, (p, p, -1))
        return patches.permute(0, 5, 1, 3, 2, 4).reshape(len(image), -1, *size)  # (n, C, H, W)

    def _text_hidden(self, text: Tensor, logit_mask: Tensor | None) -> Tensor:
        if logit_mask is not None:
            text = text[logit_mask]  # (selected, D)
        return F.layer_norm(text, text.shape[-1:], eps=1e-6)

    def image_kv(self, latents: Tensor | None) -> ImageKV:
        """Keys and values of clean latents (B, C, H, W) in every block, for `text_logits`; None is the null image.

        Exact, and independent of the text; only with `image_attends_text=False` (ValueError otherwise).
        """
        if self.config.image_attends_text:
            raise ValueError("the image side depends on the text here: image_attends_text is True")
        image = self.null_image_embd if latents is None else self.pos_embed(latents)
        cond = self.time_text_embed(image.new_zeros(1))  # (1, D): images of i2t samples are at t = 0
        kv: ImageKV = []
        for block in self._blocks():
            image, of_block = block.image_step(image, cond)
            kv.append(of_block)
        return kv

    def text_logits(
        self,
        text_states: Tensor,
        kv: ImageKV,
        logit_mask: Tensor | None = None,
        *,
        rows: Tensor | None = None,
    ) -> Tensor:
        """Logits of the text stream alone against kept keys and values: (b, L, V), or (selected, V).

        rows: (b,), which of the images in `kv` each text is about; by default the i-th about the i-th.
        """
        rows = torch.arange(len(text_states), device=text_states.device) if rows is None else rows
        text = self.context_embedder(text_states)
        for block, of_block in zip(self._blocks(), kv, strict=True):
            text = block.text_step(text, of_block, rows)
        return self.text_proj_out(self._text_hidden(text, logit_mask))
