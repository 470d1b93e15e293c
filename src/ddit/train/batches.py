"""Global batch k of a run as tensors: a pure function of (seed, k), which leaves nothing random to the step."""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Self

import numpy as np
import torch
from torch.utils.data import Dataset

from ddit import prompts
from ddit.config.data import LlavaData, SourceConfig, TextData
from ddit.config.runs import DualRun, settled
from ddit.data.buckets import Shape, bucket_shapes
from ddit.data.latents import CachedSource, LatentFolder
from ddit.data.mixture import HalfBatches, Place
from ddit.data.sampler import noise_rng, sample_rng
from ddit.data.samples import CorruptSample, Sample, Source, read_sample
from ddit.data.sources import find_left_out, open_source
from ddit.devices import Ranks
from ddit.diffusion import flow, masked
from ddit.diffusion.blocks import block_times
from ddit.model import DualDiTConfig
from ddit.model.encoders import ImageCodec, TextCodec
from ddit.model.text_blocks import last_answer, text_blocks
from ddit.train.batch import (
    STYLES,
    Batch,
    I2TBatch,
    Images,
    LatentShape,
    Row,
    T2IBatch,
    caption_ids,
    conversation_ids,
    fit_sample_image,
    is_caption_cut,
    is_conversation_cut,
    latents_of,
    padded_lengths,
    sample_noise,
    split,
    stack_images,
)

T2I, I2T = 0, 1
"""Streams of random numbers (see `HalfBatches`)."""

_MAX_ATTEMPTS = 100

OpenSource = tuple[Source, SourceConfig]
Opener = Callable[[SourceConfig], Source]


class ImageFacts(NamedTuple):
    """What batches depend on of the autoencoder: a loader's process has no use for its weights."""

    channels: int
    downsample: int
    fingerprint: str | None = None

    @classmethod
    def of(cls, codec: ImageCodec) -> Self:
        return cls(codec.channels, codec.downsample, codec.fingerprint())

    def latent_shape(self, shape: Shape) -> LatentShape:
        """Of the latents of images of a shape in pixels."""
        height, width = (side // self.downsample for side in shape)
        return self.channels, height, width


class _Half:
    """The sources of the t2i or the i2t half of every global batch, and which of its samples are this rank's.

    plan: of the half's images. first: position in the global batch of the half's first sample. texts: of an image.
    """

    def __init__(
        self,
        stream: int,
        sources: Sequence[OpenSource],
        plan: HalfBatches,
        first: int,
        mine: range,
        texts: int,
    ) -> None:
        self.stream, self.plan, self.first, self.mine, self.texts = stream, plan, first, mine, texts
        self.sources = [source for source, _ in sources]
        # Null images change what a step computes, so all ranks must expect them in the same halves.
        self.may_lack_images = stream == I2T and any(
            isinstance(cfg, LlavaData | TextData) for _, cfg in sources
        )
        self.is_cached = any(isinstance(source, CachedSource) for source in self.sources)


class _Rows(NamedTuple):
    """This rank's samples of a half of one global batch, their generators, and the shape of their images in pixels."""

    rows: list[Row]
    rngs: list[np.random.Generator]
    shape: Shape

    @property
    def num_cut(self) -> int:
        return sum(row.is_cut for row in self.rows)


class StepData(Dataset[list[Batch]]):
    """Item `step` is the list of this rank's micro-batches of global batch `step`.

    A global batch has round(B * i2t_fraction) i2t samples, and the others are t2i. Everything random about sample
    `position` (caption, dropout, times, noise, masks) comes from (seed, step, position), so that the global batch is
    the same for any number of ranks, workers and micro-batches. With several texts an image, those of one image are
    i2t samples in a row.

    Args:
        codec: its encoder is not kept.
        facts: of the autoencoder that the run uses.
        open_with: opens a source; for tests.

    Raises:
        ValueError: in one line, for settings that do not fit together.
    """

    def __init__(
        self,
        cfg: DualRun,
        codec: TextCodec,
        facts: ImageFacts,
        ranks: Ranks,
        *,
        open_with: Opener = open_source,
    ) -> None:
        self.seed, self.data, self.objective = cfg.seed, cfg.data, cfg.objective
        self.facts, self.style, self.block_size = facts, STYLES[cfg.prompts], cfg.model.text_block_size
        self.codec = codec.without_encoder()
        self.num_i2t = round(cfg.global_batch_size * cfg.objective.i2t_fraction)
        self.num_t2i = cfg.global_batch_size - self.num_i2t
        self.num_micro_batches = _num_micro_batches(cfg, ranks.size, self.num_t2i, self.num_i2t)
        if not cfg.data.t2i and (self.num_t2i or not cfg.data.i2t):
            raise ValueError("data.t2i names no source")
        self._empty_prompt = prompts.empty_prompt(self.codec, 1, self.data.t2i_length, style=self.style)[0]
        # A template that leaves no room is a fault of the settings, not of every sample.
        prompts.training_conversation(self.codec, [[("?", "?")]], self.data.i2t_length, style=self.style)
        shapes = _shapes(self.data.image_size, self.data.num_buckets, facts, cfg.model)
        t2i, i2t = self._open(open_with)
        self._t2i = self._half(T2I, t2i, shapes, self.num_t2i, ranks)
        self._i2t = self._half(I2T, i2t, shapes, self.num_i2t, ranks)

    def _open(self, open_with: Opener) -> tuple[list[OpenSource], list[OpenSource]]:
        """The sources of both halves."""
        align = self.objective.alignment_weight > 0 and self.num_t2i > 0
        t2i = open_sources(self.data.t2i, open_with, with_features=align)
        if align and not all(isinstance(source, CachedSource) for source, _ in t2i):
            raise ValueError(
                "objective.alignment_weight is above 0, which needs cached latents with a teacher's features "
                "for every source of data.t2i"
            )
        if not self.data.i2t:
            return t2i, [(s.without_features() if isinstance(s, CachedSource) else s, c) for s, c in t2i]
        return t2i, open_sources(self.data.i2t, open_with)

    def _half(
        self, stream: int, sources: list[OpenSource], shapes: list[Shape], size: int, ranks: Ranks
    ) -> _Half | None:
        if not size:
            return None
        name = "data.i2t" if stream == I2T and self.data.i2t else "data.t2i"
        is_cached = all_cached(sources, name, self.facts, shapes)
        texts = self.data.texts_per_image if stream == I2T else 1
        plan = HalfBatches(
            [(source, cfg.weight) for source, cfg in sources], size // texts, shapes=shapes, seed=self.seed,
            stream=stream, can_cut=not is_cached,
        )  # fmt: skip
        return _Half(stream, sources, plan, 0 if stream == T2I else self.num_t2i, ranks.part(size), texts)

    def left_out(self) -> Iterator[tuple[str, str, int]]:
        """What sources hold and no sample uses: the name of a source's first sample, the cause, and the number."""
        halves = [half.sources for half in (self._t2i, self._i2t) if half is not None]
        plain = [s.source if isinstance(s, CachedSource) else s for sources in halves for s in sources]
        for source in {id(source): source for source in plain}.values():
            for cause, left_out in find_left_out(source).items():
                yield source.name(0), cause, left_out.num

    def __getitem__(self, step: int) -> list[Batch]:
        return split(self.rank_batch(step), self.num_micro_batches)

    def rank_batch(self, step: int) -> Batch:
        """This rank's whole part of global batch `step`; `ValueError` if no usable sample can be found."""
        corrupt: Counter[str] = Counter()
        t2i = i2t = None
        num_cut = 0
        if self._t2i is not None:
            made = self._rows(self._t2i, step, corrupt)
            t2i, num_cut = self._t2i_batch(self._t2i, made), num_cut + made.num_cut
        if self._i2t is not None:
            made = self._rows(self._i2t, step, corrupt)
            i2t, num_cut = self._i2t_batch(self._i2t, step, made), num_cut + made.num_cut
        return Batch(t2i, i2t, dict(corrupt), num_cut)

    def _t2i_batch(self, half: _Half, made: _Rows) -> T2IBatch:
        dropped = torch.tensor([rng.random() < self.objective.caption_dropout for rng in made.rngs])
        normal = torch.tensor([rng.standard_normal() for rng in made.rngs], dtype=torch.float32)
        prompt_ids = torch.stack([row.input_ids for row in made.rows])
        features = None
        if self.objective.alignment_weight > 0:
            features = torch.stack([latents_of(row).features for row in made.rows])  # type: ignore[arg-type]
        noise = sample_noise(made.rngs, self.facts.latent_shape(made.shape))
        return T2IBatch(
            self._images(half, made),
            torch.where(dropped[:, None], self._empty_prompt, prompt_ids),
            flow.time_of_normal(normal, self.objective.flow.at_size(math.prod(made.shape))),
            noise,
            features,
        )

    def _i2t_batch(self, half: _Half, step: int, made: _Rows) -> I2TBatch:
        # Times are stratified over the half. Which sample gets which slice is permuted, so that no rank always has the
        # late ones, which have the most masked tokens.
        slices = np.random.default_rng([self.seed, step]).permutation(self.num_i2t)[half.mine]
        u = torch.tensor([rng.random() for rng in made.rngs], dtype=torch.float64)
        u = (torch.from_numpy(slices) + u) / self.num_i2t
        uniform = np.stack([rng.random(self.data.i2t_length, np.float32) for rng in made.rngs])
        input_ids = torch.stack([row.input_ids for row in made.rows])
        answer_mask = torch.stack([row.answer_mask for row in made.rows if row.answer_mask is not None])
        all_masked = self.objective.text.all_masked_share
        t = masked.time_of_uniform(u, all_masked).float()
        if self.block_size:
            answer_mask = last_answer(answer_mask)
            t = block_times(u, text_blocks(answer_mask, self.block_size), all_masked).float()
        noisy_ids = masked.mask_tokens(
            input_ids,
            answer_mask,
            t,
            mask_token_id=self.codec.mask_token_id,
            uniform=torch.from_numpy(uniform),
        )
        if share := self.objective.text.wrong_share:
            uniform = np.stack(
                [rng.random((2, self.data.i2t_length), np.float32) for rng in made.rngs], axis=1
            )
            noisy_ids = masked.replace_tokens(
                noisy_ids, input_ids, answer_mask, share, mask_token_id=self.codec.mask_token_id,
                uniform=torch.from_numpy(uniform),
            )  # fmt: skip
        lengths = None
        if self.data.i2t_lengths:
            lengths = padded_lengths(input_ids, self.data.i2t_lengths, self.codec.eos_token_id)
            answer_mask = answer_mask & (torch.arange(input_ids.shape[1]) < lengths[:, None])
        return I2TBatch(self._images(half, made), input_ids, answer_mask, noisy_ids, t, lengths=lengths)

    def _rows(self, half: _Half, step: int, corrupt: Counter[str]) -> _Rows:
        shape = half.plan.shape(step)
        rows = [
            row
            for i in half.mine[:: half.texts]
            for row in self._rows_of_image(half, step, i, shape, corrupt)
        ]
        return _Rows(rows, [noise_rng(self.seed, step, half.first + i) for i in half.mine], shape)

    def _rows_of_image(
        self, half: _Half, step: int, i: int, shape: Shape, corrupt: Counter[str]
    ) -> list[Row]:
        """Sample `i` of a half, and those after it that share its image.

        A corrupt one is counted, and the image replaced by another of its source and bucket.
        """
        place, position, error = half.plan.place(step, i // half.texts), half.first + i, None
        for attempt in range(1, _MAX_ATTEMPTS + 1):
            try:
                return [self._row(half, step, place, position + k, shape) for k in range(half.texts)]
            except CorruptSample as corrupt_sample:
                error = corrupt_sample
                corrupt[corrupt_sample.cause] += 1
                place = half.plan.replacement(place, step, position, attempt)
        name = half.sources[place.source].name(place.index)
        raise ValueError(
            f"{_MAX_ATTEMPTS} samples in a row could not be used, the last being {name}: {error}"
        )

    def _row(self, half: _Half, step: int, place: Place, position: int, shape: Shape) -> Row:
        rng = sample_rng(self.seed, step, position)
        sample = read_sample(half.sources[place.source], place.index, rng, i2t=half.stream == I2T)
        if half.stream == I2T and self.block_size and len(sample.turns) > 1:
            # In blocks one answer of a conversation is trained, behind the earlier turns (`last_answer`).
            sample = sample._replace(turns=sample.turns[: rng.randint(1, len(sample.turns))])
        return self._make_row(half, sample, shape)

    def _make_row(self, half: _Half, sample: Sample, shape: Shape) -> Row:
        if sample.image is None and not half.may_lack_images:
            raise CorruptSample("no image", "the sample has only text")
        image = fit_sample_image(sample.image, shape)
        codec, style = self.codec, self.style
        if half.stream == T2I:
            ids = caption_ids(codec, sample, self.data.t2i_length, style)
            return Row(image, ids, is_cut=is_caption_cut(codec, sample, ids, style))
        ids, mask = conversation_ids(codec, sample, self.data.i2t_length, style)
        return Row(image, ids, mask, is_conversation_cut(codec, sample, ids, mask, style))

    def _images(self, half: _Half, made: _Rows) -> Images:
        latent_shape = self.facts.latent_shape(made.shape)
        rows, rngs = made.rows[:: half.texts], made.rngs[:: half.texts]
        noise = sample_noise(rngs, latent_shape) if self.data.sample_latents else None
        is_null = torch.tensor([row.image is None for row in rows]) if half.may_lack_images else None
        return stack_images(rows, made.shape, latent_shape, half.is_cached, noise, is_null)


def _num_micro_batches(cfg: DualRun, num_ranks: int, num_t2i: int, num_i2t: int) -> int:
    size, micro = cfg.global_batch_size, settled(cfg.micro_batch_size)
    num_micro = 1 if micro is None else -(-size // (num_ranks * micro))
    texts = cfg.data.texts_per_image
    if num_t2i % (num_ranks * num_micro) or num_i2t % (num_ranks * num_micro * texts):
        raise ValueError(
            f"a global batch of {num_t2i} t2i and {num_i2t} i2t samples cannot be shared equally by "
            f"{num_ranks} ranks with {num_micro} micro-batches each (global_batch_size={size}, "
            f"micro_batch_size={micro}, objective.i2t_fraction={cfg.objective.i2t_fraction}, "
            f"data.texts_per_image={texts})"
        )
    return num_micro


def _shapes(image_size: int, num_buckets: int, facts: ImageFacts, model: DualDiTConfig) -> list[Shape]:
    unit = facts.downsample * model.patch_size
    shapes = bucket_shapes(image_size, num_buckets, unit)
    largest, found = model.pos_embed_max_size * unit, max(max(shape) for shape in shapes)
    if found > largest:
        raise ValueError(
            f"data.image_size={image_size} with data.num_buckets={num_buckets} has sides of up to {found} pixels, "
            f"but the model's positions end at {largest}"
        )
    return shapes


# --- sources ---


def open_sources(
    configs: Sequence[SourceConfig], open_with: Opener, *, with_features: bool = False
) -> list[OpenSource]:
    """The sources with their configurations; those that name latents give these (and a teacher's features)."""
    opened: list[OpenSource] = []
    for cfg in configs:
        source = open_with(cfg)
        if cfg.latents is not None:
            source = CachedSource(source, cfg, LatentFolder(cfg.latents), with_features=with_features)
        opened.append((source, cfg))
    return opened


def all_cached(sources: Sequence[OpenSource], name: str, facts: ImageFacts, shapes: list[Shape]) -> bool:
    """Whether the sources bring cached latents, all or none, of images of these shapes by this run's autoencoder.

    Text alone has no images, and goes with either.

    Raises:
        ValueError: in one line, if only some do, or if the latents do not fit.
    """
    cached = [source.latents for source, _ in sources if isinstance(source, CachedSource)]
    num_wanted = sum(isinstance(s, CachedSource) or not isinstance(cfg, TextData) for s, cfg in sources)
    if cached and len(cached) < num_wanted:
        raise ValueError(
            f"either all sources of {name} have cached latents or none: {len(cached)} of {num_wanted} have"
        )
    for latents in cached:
        info = latents.info
        if facts.fingerprint not in (None, info.autoencoder) or facts.channels != info.channels:
            raise ValueError(f"the latents in {latents.folder} were made with another autoencoder")
        if info.shapes != shapes:
            found, wanted = (" ".join(f"{w}x{h}" for h, w in list_) for list_ in (info.shapes, shapes))
            raise ValueError(
                f"the latents in {latents.folder} are of images of {found}, but the run wants {wanted}"
            )
    return bool(cached)
