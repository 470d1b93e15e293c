"""What a run trains: the transformer and whatever else has weights, built once, then sharded over the ranks."""

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.fsdp import register_fsdp_forward_method

from ddit.config.runs import DualRun, ObjectiveConfig, settled
from ddit.devices import Ranks, compute_dtype
from ddit.inference.callables import velocity_fn
from ddit.model import DualDiT, DualDiTConfig
from ddit.model.adapters import add_adapters
from ddit.model.config import SWITCHES
from ddit.model.encoders import TextCodec
from ddit.model.folders import is_sd3_folder, resolve
from ddit.model.layers import set_dropout
from ddit.model.weights import from_sd3, load_transformer
from ddit.train.batch import Batch, I2TBatch, text_of
from ddit.train.objective import (
    AlignmentHead,
    Distilled,
    Drawn,
    Losses,
    Pair,
    distillation_loss,
    reward_loss,
    step_losses,
)
from ddit.train.parallel import make_mesh, shard_blocks
from ddit.train.timing import StepTimer

Result = TypeVar("Result")

MAX_FILLERS = 256
"""Filling tokens up to which one pass of T5 over texts of two lengths beats two: its weights are read once."""


class Learner(nn.Module):
    """The root of everything sharded: the transformer, the alignment loss's head and the mask token's embedding.

    The last two are there only where they are trained. Called, it gives the losses of one micro-batch.
    """

    def __init__(
        self,
        objective: ObjectiveConfig,
        transformer: DualDiT,
        alignment_head: nn.Module | None = None,
        mask_embedding: Tensor | None = None,
        own_weight: float = 0.0,
    ) -> None:
        super().__init__()
        self.objective = objective
        self.own_weight = own_weight
        self.transformer = transformer
        self.alignment_head = alignment_head
        self.mask_embedding = None if mask_embedding is None else nn.Parameter(mask_embedding)
        self.timer: StepTimer | None = None

    def forward(
        self, batch: Batch, latents: Pair, codec: TextCodec, own: Drawn | Distilled | None = None
    ) -> Losses:
        """Losses of one micro-batch; `latents` (n, C, h, w) are the clean ones of its t2i and its i2t half.

        own: of the model's own drawings, in a run with a reward or a distillation.
        """
        with nullcontext() if self.timer is None else self.timer.part("encode"):
            states = self._text_states(batch, codec)
        losses = step_losses(
            self.transformer, batch, latents, states, self.objective,
            mask_token_id=codec.mask_token_id, eos_token_id=codec.eos_token_id, alignment_head=self.alignment_head,
        )  # fmt: skip
        if own is not None:
            losses = self._with_own(losses, own)
        if batch.i2t is None:
            return losses
        # What embeds images, and the null image, take part on every rank, whichever of them a rank's samples have.
        embedding = (self.transformer.null_image_embd, *self.transformer.pos_embed.parameters())
        return losses._replace(total=losses.total + 0.0 * sum(p.float().sum() for p in embedding))

    def _with_own(self, losses: Losses, own: Drawn | Distilled) -> Losses:
        velocity = velocity_fn(self.transformer, own.states)
        if isinstance(own, Drawn):
            loss = reward_loss(velocity, own)
            losses = losses._replace(reward=loss)
        else:
            loss = distillation_loss(velocity, own)
            losses = losses._replace(distillation=loss)
        return losses._replace(total=losses.total + self.own_weight * loss)

    def _text_states(self, batch: Batch, codec: TextCodec) -> Pair:
        """States of both halves' ids: those that are there, or of one pass of the text encoder if lengths allow."""
        if any(half is not None and half.states is not None for half in (batch.t2i, batch.i2t)):
            t2i_states, i2t_states = (
                None if half is None else half.states for half in (batch.t2i, batch.i2t)
            )
            return t2i_states, i2t_states
        ids = None if batch.t2i is None else batch.t2i.prompt_ids
        config, embedding = self.transformer.config, self.mask_embedding
        is_apart = config.text_block_size > 0 or config.text_input == "embeddings" or embedding is not None
        if batch.i2t is not None and (is_apart or batch.i2t.lengths is not None):
            with nullcontext() if embedding is None else codec.embed_mask_as(embedding):
                i2t_states = self._i2t_states(batch.i2t, codec)
            return None if ids is None else codec.states(ids), i2t_states
        noisy_ids = None if batch.i2t is None else batch.i2t.noisy_ids
        if ids is not None and noisy_ids is not None and _num_fillers(ids, noisy_ids) <= MAX_FILLERS:
            return _states_of_both(ids, noisy_ids, codec)
        t2i_states, i2t_states = (None if i is None else codec.states(i) for i in (ids, noisy_ids))
        return t2i_states, i2t_states

    def _i2t_states(self, i2t: I2TBatch, codec: TextCodec) -> Tensor:
        """States of the i2t half's texts, those of one length together; what lies beyond a text's length is 0."""
        config = self.transformer.config

        def states_of(part: I2TBatch) -> Tensor:
            return codec.i2t_states(*text_of(part, config.text_block_size), config.text_input)

        if i2t.lengths is None:
            return states_of(i2t)
        width, found = i2t.input_ids.shape[1], []
        for length in i2t.lengths.unique().tolist():
            states = states_of(i2t.cut(i2t.lengths == length, length)).unflatten(1, (-1, length))
            found.append(F.pad(states, (0, 0, 0, width - length)).flatten(1, 2))
        order = i2t.lengths.argsort(stable=True).argsort()
        return torch.cat(found)[order.to(found[0].device)]

    def run(self, work: Callable[[], Result]) -> Result:
        """Calls `work` while the weights outside the blocks are gathered, so that it may call the transformer."""
        return work()

    def trained(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.named_parameters() if p.requires_grad}


def _num_fillers(one: Tensor, other: Tensor) -> int:
    """Tokens that fill up ids (n, L) and (m, L') to one length."""
    short, long = sorted((one, other), key=lambda ids: ids.shape[1])
    return len(short) * (long.shape[1] - short.shape[1])


def _states_of_both(ids: Tensor, noisy_ids: Tensor, codec: TextCodec) -> Pair:
    """States of ids (n, L) and (m, L') from one pass."""
    halves = (ids, noisy_ids)
    longest, lengths = max(half.shape[1] for half in halves), None
    if _num_fillers(*halves):
        lengths = torch.cat([torch.full((len(half),), half.shape[1]) for half in halves])
    states = codec.states(torch.cat([F.pad(half, (0, longest - half.shape[1])) for half in halves]), lengths)
    return states[: len(ids), : ids.shape[1]], states[len(ids) :, : noisy_ids.shape[1]]


def make_learner(
    cfg: DualRun, codec: TextCodec, ranks: Ranks, feature_channels: int | None = None
) -> Learner:
    """The run's weights as they are before its first step, sharded over the ranks, which call this together.

    The first rank reads or draws them in its main memory and sends each rank its part.

    feature_channels: of the teacher's features, where the alignment loss is on.

    Raises:
        ValueError: if `cfg.init` is of another size, or the samples lack what `cfg.objective` needs.
    """
    dtype = compute_dtype(cfg.compute_dtype, ranks.device)
    if cfg.objective.alignment_weight > 0 and feature_channels is None:
        raise ValueError(
            f"objective.alignment_weight is {cfg.objective.alignment_weight}, "
            "but the sources have no teacher's features"
        )
    with torch.device("meta"):
        learner = _build(cfg, DualDiT(cfg.model), codec, feature_channels, dtype)
    state = {}
    if ranks.is_first:
        state = _build(
            cfg, start_weights(cfg.model, cfg.init, cfg.seed, cfg.fresh), codec, feature_channels, dtype
        ).state_dict()
    transformer = learner.transformer
    transformer.gradient_checkpointing = settled(cfg.parallel.checkpoint_activations)
    blocks = list(transformer.transformer_blocks)
    if cfg.parallel.compile_blocks:
        transformer.compile_blocks()
    shard_blocks(learner, blocks, make_mesh(ranks, settled(cfg.parallel.num_replicas)), cfg.parallel, dtype)
    register_fsdp_forward_method(learner, "run")
    for block in blocks:
        for method in ("image_step", "text_step"):
            register_fsdp_forward_method(block, method)
    learner.to_empty(device=ranks.device)
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(learner, state, options=options)
    return learner


def _build(
    cfg: DualRun, transformer: DualDiT, codec: TextCodec, feature_channels: int | None, dtype: torch.dtype
) -> Learner:
    """The whole learner on this process; around a transformer on the meta device, names and shapes only."""
    set_dropout(transformer, cfg.dropout)
    if cfg.lora.rank > 0:
        add_adapters(
            transformer,
            rank=cfg.lora.rank,
            alpha=cfg.lora.alpha,
            dropout=cfg.lora.dropout,
            seed=cfg.seed,
            frozen_dtype=dtype,
        )
    head = mask_embedding = None
    if feature_channels is not None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(cfg.seed)
            head = AlignmentHead(cfg.model.hidden_size, feature_channels)
    if cfg.train_mask_embedding:
        rows = codec.encoder.get_input_embeddings().weight
        mask_embedding = torch.empty(codec.width)  # on the meta device there is nothing to copy to
        if not mask_embedding.is_meta:
            mask_embedding.copy_(rows[codec.mask_token_id].detach())
    own = cfg.reward or cfg.distillation
    weight = 0.0 if own is None else own.weight
    learner = Learner(cfg.objective, transformer, head, mask_embedding, weight)
    if cfg.optimizer.weights == "bfloat16":
        for parameter in learner.trained().values():
            parameter.data = parameter.data.bfloat16()
    return learner


def start_weights(config: DualDiTConfig, init: str | None, seed: int, fresh: Sequence[str] = ()) -> DualDiT:
    """The transformer where a run begins, in float32: fresh, SD3's, or a model folder's, but for its `fresh` parts.

    Raises:
        ValueError: in one line, if `init` is of another size.
    """
    if init is None:
        model = DualDiT(config)
        model.init_weights(torch.Generator().manual_seed(seed))
        return model
    folder = resolve(init)
    switches = {name: getattr(config, name) for name in SWITCHES}
    if is_sd3_folder(folder):
        model = from_sd3(
            folder, vocab_size=config.vocab_size, generator=torch.Generator().manual_seed(seed),
            dtype=torch.float32, **switches,
        ).transformer  # fmt: skip
    else:
        model = load_transformer(folder / "transformer", dtype=torch.float32, **switches)
    if fresh:
        return _with_fresh_parts(model, config, seed, fresh, folder)
    if model.config != config:
        found, wanted = dataclasses.asdict(model.config), dataclasses.asdict(config)
        differing = [
            f"{key} {found[key]} against {wanted[key]}" for key in wanted if found[key] != wanted[key]
        ]
        raise ValueError(f"the transformer in '{folder}' is of another size: {', '.join(differing)}")
    return model


def _with_fresh_parts(
    model: DualDiT, config: DualDiTConfig, seed: int, fresh: Sequence[str], folder: Path
) -> DualDiT:
    made, state = start_weights(config, None, seed), model.state_dict()
    where = f"the transformer in '{folder}' with fresh {', '.join(fresh)}"

    def is_of(name: str, part: str) -> bool:
        return name == part or name.startswith(f"{part}.")

    shapes = {name: tensor.shape for name, tensor in made.state_dict().items()}
    for part in fresh:
        if not any(is_of(name, part) for name in shapes):
            raise ValueError(f"{where}: it has no part {part!r}")
    kept = [name for name in shapes if not any(is_of(name, part) for part in fresh)]
    unfit = [name for name in kept if name not in state or state[name].shape != shapes[name]]
    if unfit:
        raise ValueError(f"{where}: {min(unfit)} does not fit")
    made.load_state_dict({name: state[name] for name in kept}, strict=False)
    return made
