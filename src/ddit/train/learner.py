"""What a run trains: the transformer with what else has weights, built once, then sharded over the ranks."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.fsdp import register_fsdp_forward_method
from torch.utils.checkpoint import checkpoint

from ddit.config.runs import DualRun
from ddit.devices import compute_dtype
from ddit.model import DualDiT
from ddit.model.encoders import ImageCodec, TextCodec
from ddit.model.folders import is_sd3_folder, resolve
from ddit.model.weights import from_sd3, load_transformer
from ddit.train.batch import Batch, Pictures
from ddit.train.objective import AlignmentHead, Losses, step_losses
from ddit.train.parallel import Ranks, make_mesh, shard_blocks, shard_frozen

Result = TypeVar("Result")


class Learner(nn.Module):
    """The root of everything sharded: the transformer, the alignment loss's head and the mask token's embedding.

    The last two are there only where they are trained. Called, it gives the losses of one micro-batch.
    """

    def __init__(
        self,
        cfg: DualRun,
        transformer: DualDiT,
        alignment_head: nn.Module | None,
        mask_embedding: Tensor | None,
    ) -> None:
        super().__init__()
        self.cfg = cfg
        self.transformer = transformer
        self.alignment_head = alignment_head
        self.mask_embedding = None if mask_embedding is None else nn.Parameter(mask_embedding)

    def forward(
        self, batch: Batch, drawn_latents: Tensor | None, read_latents: Tensor | None, codec: TextCodec
    ) -> Losses:
        """Losses of one micro-batch, whose clean latents (n, C, h, w) are given for each half that it has."""
        drawn_states, read_states = self._text_states(batch, codec)
        losses = step_losses(
            self.transformer, batch, drawn_latents, read_latents, drawn_states, read_states, self.cfg.objective,
            mask_token_id=codec.mask_token_id, alignment_head=self.alignment_head,
        )  # fmt: skip
        if batch.read is None:
            return losses
        # The null image takes part on every rank or on none, whether or not a rank's samples hold one.
        return losses._replace(total=losses.total + 0.0 * self.transformer.null_image_embd.float().sum())

    def _text_states(self, batch: Batch, codec: TextCodec) -> tuple[Tensor | None, Tensor | None]:
        """States of both halves' ids, from one pass of the text encoder where the lengths agree."""
        ids = None if batch.drawn is None else batch.drawn.prompt_ids
        noisy_ids = None if batch.read is None else batch.read.noisy_ids
        if self.mask_embedding is not None and noisy_ids is not None:
            with codec.embed_mask_as(self.mask_embedding):
                read_states = codec.states(noisy_ids)
            return None if ids is None else codec.states(ids), read_states
        if ids is not None and noisy_ids is not None and ids.shape[1] == noisy_ids.shape[1]:
            states = codec.states(torch.cat([ids, noisy_ids]))
            return states[: len(ids)], states[len(ids) :]
        drawn_states, read_states = (None if i is None else codec.states(i) for i in (ids, noisy_ids))
        return drawn_states, read_states

    def run(self, work: Callable[[], Result]) -> Result:
        """Calls `work` while the weights outside the blocks are gathered, so that it may call the transformer."""
        return work()

    def trained(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.named_parameters() if p.requires_grad}


def make_learner(
    cfg: DualRun, codec: TextCodec, ranks: Ranks, feature_channels: int | None = None
) -> Learner:
    """The run's weights as they are before its first step, sharded over the ranks, which call this together.

    The first rank reads or draws them in its main memory and sends each rank its part.

    Raises:
        ValueError: if `cfg.init` is of another size, or the samples lack what `cfg.objective` needs.
    """
    state = _build(cfg, codec, feature_channels, with_weights=True).state_dict() if ranks.is_first else {}
    with torch.device("meta"):
        learner = _build(cfg, codec, feature_channels, with_weights=False)
    dtype = compute_dtype(cfg.compute_dtype, ranks.device)
    transformer = learner.transformer
    transformer.gradient_checkpointing = cfg.parallel.checkpoint_activations
    blocks = list(transformer.transformer_blocks)
    mesh = make_mesh(ranks, cfg.parallel.num_replicas)
    if cfg.parallel.compile_blocks:
        transformer.compile_blocks()
    shard_blocks(learner, blocks, mesh, cfg.parallel, dtype)
    register_fsdp_forward_method(learner, "run")
    for block in blocks:
        for method in ("image_step", "text_step"):
            register_fsdp_forward_method(block, method)
    learner.to_empty(device=ranks.device)
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(learner, state, options=options)
    return learner


def shard_text_encoder(codec: TextCodec, cfg: DualRun, ranks: Ranks) -> None:
    """Puts the frozen T5 on the ranks as `cfg.parallel.text_encoder` has it.

    Where the mask token is trained, gradients pass through it: with `checkpoint_activations` its blocks are recomputed
    in the backward pass as well.
    """
    blocks = list(codec.encoder.encoder.block)
    if cfg.train_mask_embedding and cfg.parallel.checkpoint_activations:
        for block in blocks:
            block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)
    if cfg.parallel.text_encoder == "int8":
        from ddit.model.int8 import quantize_text_encoder

        quantize_text_encoder(codec)
        codec.to(device=ranks.device)
    elif cfg.parallel.text_encoder == "sharded":
        shard_frozen(codec.encoder, blocks, make_mesh(ranks, cfg.parallel.num_replicas))


def _build(cfg: DualRun, codec: TextCodec, feature_channels: int | None, *, with_weights: bool) -> Learner:
    """The whole learner on this process; without weights it has the right names and shapes only."""
    transformer = _start(cfg) if with_weights else DualDiT(cfg.model)
    if cfg.lora.rank > 0:
        from ddit.model.adapters import add_adapters  # peft is an extra

        add_adapters(
            transformer,
            rank=cfg.lora.rank,
            alpha=cfg.lora.alpha,
            dropout=cfg.lora.dropout,
            seed=cfg.seed,
            frozen_dtype=getattr(torch, cfg.compute_dtype),
        )
    head = mask_embedding = None
    if cfg.objective.alignment_weight > 0:
        if feature_channels is None:
            raise ValueError(
                f"objective.alignment_weight is {cfg.objective.alignment_weight}, "
                "but the sources have no teacher's features"
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(cfg.seed)
            head = AlignmentHead(cfg.model.hidden_size, feature_channels)
    if cfg.train_mask_embedding:
        rows = codec.encoder.get_input_embeddings().weight
        # A copy: on the meta device, where nothing is to be read, an empty one.
        mask_embedding = torch.empty(codec.width)
        if with_weights:
            mask_embedding.copy_(rows[codec.mask_token_id].detach())
    return Learner(cfg, transformer, head, mask_embedding)


def _start(cfg: DualRun) -> DualDiT:
    """The transformer where this run begins, in float32: fresh, SD3's, or that of a model folder."""
    if cfg.init is None:
        model = DualDiT(cfg.model)
        model.init_weights(torch.Generator().manual_seed(cfg.seed))
        return model
    folder = resolve(cfg.init)
    if is_sd3_folder(folder):
        model = from_sd3(
            folder, vocab_size=cfg.model.vocab_size, image_attends_text=cfg.model.image_attends_text,
            generator=torch.Generator().manual_seed(cfg.seed), dtype=torch.float32,
        ).transformer  # fmt: skip
    else:
        model = load_transformer(
            folder / "transformer", dtype=torch.float32, image_attends_text=cfg.model.image_attends_text
        )
    if model.config != cfg.model:
        found, wanted = dataclasses.asdict(model.config), dataclasses.asdict(cfg.model)
        differing = [
            f"{key} {found[key]} against {wanted[key]}" for key in wanted if found[key] != wanted[key]
        ]
        raise ValueError(f"the transformer in '{folder}' is of another size: {', '.join(differing)}")
    return model


def clean_latents(pictures: Pictures, images: ImageCodec) -> Tensor:
    """Clean latents (n, C, h, w) in float32: cached, or encoded here; a draw of their distribution, or its mode."""
    if pictures.mean is not None:
        mean, std = pictures.mean, pictures.std
    else:
        assert pictures.pixels is not None
        mean, std = images.encode_distribution(pictures.pixels)
    mean = mean.to(images.device, torch.float32)
    if pictures.sampling_noise is None or std is None:
        return mean
    return mean + std.to(mean) * pictures.sampling_noise.to(mean)
