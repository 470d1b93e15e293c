"""Latents of a whole source (and a teacher's features of it), made once and shared by several processes."""

import os
import random
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from ddit.config.runs import LatentsRun, save_config
from ddit.data.buckets import Shape, assign_buckets, bucket_shapes
from ddit.data.latents import CORRUPT, NO_IMAGE, LatentsInfo, describe_source, write_shard
from ddit.data.samples import CorruptSample, Latents, Sample, Source, read_sample
from ddit.data.sources import open_source
from ddit.data.views import make_view
from ddit.devices import Ranks, find_dtype
from ddit.model.folders import resolve
from ddit.model.loading import load_image_codec
from ddit.train.batch import fit_sample_image
from ddit.train.loader import closing_workers, make_ahead
from ddit.world.detector import DetectorNet, load_detector

_MOST_TRIED = 8  # samples of one image, of which some may have no usable text
_WORTH_PROCESSES = 2000  # samples; starting a process takes as long as reading some hundreds


@torch.no_grad()
def teacher_features(net: DetectorNet, pixels: Tensor, side: int) -> Tensor:
    """The teacher's view of clean pixels (B, 3, H, W), averaged to one vector an image token: (B, F, side, side)."""
    return F.adaptive_avg_pool2d(net.features(pixels), side).float()


class _Chunk(NamedTuple):
    """Consecutive samples as a worker hands them over.

    `buckets`: of each sample, or why it has none; `pixels`: of each bucket, uint8 (n, 3, H, W); `corrupt`: reasons by
    place. (One tensor a bucket: each that a worker sends takes an open file.)
    """

    buckets: list[int]
    pixels: dict[int, Tensor]
    corrupt: dict[int, str]


class _Encoder:
    """A chunk -> latents (and features) in float16, with their places; each bucket is one batch."""

    def __init__(self, cfg: LatentsRun, device: torch.device) -> None:
        self.device = device
        self.codec = load_image_codec(
            resolve(cfg.vae), dtype=find_dtype(cfg.compute_dtype, device), device=device
        )
        if device.type == "cuda":
            self.codec.to(memory_format=torch.channels_last)  # which convolutions are quicker in
        self.teacher = load_detector(Path(cfg.teacher), classes=None).to(self.device) if cfg.teacher else None
        self.image_size, self.side = cfg.image_size, cfg.feature_side

    def features_shape(self) -> list[int] | None:
        if self.teacher is None:
            return None
        blank = torch.zeros(1, 3, self.image_size, self.image_size, device=self.device)
        return list(teacher_features(self.teacher, blank, self.side).shape[1:])

    def __call__(self, chunk: _Chunk) -> Iterator[tuple[int, Latents]]:
        for bucket, pixels in chunk.pixels.items():
            mean, std = (part.to("cpu", torch.float16) for part in self.codec.encode_distribution(pixels))
            features: Tensor | None = None
            if self.teacher is not None:
                shown = pixels.to(self.device).float() / 127.5 - 1
                features = teacher_features(self.teacher, shown, self.side).to("cpu", torch.float16)
            places = (place for place, own in enumerate(chunk.buckets) if own == bucket)
            for row, place in enumerate(places):
                yield place, Latents(mean[row], std[row], None if features is None else features[row])


def precompute(cfg: LatentsRun, ranks: Ranks, *, num_workers: int | None = None) -> Path:
    """Makes the shards that are missing in `cfg.out`, and returns when all are there.

    Each rank takes every n-th shard. Shards are written atomically, so that an interrupted run goes on where it
    stopped. `num_workers` processes of each rank read and decode [default: one a core].

    Raises:
        ValueError: in one line, for a source or an autoencoder that cannot be read, or a folder of other latents;
            as `WorkerError`, for what was raised in one of the processes.
    """
    out = Path(cfg.out)
    source = open_source(replace(cfg.source, part="all"))  # any part of it can use these latents
    encoder = _Encoder(cfg, ranks.device)
    owners = _owners(source) if cfg.by_image else None
    info = _describe(cfg, len(source) if owners is None else len(owners), encoder)
    info.write(out)
    if ranks.is_first:
        save_config(cfg, out)
    shards = [shard for shard in info.missing(out) if shard % ranks.size == ranks.index]
    if num_workers is None:
        share = (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        num_workers = min(share - 1, 8) if len(shards) * cfg.shard_size >= _WORTH_PROCESSES else 0
    images = _Images(source, info, shards, cfg.batch_size, owners)
    making = make_ahead(images.__getitem__, range(len(images)), num_workers)
    bar = tqdm(
        total=len(shards),
        desc="latents",
        unit="shard",
        file=sys.stderr,
        leave=False,
        disable=None if ranks.is_first else True,
    )
    with bar, closing_workers(making) as chunks:
        for shard in _encode_shards(images, chunks, encoder):
            write_shard(out, *shard)
            bar.update()
    while info.missing(out):  # the other ranks' shards; longer than a barrier would wait
        time.sleep(0.2)
    return out


def _describe(cfg: LatentsRun, num_samples: int, encoder: _Encoder) -> LatentsInfo:
    if cfg.teacher and cfg.num_buckets > 1:
        raise ValueError("a teacher's features need num_buckets=1")
    codec = encoder.codec
    return LatentsInfo(
        source=describe_source(cfg.source),
        num_samples=num_samples,
        shard_size=cfg.shard_size,
        image_size=cfg.image_size,
        num_buckets=cfg.num_buckets,
        shapes=bucket_shapes(cfg.image_size, cfg.num_buckets, cfg.bucket_unit),
        channels=codec.channels,
        downsample=codec.downsample,
        autoencoder=codec.fingerprint(),
        teacher=cfg.teacher,
        features_shape=encoder.features_shape(),
        num_views=cfg.num_views,
        mirror=cfg.mirror and cfg.num_views > 1,
        by_image=cfg.by_image,
    )


def _owners(source: Source) -> list[np.ndarray]:
    """Of each distinct image, in order of their digests, the first few samples that have it."""
    digests = source.digests()
    order = np.argsort(digests, kind="stable")
    starts = np.flatnonzero(np.diff(digests[order], prepend=digests[order[:1]] + np.uint64(1)))
    return [part[:_MOST_TRIED] for part in np.split(order, starts[1:])]


class _Images:
    """Item i is a chunk of consecutive samples of one shard; `places` tells which."""

    def __init__(
        self,
        source: Source,
        info: LatentsInfo,
        shards: list[int],
        chunk_size: int,
        owners: list[np.ndarray] | None = None,
    ) -> None:
        self.owners = owners
        self.source, self.info, self.shapes = source, info, info.shapes
        self._last: tuple[int, Sample] | None = None  # of whose views one follows another
        self.buckets = assign_buckets(source.sizes(), info.shapes) if len(info.shapes) > 1 else None
        if self.buckets is not None and owners is not None:
            self.buckets = self.buckets[[own[0] for own in owners]]
        self.places: list[tuple[int, range]] = []
        for shard in shards:
            end = min((shard + 1) * info.shard_size, info.num_entries)
            for first in range(shard * info.shard_size, end, chunk_size):
                self.places.append((shard, range(first, min(first + chunk_size, end))))

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, number: int) -> _Chunk:
        buckets: list[int] = []
        pixels: dict[int, list[Tensor]] = {}
        corrupt: dict[int, str] = {}
        for place, entry in enumerate(self.places[number][1]):
            index, view = divmod(entry, self.info.num_views)
            bucket = 0 if self.buckets is None else int(self.buckets[index])
            try:
                made = self._view(index, view, self.shapes[bucket])
                if made is None:
                    bucket = NO_IMAGE
                else:
                    pixels.setdefault(bucket, []).append(made)
            except CorruptSample as error:
                bucket = CORRUPT
                corrupt[place] = str(error)
            buckets.append(bucket)
        return _Chunk(buckets, {bucket: torch.stack(rows) for bucket, rows in pixels.items()}, corrupt)

    def _view(self, index: int, view: int, shape: Shape) -> Tensor | None:
        """A view of a sample's image, (3, H, W); None if it has none."""
        if self._last is None or self._last[0] != index:
            self._last = index, self._sample(index)
        image = self._last[1].image
        if view > 0 and isinstance(image, Image.Image):
            image = make_view(image, *shape, view=view, mirror=self.info.mirror, seed=index)
        made = fit_sample_image(image, shape)
        assert not isinstance(made, Latents), "a source gives images, or none"
        return made

    def _sample(self, index: int) -> Sample:
        """A sample with this image, in whichever way it can be used: some have no caption, some no text to read."""
        fault = CorruptSample("no sample", "")
        for owner in (index,) if self.owners is None else self.owners[index].tolist():
            for i2t in (True, False):
                try:
                    return read_sample(self.source, owner, random.Random(0), i2t=i2t)
                except CorruptSample as error:
                    fault = error if i2t else fault
        raise fault


def _encode_shards(
    images: _Images, chunks: Iterable[_Chunk], encoder: _Encoder
) -> Iterator[tuple[int, np.ndarray, dict[int, Latents], dict[int, str]]]:
    """Whole shards: (shard, bucket of each sample, latents by place, reasons by place)."""
    buckets: list[int] = []
    latents: dict[int, Latents] = {}
    corrupt: dict[int, str] = {}
    for number, chunk in enumerate(chunks):
        offset = len(buckets)
        latents |= {offset + place: found for place, found in encoder(chunk)}
        corrupt |= {offset + place: reason for place, reason in chunk.corrupt.items()}
        buckets += chunk.buckets
        shard = images.places[number][0]
        if number + 1 == len(images) or images.places[number + 1][0] != shard:
            yield shard, np.array(buckets, dtype=np.int64), latents, corrupt
            buckets, latents, corrupt = [], {}, {}
