"""Global batch k of a run as tensors: a pure function of (seed, k), in which nothing random is left to the step."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ddit import prompts
from ddit.config.data import LlavaData, SourceConfig
from ddit.config.runs import DualRun
from ddit.data.buckets import Shape, bucket_shapes
from ddit.data.latents import CachedSource, LatentFolder
from ddit.data.mixture import HalfBatches, Place
from ddit.data.sampler import noise_rng, sample_rng
from ddit.data.samples import CorruptSample, Sample, Source, Turn
from ddit.data.sources import open_source
from ddit.diffusion import flow, masked
from ddit.model.encoders import ImageCodec, TextCodec
from ddit.prompts import MINI, PUBLISHED, TokenizedPrompt
from ddit.train.batch import Batch, Drawn, Pictures, Read, split
from ddit.train.rows import (
    LatentShape,
    Row,
    caption_ids,
    conversation_ids,
    fit_sample_image,
    normals,
    row_latents,
    stack_images,
)

DRAW, READ = 0, 1
STYLES = {"published": PUBLISHED, "mini": MINI}
_MAX_ATTEMPTS = 100

OpenSource = tuple[Source, SourceConfig]


class ImageFacts(NamedTuple):
    """What making batches needs to know of the autoencoder: a loader's process has no use for its weights."""

    channels: int
    downsample: int
    fingerprint: str | None = None

    @classmethod
    def of(cls, codec: ImageCodec) -> Self:
        return cls(codec.channels, codec.downsample, codec.fingerprint())


class _Half:
    """The sources of the drawn or the read half, and which of its positions are this rank's."""

    def __init__(
        self, kind: int, sources: Sequence[OpenSource], plan: HalfBatches, first: int, mine: range
    ) -> None:
        self.kind, self.plan, self.first, self.mine = kind, plan, first, mine
        self.sources = [source for source, _ in sources]
        # Null pictures change what a step computes, so that all ranks must expect them in the same places.
        self.may_lack_pictures = kind == READ and any(isinstance(cfg, LlavaData) for _, cfg in sources)
        self.is_cached = isinstance(self.sources[0], CachedSource)


class StepData(Dataset[list[Batch]]):
    """Item `step` is the list of this rank's micro-batches of global batch `step`.

    A global batch has round(B * i2t_fraction) samples to read and the rest to draw. Everything random about sample
    `position` (caption, dropout, times, noise, masks) comes from (seed, step, position), so that the global batch is
    the same for any number of ranks, workers and micro-batches.

    Args:
        codec: its encoder is not kept.
        facts: of the autoencoder that the run uses.
        rank, num_ranks: whose part of the global batch this is.
        open_with: opens a source; for tests.

    Raises:
        ValueError: in one line, for settings that do not fit together.
    """

    def __init__(
        self,
        cfg: DualRun,
        codec: TextCodec,
        facts: ImageFacts,
        rank: int = 0,
        num_ranks: int = 1,
        *,
        open_with: Callable[[SourceConfig], Source] = open_source,
    ) -> None:
        self.cfg, self.facts, self.style = cfg, facts, STYLES[cfg.prompts]
        self.codec = codec.without_encoder()
        self.num_read = round(cfg.global_batch_size * cfg.objective.i2t_fraction)
        self.num_t2i = cfg.global_batch_size - self.num_read
        self.num_micro_batches = _num_micro_batches(cfg, num_ranks, self.num_t2i, self.num_read)
        self._check_settings()
        self._shapes = _shapes(cfg, facts)
        draw, read = self._open(open_with)
        self._drawn = self._half(DRAW, draw, 0, self.num_t2i, rank, num_ranks)
        self._read = self._half(READ, read, self.num_t2i, self.num_read, rank, num_ranks)

    def _check_settings(self) -> None:
        cfg = self.cfg
        if cfg.seed < 0:
            raise ValueError(f"seed must not be negative, got {cfg.seed}")
        if not cfg.data.t2i and (self.num_t2i or not cfg.data.i2t):
            raise ValueError("data.t2i names no source")
        self._empty_prompt = prompts.empty_prompt(self.codec, 1, cfg.data.t2i_length, style=self.style)[0]
        # A template that leaves no room is the fault of a setting, not of every sample.
        prompts.training_conversation(self.codec, [[("?", "?")]], cfg.data.i2t_length, style=self.style)

    def _open(self, open_with: Callable[[SourceConfig], Source]) -> tuple[list[OpenSource], list[OpenSource]]:
        data, align = self.cfg.data, self.cfg.objective.alignment_weight > 0 and self.num_t2i > 0
        draw = [(_open_one(c, open_with, self.facts, align), c) for c in data.t2i]
        if align and not all(isinstance(source, CachedSource) for source, _ in draw):
            raise ValueError(
                "objective.alignment_weight is above 0, which needs cached latents with a teacher's features "
                "for every source of data.t2i"
            )
        if not data.i2t:
            return draw, [(s.without_features() if isinstance(s, CachedSource) else s, c) for s, c in draw]
        return draw, [(_open_one(c, open_with, self.facts, False), c) for c in data.i2t]

    def _half(
        self, kind: int, sources: list[OpenSource], first: int, size: int, rank: int, num_ranks: int
    ) -> _Half | None:
        if not size:
            return None
        name = "data.i2t" if kind == READ and self.cfg.data.i2t else "data.t2i"
        is_cached = _all_cached(sources, name, self.facts, self._shapes)
        plan = HalfBatches(
            [(source, cfg.weight) for source, cfg in sources], size, shapes=self._shapes, seed=self.cfg.seed,
            stream=kind, can_cut=not is_cached,
        )  # fmt: skip
        part = size // num_ranks
        return _Half(kind, sources, plan, first, range(rank * part, (rank + 1) * part))

    def __getitem__(self, step: int) -> list[Batch]:
        return split(self.rank_batch(step), self.num_micro_batches)

    def rank_batch(self, step: int) -> Batch:
        """This rank's whole part of global batch `step`; `ValueError` if no usable sample can be found."""
        corrupt: Counter[str] = Counter()
        drawn = None if self._drawn is None else self._make_drawn(self._drawn, step, corrupt)
        read = None if self._read is None else self._make_read(self._read, step, corrupt)
        return Batch(drawn, read, dict(corrupt))

    def _make_drawn(self, half: _Half, step: int, corrupt: Counter[str]) -> Drawn:
        cfg, rows = self.cfg, self._rows(half, step, corrupt)
        rngs = [noise_rng(cfg.seed, step, half.first + i) for i in half.mine]
        dropped = torch.tensor([rng.random() < cfg.objective.caption_dropout for rng in rngs])
        normal = torch.tensor([rng.standard_normal() for rng in rngs], dtype=torch.float32)
        shape = self._latent_shape(half.plan.shape(step))
        prompt_ids = torch.stack([row.input_ids for row in rows])
        features = None
        if cfg.objective.alignment_weight > 0:
            features = torch.stack([row_latents(row).features for row in rows])  # type: ignore[arg-type]
        noise = normals(rngs, shape)
        return Drawn(
            self._pictures(half, rows, rngs, step),
            torch.where(dropped[:, None], self._empty_prompt, prompt_ids),
            flow.time_of_normal(normal, cfg.objective.flow),
            noise,
            features,
        )

    def _make_read(self, half: _Half, step: int, corrupt: Counter[str]) -> Read:
        cfg, rows = self.cfg, self._rows(half, step, corrupt)
        rngs = [noise_rng(cfg.seed, step, half.first + i) for i in half.mine]
        # Times are stratified over the half; which sample gets which slice is permuted, so that no rank always has the
        # late ones, which have the most masked tokens.
        slices = np.random.default_rng([cfg.seed, step]).permutation(self.num_read)[half.mine]
        u = torch.tensor([rng.random() for rng in rngs], dtype=torch.float64)
        t = masked.time_of_uniform((torch.from_numpy(slices) + u) / self.num_read).float()
        uniform = torch.from_numpy(np.stack([rng.random(cfg.data.i2t_length, np.float32) for rng in rngs]))
        input_ids = torch.stack([row.input_ids for row in rows])
        masks = [row.answer_mask for row in rows]
        answer_mask = torch.stack([mask for mask in masks if mask is not None])
        noisy_ids = masked.mask_tokens(
            input_ids, answer_mask, t, mask_token_id=self.codec.mask_token_id, uniform=uniform
        )
        return Read(self._pictures(half, rows, rngs, step), input_ids, answer_mask, noisy_ids, t)

    def _rows(self, half: _Half, step: int, corrupt: Counter[str]) -> list[Row]:
        return [self._row(half, step, i, corrupt) for i in half.mine]

    def _row(self, half: _Half, step: int, i: int, corrupt: Counter[str]) -> Row:
        """Sample `i` of a half; a broken one is counted and replaced by another of its source and bucket."""
        position, place = half.first + i, half.plan.place(step, i)
        shape, error = half.plan.shape(step), None
        for attempt in range(1, _MAX_ATTEMPTS + 1):
            source = half.sources[place.source]
            try:
                rng = sample_rng(self.cfg.seed, step, position)
                sample = source.sample(place.index, rng, reading=half.kind == READ)
                return self._made(half, sample, shape)
            except CorruptSample as broken_sample:
                error = broken_sample
                corrupt[broken_sample.cause] += 1
                place = half.plan.replacement(place, step, position, attempt)
        raise ValueError(
            f"{_MAX_ATTEMPTS} samples in a row could not be used, the last being {_name(half, place)}: {error}"
        )

    def _made(self, half: _Half, sample: Sample, shape: Shape) -> Row:
        if sample.picture is None and not half.may_lack_pictures:
            raise CorruptSample("no picture", "the sample has a text alone")
        picture, data = fit_sample_image(sample.picture, shape), self.cfg.data
        if half.kind == DRAW:
            return Row(picture, caption_ids(self.codec, sample, data.t2i_length, self.style))
        return Row(picture, *conversation_ids(self.codec, sample, data.i2t_length, self.style))

    def _latent_shape(self, shape: Shape) -> LatentShape:
        height, width = (side // self.facts.downsample for side in shape)
        return self.facts.channels, height, width

    def _pictures(self, half: _Half, rows: list[Row], rngs: list[np.random.Generator], step: int) -> Pictures:
        shape = half.plan.shape(step)
        noise = normals(rngs, self._latent_shape(shape)) if self.cfg.data.sample_latents else None
        is_null = torch.tensor([row.picture is None for row in rows]) if half.may_lack_pictures else None
        return stack_images(rows, shape, self._latent_shape(shape), half.is_cached, noise, is_null)


def _num_micro_batches(cfg: DualRun, num_ranks: int, num_t2i: int, num_read: int) -> int:
    size, micro = cfg.global_batch_size, cfg.micro_batch_size
    if size < 1 or (micro is not None and micro < 1):
        raise ValueError(f"global_batch_size={size} and micro_batch_size={micro} must be at least 1")
    num_micro = 1 if micro is None else -(-size // (num_ranks * micro))
    if num_t2i % (num_ranks * num_micro) or num_read % (num_ranks * num_micro):
        raise ValueError(
            f"a global batch of {num_t2i} pictures to draw and {num_read} to read cannot be shared equally by "
            f"{num_ranks} ranks with {num_micro} micro-batches each (global_batch_size={size}, "
            f"micro_batch_size={micro}, objective.i2t_fraction={cfg.objective.i2t_fraction})"
        )
    return num_micro


def _shapes(cfg: DualRun, facts: ImageFacts) -> list[Shape]:
    unit = facts.downsample * cfg.model.patch_size
    shapes = bucket_shapes(cfg.data.image_size, cfg.data.num_buckets, unit)
    largest = cfg.model.pos_embed_max_size * unit
    if max(max(shape) for shape in shapes) > largest:
        raise ValueError(
            f"data.image_size={cfg.data.image_size} with data.num_buckets={cfg.data.num_buckets} has sides of up to "
            f"{max(max(shape) for shape in shapes)} pixels, but the model's positions end at {largest}"
        )
    return shapes


def _open_one(
    cfg: SourceConfig, open_with: Callable[[SourceConfig], Source], facts: ImageFacts, with_features: bool
) -> Source:
    source = open_with(cfg)
    if cfg.latents is None:
        return source
    return CachedSource(source, cfg, LatentFolder(cfg.latents), with_features=with_features)


def _all_cached(sources: Sequence[OpenSource], name: str, facts: ImageFacts, shapes: list[Shape]) -> bool:
    """Whether the sources bring cached latents, all or none, and of this run's pictures and autoencoder."""
    cached = [source.latents for source, _ in sources if isinstance(source, CachedSource)]
    if cached and len(cached) < len(sources):
        raise ValueError(
            f"either all sources of {name} have cached latents or none: {len(cached)} of {len(sources)} have"
        )
    for latents in cached:
        _check_latents(latents, facts, shapes)
    return bool(cached)


def _check_latents(latents: LatentFolder, facts: ImageFacts, shapes: list[Shape]) -> None:
    info = latents.info
    if facts.fingerprint not in (None, info.autoencoder) or facts.channels != info.channels:
        raise ValueError(f"the latents in {latents.folder} were made with another autoencoder")
    if info.shapes != shapes:
        found, wanted = (" ".join(f"{w}x{h}" for h, w in list_) for list_ in (info.shapes, shapes))
        raise ValueError(
            f"the latents in {latents.folder} are of pictures of {found}, but the run wants {wanted}"
        )


def _name(half: _Half, place: Place) -> str:
    return half.sources[place.source].name(place.index)


class HeldOutSamples(NamedTuple):
    """The fixed samples by which a run is watched, n of them, cut to squares; modes, not samples, of their latents.

    prompt_ids (n, t2i_length) and caption_texts (n, i2t_length) are of the captions, turn_texts of the conversations;
    where has_caption or has_question (n,) is False these rows mean nothing.
    """

    pictures: Pictures
    prompt_ids: Tensor
    captions: list[str | None]
    has_caption: Tensor
    caption_texts: TokenizedPrompt
    turn_texts: TokenizedPrompt
    conversations: list[tuple[Turn, ...]]
    has_question: Tensor


def held_out_samples(
    cfg: DualRun,
    codec: TextCodec,
    facts: ImageFacts,
    *,
    open_with: Callable[[SourceConfig], Source] = open_source,
) -> HeldOutSamples:
    """`report.num_held_out` samples of `data.held_out`, the same ones whatever the run's seed.

    Raises:
        ValueError: if there is no usable sample among those tried.
    """
    data = cfg.data
    unit = facts.downsample * cfg.model.patch_size
    side = data.image_size // unit * unit
    shapes = [(side, side)]
    sources = [(_open_one(source, open_with, facts, False), source) for source in data.held_out]
    is_cached = _all_cached(sources, "data.held_out", facts, shapes)
    count = min(cfg.report.num_held_out, sum(len(source) for source, _ in sources))
    plan = HalfBatches([(s, c.weight) for s, c in sources], count, shapes=shapes, seed=0, stream=READ)
    places = dict.fromkeys(plan.place(0, i) for i in range(count))
    made = [_held_out(sources[place.source][0], place.index, cfg, codec, shapes[0]) for place in places]
    found = [entry for entry in made if entry is not None]
    if not found:
        raise ValueError(f"none of {count} samples of data.held_out could be used")
    rows = [entry.row for entry in found]
    is_null = torch.tensor([row.picture is None for row in rows])
    size = side // facts.downsample
    return HeldOutSamples(
        stack_images(
            rows, shapes[0], (facts.channels, size, size), is_cached, None, is_null if is_null.any() else None
        ),
        torch.stack([entry.row.input_ids for entry in found]),
        [entry.caption for entry in found],
        torch.tensor([entry.caption is not None for entry in found]),
        TokenizedPrompt(
            *(torch.stack(part) for part in zip(*[entry.caption_text for entry in found], strict=True))
        ),
        TokenizedPrompt(
            *(torch.stack(part) for part in zip(*[entry.turn_text for entry in found], strict=True))
        ),
        [entry.turns for entry in found],
        torch.tensor([any(question is not None for question, _ in entry.turns) for entry in found]),
    )


class _HeldOut(NamedTuple):
    """One held-out sample; the texts that it has not are stood in for."""

    row: Row
    caption: str | None
    caption_text: tuple[Tensor, Tensor]
    turns: tuple[Turn, ...]
    turn_text: tuple[Tensor, Tensor]


def _held_out(source: Source, index: int, cfg: DualRun, codec: TextCodec, shape: Shape) -> _HeldOut | None:
    """Sample `index` with all the texts that it has; None if it has none, or is broken."""
    data, style = cfg.data, STYLES[cfg.prompts]
    nothing = prompts.empty_prompt(codec, 1, data.t2i_length, style=style)[0]
    no_text = prompts.training_caption(codec, [""], data.i2t_length, style=style)
    drawn = read = None
    text = turn_text = (no_text.input_ids[0], no_text.answer_mask[0])
    with contextlib.suppress(CorruptSample):
        sample = source.sample(index, sample_rng(0, 0, index), reading=False)
        nothing = caption_ids(codec, sample, data.t2i_length, style)
        as_text = sample._replace(turns=(Turn(None, sample.caption or ""),))
        text, drawn = conversation_ids(codec, as_text, data.i2t_length, style), sample
    with contextlib.suppress(CorruptSample):
        sample = source.sample(index, sample_rng(0, 0, index), reading=True, with_picture=drawn is None)
        turn_text, read = conversation_ids(codec, sample, data.i2t_length, style), sample
    first = drawn or read
    if first is None:
        return None
    row = Row(fit_sample_image(first.picture, shape), nothing)
    return _HeldOut(row, drawn.caption if drawn else None, text, read.turns if read else (), turn_text)
