"""Cached latents: the autoencoder's (and a teacher's) work on every image of a source, done once.

A folder with `latents.json`, which says what it was made from, and shards `latents-00000.safetensors` of `shard_size`
consecutive samples. A shard holds, for each bucket B, `mean.B` and `std.B` (n, C, h, w) and with a teacher `features.B`
(n, F, h', w'), all float16, the samples in order, and `bucket` (shard_size,), the bucket of each: -1 has no image, -2
is corrupt (for the reason in the shard's metadata).
"""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import random
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ddit.config.data import SourceConfig
from ddit.data.buckets import Shape
from ddit.data.parts import PartSource
from ddit.data.samples import CorruptSample, Latents, Sample, Source, SourceError
from ddit.data.views import is_mirrored_view, names_a_side
from ddit.files import write_atomically

NO_IMAGE, CORRUPT = -1, -2
_DESCRIPTION = "latents.json"
_MAX_OPEN_SHARDS = 256
_NUM_FOR_STATISTICS = 2000
_TEXT_KEYS = {
    "weight", "latents", "question_fraction", "caption_key", "original_key", "original_share", "question_key",
    "answer_key", "annotations", "unanswerable", "templates", "question_templates", "text_key",
    "part", "held_out_share", "wordings", "detailed_fraction", "conversation_fraction", "small_talk_fraction",
    "detailed_prompt_fraction", "question_emphasis", "plain_descriptions",
}  # fmt: skip
"""Settings of a source that change its texts or choose samples: the latents of its images stay good."""
_NOT_IN_0_1 = {"image_key": "image"}
"""Settings that latents of version 0.1 may not name, and what they were (LLaVA's form)."""


@dataclasses.dataclass(frozen=True)
class LatentsInfo:
    """What a folder of latents was made from and how it is laid out: `latents.json`.

    With `by_image` the samples are the source's distinct images, in order of their digests. Sample i has `num_views`
    entries from i * `num_views` on, and `shard_size` counts entries. `shapes` are the images' heights and widths in
    pixels by bucket, `autoencoder` its fingerprint (see `encoders.ImageCodec`).
    """

    source: dict[str, Any]
    num_samples: int
    shard_size: int
    image_size: int
    num_buckets: int
    shapes: list[Shape]
    channels: int
    downsample: int
    autoencoder: str
    teacher: str | None = None
    features_shape: list[int] | None = None
    num_views: int = 1
    mirror: bool = False
    by_image: bool = False

    @property
    def num_entries(self) -> int:
        return self.num_samples * self.num_views

    @property
    def num_shards(self) -> int:
        return -(-self.num_entries // self.shard_size)

    def write(self, folder: Path) -> None:
        """Creates the folder, or finds one of the same description; another one is a `ValueError`."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / _DESCRIPTION
        text = json.dumps(dataclasses.asdict(self), indent=2) + "\n"
        if path.exists():
            if dataclasses.asdict(self.read(folder)) != dataclasses.asdict(self):
                raise ValueError(
                    f"{folder} holds latents made with other settings: remove it or choose another folder"
                )
            return
        with write_atomically(path) as part:
            part.write_text(text)

    @classmethod
    def read(cls, folder: Path) -> LatentsInfo:
        path = folder / _DESCRIPTION
        if not path.is_file():
            raise ValueError(
                f"{folder} holds no latents ({_DESCRIPTION} is missing): run ddit data precompute first"
            )
        try:
            values = json.loads(path.read_text())
            return cls(**{**values, "shapes": [(height, width) for height, width in values["shapes"]]})
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path} cannot be read: {error}") from None

    def missing(self, folder: Path) -> list[int]:
        """The shards that are still to be made."""
        found = {entry.name for entry in os.scandir(folder)}
        return [shard for shard in range(self.num_shards) if shard_path(folder, shard).name not in found]


def describe_source(cfg: SourceConfig) -> dict[str, Any]:
    """The settings of a source on which its images depend."""
    values = dataclasses.asdict(cfg)
    return json.loads(json.dumps({key: value for key, value in values.items() if key not in _TEXT_KEYS}))


def shard_path(folder: Path, shard: int) -> Path:
    return folder / f"latents-{shard:05d}.safetensors"


def write_shard(
    folder: Path, shard: int, buckets: np.ndarray, entries: Mapping[int, Latents], corrupt: Mapping[int, str]
) -> None:
    """Writes one shard; `entries` are its images by place in the shard, and `corrupt` what is wrong with others."""
    tensors: dict[str, Tensor] = {"bucket": torch.from_numpy(buckets.astype(np.int16))}
    for bucket in sorted(set(buckets[buckets >= 0].tolist())):
        own = [entries[int(place)] for place in np.flatnonzero(buckets == bucket)]
        for name in ("mean", "std", "features"):
            parts = [getattr(entry, name) for entry in own]
            if parts[0] is not None:
                tensors[f"{name}.{bucket}"] = torch.stack(parts).to(torch.float16).contiguous()
    metadata = {"corrupt": json.dumps({str(place): reason for place, reason in corrupt.items()})}
    with write_atomically(shard_path(folder, shard)) as part:
        save_file(tensors, part, metadata)


class _Shard(NamedTuple):
    """An open shard; the tensors are mapped from the file, so that a row is read when it is touched."""

    buckets: list[int]
    rows: list[int]
    tensors: dict[str, Tensor]
    corrupt: dict[str, str]


class LatentFolder:
    """Map-style reader. It opens shards as they are needed, keeps them open, and can be sent to other processes.

    Raises `ValueError` in one line for a folder without latents, or with shards missing.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.info = LatentsInfo.read(self.folder)
        missing = self.info.missing(self.folder)
        if missing:
            raise ValueError(
                f"{self.folder}: {len(missing)} of {self.info.num_shards} shards of latents are missing "
                f"(the first is {shard_path(self.folder, missing[0]).name}): run ddit data precompute to its end"
            )
        self._shards: OrderedDict[int, _Shard] = OrderedDict()
        self._statistics: tuple[Tensor, Tensor] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_shards": OrderedDict()}

    def __len__(self) -> int:
        return self.info.num_samples

    def _shard(self, number: int) -> _Shard:
        if number in self._shards:
            self._shards.move_to_end(number)
            return self._shards[number]
        path = shard_path(self.folder, number)
        try:
            with safe_open(path, "pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                metadata = file.metadata() or {}
        except (OSError, SafetensorError) as error:
            raise SourceError(f"{path} cannot be read ({error}): remove it and precompute it again") from None
        stored = metadata.get("corrupt") or metadata.get("broken", "{}")  # the key of version 0.1
        buckets = tensors.pop("bucket").numpy()
        rows = np.zeros(len(buckets), dtype=np.int64)
        for bucket in np.unique(buckets):
            rows[buckets == bucket] = np.arange((buckets == bucket).sum())
        shard = _Shard(buckets.tolist(), rows.tolist(), tensors, json.loads(stored))
        self._shards[number] = shard
        if len(self._shards) > _MAX_OPEN_SHARDS:
            self._shards.popitem(last=False)
        return shard

    def get(self, index: int, view: int = 0) -> Latents | None:
        """Latents of a view of sample `index` in float16, features as they were saved; None: it has no image.

        Raises:
            CorruptSample: if its image could not be read when the latents were made.
        """
        number, place = divmod(index * self.info.num_views + view, self.info.shard_size)
        shard = self._shard(number)
        bucket, row = shard.buckets[place], shard.rows[place]
        if bucket == CORRUPT:
            cause, _, detail = shard.corrupt[str(place)].partition(": ")
            raise CorruptSample(cause, detail)
        if bucket == NO_IMAGE:
            return None
        features = shard.tensors.get(f"features.{bucket}")
        return Latents(
            shard.tensors[f"mean.{bucket}"][row],
            shard.tensors[f"std.{bucket}"][row],
            None if features is None else features[row],
        )

    def standardize(self, features: Tensor) -> Tensor:
        """Features (F, h, w) with mean 0 and deviation 1 a channel over the first samples, in float32.

        The alignment loss is to learn how images differ, not what all of them share.
        """
        if self._statistics is None:
            num_shards = -(-min(_NUM_FOR_STATISTICS, len(self)) // self.info.shard_size)
            stored = [self._shard(number).tensors for number in range(num_shards)]
            parts = [t for tensors in stored for name, t in tensors.items() if name.startswith("features")]
            sample = torch.cat(parts)[:_NUM_FOR_STATISTICS].float()
            std, mean = torch.std_mean(sample, dim=(0, 2, 3), correction=0, keepdim=True)
            self._statistics = mean[0], std[0] + 1e-6
        mean, std = self._statistics
        return (features.float() - mean) / std

    def sizes(self) -> np.ndarray:
        """Width and height of the cached images in pixels, (len, 2); (0, 0): no image."""
        shapes = np.array([*[(width, height) for height, width in self.info.shapes], (0, 0)])
        buckets = np.concatenate([self._shard(number).buckets for number in range(self.info.num_shards)])
        buckets = buckets[:: self.info.num_views]
        return shapes[np.where(buckets == CORRUPT, 0, buckets)]  # -1 is the last entry: no image


class CachedSource:
    """A source, or a part of one, whose images are replaced by the whole's latents; only its texts are read.

    Args:
        with_features: whether samples bring the teacher's features, standardised.

    Raises:
        ValueError: if the latents are those of another source, or have no features where they are wanted.
    """

    def __init__(
        self, source: Source, cfg: SourceConfig, latents: LatentFolder, *, with_features: bool = False
    ) -> None:
        info = latents.info
        wanted = describe_source(cfg)
        made = {key: value for key, value in _NOT_IN_0_1.items() if key in wanted} | info.source
        different = [key for key in wanted | made if wanted.get(key) != made.get(key)]
        if different:
            key = different[0]
            raise ValueError(
                f"the latents in {latents.folder} were made from another source: "
                f"{key} is {made.get(key)!r} there and {wanted.get(key)!r} here"
            )
        whole = source.source if isinstance(source, PartSource) else source
        images = np.unique(whole.digests(), return_inverse=True)[1] if info.by_image else None
        num = len(whole) if images is None else int(images.max(initial=-1)) + 1
        if num != len(latents):
            what = "samples" if images is None else "images"
            raise ValueError(
                f"the latents in {latents.folder} are of {len(latents)} {what}, but the source has {num}"
            )
        if with_features and info.features_shape is None:
            raise ValueError(f"{latents.folder} holds no teacher's features, which the alignment loss needs")
        self.source, self.latents, self.with_features = source, latents, with_features
        places = source.indices if isinstance(source, PartSource) else None
        if images is not None:
            places = images if places is None else images[places]
        self._places = places  # of samples in the latents

    def __len__(self) -> int:
        return len(self.source)

    def without_features(self) -> CachedSource:
        """The same source, sparing the work on features."""
        light = copy.copy(self)
        light.with_features = False
        return light

    def sample(self, index: int, rng: random.Random, *, i2t: bool, with_image: bool = True) -> Sample:
        place = index if self._places is None else int(self._places[index])
        sample = self.source.sample(index, rng, i2t=i2t, with_image=False)
        latents = self.latents.get(place, self._view(sample, rng)) if with_image else None
        if latents is not None:
            stored = latents.features if self.with_features else None
            features = None if stored is None else self.latents.standardize(stored)
            latents = latents._replace(features=features)
        return sample._replace(image=latents)

    def _view(self, sample: Sample, rng: random.Random) -> int:
        """Any of the image's views; with a text that tells left from right, none that is mirrored."""
        info = self.latents.info
        view = rng.randrange(info.num_views) if info.num_views > 1 else 0
        is_mirrored = info.mirror and is_mirrored_view(view)
        return view - 1 if is_mirrored and names_a_side(sample) else view

    def sizes(self) -> np.ndarray:
        sizes = self.latents.sizes()
        return sizes if self._places is None else sizes[self._places]

    def digests(self) -> np.ndarray:
        return self.source.digests()

    def name(self, index: int) -> str:
        return self.source.name(index)
