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
from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
import torch._functorch.config as functorch_config
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ddit.model.block import ImageKV, JointBlock, Tokens
from ddit.model.config import DualDiTConfig
from ddit.model.embeddings import PatchEmbed, Refiner, TimeEmbed, is_meta
from ddit.model.layers import Modulation, modulate
from ddit.model.offload import move_rest, offload_blocks

NUM_NULL_TOKENS = 8

MAX_GRAPHS = 64
"""Graphs that the compiler may keep of one function, for all blocks together; beyond it, shapes would run eager."""


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
    image_kv: ImageKV | None = None


class Part(NamedTuple):
    """Samples whose images are of one size and whose texts are of one length; see `DualDiT.forward`.

    sees: which of the text's own tokens each of them sees.
    rows: (B,), which of `latents` (m, C, H, W) each text is about, where i2t texts share images. The image stream,
        which must not see the text, then runs once for all parts in a row that have the same tensor of latents.
    """

    latents: Tensor | None
    t: Tensor
    text_states: Tensor
    num_t2i: int | None = 0
    logit_mask: Tensor | None = None
    sees: Tensor | None = None
    rows: Tensor | None = None


class DualDiT(nn.Module):
    """MM-DiT with an image head (velocity) and a text head (logits)."""

    def __init__(self, config: DualDiTConfig) -> None:
        super().__init__()
        self.config = config
        self.gradient_checkpointing = self._marks_steps = False
        dim = config.hidden_size
        self.pos_embed = PatchEmbed(
            dim,
            config.in_channels,
            config.patch_size,
            config.pos_embed_max_size,
            config.sample_size,
            config.stem,
        )
        self.time_text_embed = TimeEmbed(dim)
        self.context_embedder = nn.Linear(config.text_dim, dim)
        self.transformer_blocks = nn.ModuleList([JointBlock(config, i) for i in range(config.depth)])
        self.image_norm_out = Modulation(dim, 2)
        self.image_proj_out = nn.Linear(dim, config.patch_size**2 * (config.in_channels + config.refiner))
        self.refiner = Refiner(config.in_channels, config.refiner) if config.refiner else None
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
        _allow_graphs()
        for block in self._blocks():
            for name in ("draw", "read", "joint", "last", "image_step", "text_step"):
                # Hooks, such as those that gather weights, stay outside: they are of `forward`.
                setattr(block, name, torch.compile(getattr(block, name)))

    def offload_blocks(self, device: torch.device) -> None:
        """Has the blocks on `device` one at a time, and everything else there for good; see `offload`."""
        offload_blocks(self._blocks(), device, methods=("forward", "image_step", "text_step"))
        move_rest(self, device)

    def compile_text_step(self) -> None:
        """Has what `text_logits` runs in every block compiled when it first runs; on CUDA replayed as graphs.

        A step is many small kernels there, whose launches cost more than they do.
        """
        # A graph's outputs live until the next generation begins. Left to itself, every call of a compiled function
        # begins one, so that block k + 1 would free what block k hands it (pytorch#152887, #160281). Marked, one begins
        # with each step, whose blocks then share the pool; nothing of a step but its logits, which are computed outside
        # the graphs, is used after it.
        self._marks_steps = True
        _allow_graphs()
        mode = "reduce-overhead" if self.context_embedder.weight.is_cuda else None
        for block in self._blocks():
            block.text_step = torch.compile(block.text_step, mode=mode)

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Fresh weights for training from scratch: Xavier, with AdaLN and the image head at zero (AdaLN-zero)."""
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                if isinstance(self.get_submodule(name.rpartition(".")[0]), Modulation) or name in (
                    "image_proj_out",
                    "refiner.out",
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
        sees: Tensor | None = None,
    ) -> DualOutput:
        """Velocity of the t2i samples and logits of the i2t samples.

        Args:
            latents: (B, C, H, W), noisy of t2i samples and clean of i2t samples; None is the null image (i2t only).
            t: (B,) in [0, 1], the image's time; 0 of i2t samples.
            text_states: (B, L, text_dim), states of the text encoder.
            num_t2i: n, the first n samples are t2i, the rest i2t; None: both outputs of every sample.
            null_rows: (B,) bool, i2t samples that have the null image in place of their latents; the same as
                `latents=None` for them, in a batch where others have images. Not with `features_after`, `keep_image`.
            logit_mask: (B - n, L) bool; logits are computed at these positions only, in row-major order.
            text_hidden: return the text head's input in place of the logits.
            features_after: index of the block whose image tokens are returned as well.
            keep_image: return the image side's keys and values as well, for `text_logits`; all samples are i2t. They
                are those of this text: for another it is an approximation, unless `image_attends_text` is False.
            sees: (B, L, L) bool, which text tokens each text token sees, of texts in blocks (`text_blocks`); all
                samples are i2t. None: all.

        Raises:
            ValueError: on latents whose size the patch size or the position table does not fit, or on a null
                image of a t2i sample, or on `num_t2i=None` with `image_attends_text=False`, or on what does not go with
                `null_rows` or with `sees`.
        """
        n = 0 if latents is None and num_t2i is None else num_t2i
        part = Part(latents, t, text_states, n, logit_mask, sees)
        if latents is None or null_rows is None or not null_rows.any():
            (output,) = self.forward_parts([part], features_after=features_after, keep_image=keep_image)
        else:
            if keep_image or features_after is not None:
                raise ValueError("null_rows go with neither keep_image nor features_after")
            output = self._forward_with_null_rows(part, null_rows)
        if text_hidden or output.text_hidden is None:
            return output
        return output._replace(logits=self.text_proj_out(output.text_hidden), text_hidden=None)

    def forward_parts(
        self, parts: Sequence[Part], *, features_after: int | None = None, keep_image: bool = False
    ) -> list[DualOutput]:
        """Outputs of each part, `text_hidden` in place of logits: parts of any sizes, in one pass through the blocks.

        The arguments and errors are those of `forward`; `keep_image` is for a single part.
        """
        groups: list[Tokens] = []
        for i, part in enumerate(parts):
            is_shared = i > 0 and part.rows is not None and part.latents is parts[i - 1].latents
            groups.append(self._tokens(part, groups[-1].image if is_shared else None))
        features: list[Tensor] | None = None
        kept: ImageKV | None = [] if keep_image else None
        for index, block in enumerate(self.transformer_blocks):
            if self.gradient_checkpointing and torch.is_grad_enabled() and kept is None:
                out = cast(list[tuple[Tensor, Tensor]], checkpoint(block, groups, use_reentrant=False))
            else:
                out = block(groups, kept)
            groups = [group._replace(image=i, text=t) for group, (i, t) in zip(groups, out, strict=True)]
            if index == features_after:
                features = [group.image for group in groups]
        outputs = []
        for i, (part, group) in enumerate(zip(parts, groups, strict=True)):
            velocity = hidden = None
            if part.latents is not None and part.num_t2i != 0:
                velocity = self._image_head(
                    group.image, group.cond[: part.num_t2i], part.latents[: part.num_t2i]
                )
            if part.num_t2i is None or part.num_t2i < len(part.text_states):
                hidden = self._text_hidden(group.text, part.logit_mask)
            outputs.append(DualOutput(velocity, None, features[i] if features else None, hidden, kept))
        return outputs

    def _tokens(self, part: Part, image: Tensor | None = None) -> Tokens:
        """image: the part's image tokens, if they are there already."""
        n = part.num_t2i
        if part.latents is None and n != 0:
            raise ValueError(f"the null image is of i2t samples only, but num_t2i is {n}")
        if n is None and not self.config.image_attends_text:
            raise ValueError("image_attends_text=False needs num_t2i: which samples are t2i, which are i2t")
        if part.sees is not None and (n != 0 or self.config.image_attends_text):
            raise ValueError("a text is in blocks in i2t alone, and only with image_attends_text=False")
        if part.rows is not None and (n != 0 or self.config.image_attends_text):
            raise ValueError("texts share images in i2t alone, and only with image_attends_text=False")
        if image is None:
            image = self._image_tokens(part)
        mask = None if part.sees is None else F.pad(part.sees, (image.shape[1], 0), value=True)[:, None]
        text, cond = self.context_embedder(part.text_states), self.time_text_embed(part.t)
        return Tokens(image, text, cond, n, mask, part.rows)

    def _image_tokens(self, part: Part) -> Tensor:
        if part.latents is None:
            return self.null_image_embd.expand(len(part.text_states), -1, -1)
        return self.pos_embed(part.latents)

    def _forward_with_null_rows(self, part: Part, null_rows: Tensor) -> DualOutput:
        """A batch where some i2t samples have the null image: these are a part of their own, of eight tokens."""
        latents, t, states, n, logit_mask, sees, _ = part
        if n is None or null_rows[:n].any():
            raise ValueError(f"the null image is of i2t samples only, but num_t2i is {n}")
        assert latents is not None
        with_image, null = (~null_rows).nonzero()[:, 0], null_rows.nonzero()[:, 0]

        def of(rows: Tensor, shown: Tensor | None, n: int) -> Part:
            return Part(shown, t[rows], states[rows], n, sees=None if sees is None else sees[rows])

        parts = [of(null, None, 0)]
        if len(with_image):
            parts.insert(0, of(with_image, latents[with_image], n))
        outputs = self.forward_parts(parts)
        hidden = torch.cat([output.text_hidden for output in outputs if output.text_hidden is not None])
        hidden = hidden[torch.cat([with_image[n:], null]).argsort()]  # (B - n, L, D), in the batch's order
        return DualOutput(
            outputs[0].velocity, None, text_hidden=hidden if logit_mask is None else hidden[logit_mask]
        )

    def _image_head(self, image: Tensor, cond: Tensor, latents: Tensor) -> Tensor:
        scale, shift = self.image_norm_out(cond)
        patches = self.image_proj_out(modulate(image, shift, scale))  # (n, N, p * p * (C + refiner))
        p, (height, width) = self.config.patch_size, latents.shape[-2:]
        patches = patches.unflatten(1, (height // p, width // p)).unflatten(-1, (p, p, -1))
        maps = patches.permute(0, 5, 1, 3, 2, 4).reshape(len(image), -1, height, width)
        if self.refiner is None:
            return maps  # (n, C, H, W)
        velocity, features = maps.split([self.config.in_channels, self.config.refiner], dim=1)
        return velocity + self.refiner(latents, features)

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
        mask: Tensor | None = None,
        keep: int = 0,
    ) -> Tensor:
        """Logits of the text stream alone against kept keys and values: (b, L, V), or (selected, V).

        rows: (b,), which of the images in `kv` each text is about; by default the i-th about the i-th.
        mask: bool, which kept and own tokens each text token sees, broadcast to (b, 1, L, kept + L); by default all.
        keep: the keys and values of so many text tokens, the first ones, are added to those in `kv`, in place; one of a
            text each, and no `rows`.
        """
        text = self.context_embedder(text_states)
        if self._marks_steps:
            torch.compiler.cudagraph_mark_step_begin()
        for index, block in enumerate(self._blocks()):
            text, k, v = block.text_step(text, kv[index], rows, mask)
            if keep:
                kv[index] = kv[index].extended(k[:, :, :keep], v[:, :, :keep])
        return self.text_proj_out(self._text_hidden(text, logit_mask))


def _allow_graphs() -> None:
    import torch._dynamo.config as dynamo  # the compiler, which takes seconds to import

    dynamo.recompile_limit = max(dynamo.recompile_limit, MAX_GRAPHS)
