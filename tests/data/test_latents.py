import json
import pickle
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from list_source import ListSource
from safetensors import safe_open
from safetensors.torch import save_file

from ddit.config.data import JsonData, LlavaData
from ddit.data.latents import (
    CORRUPT,
    NO_IMAGE,
    CachedSource,
    LatentFolder,
    LatentsInfo,
    describe_source,
    shard_path,
    write_shard,
)
from ddit.data.samples import CorruptSample, Latents

CONFIG = JsonData("metadata.json")
BUCKETS = [0, 1, NO_IMAGE, 0, CORRUPT, 1, 0]


def info(**changes) -> LatentsInfo:
    values = {
        "source": describe_source(CONFIG), "num_samples": 7, "shard_size": 4, "image_size": 32, "num_buckets": 2,
        "shapes": [(32, 32), (16, 64)], "channels": 2, "downsample": 4, "autoencoder": "abc", "teacher": None,
        "features_shape": [3, 2, 2],
    }  # fmt: skip
    return LatentsInfo(**(values | changes))


def latents(index: int, bucket: int) -> Latents:
    shape = (2, 8, 8) if bucket == 0 else (2, 4, 16)
    generator = torch.Generator().manual_seed(index)
    features = 5 + 3 * torch.randn(3, 2, 2, generator=generator)
    return Latents(torch.full(shape, float(index)), torch.full(shape, index / 8), features)


def write(folder: Path) -> Path:
    info().write(folder)
    for shard in (0, 1):
        numbers = range(4 * shard, min(4 * shard + 4, 7))
        buckets = np.array([BUCKETS[i] for i in numbers])
        entries = {i - 4 * shard: latents(i, BUCKETS[i]) for i in numbers if BUCKETS[i] >= 0}
        corrupt = {i - 4 * shard: "not an image: torn" for i in numbers if BUCKETS[i] == CORRUPT}
        write_shard(folder, shard, buckets, entries, corrupt)
    return folder


def test_what_was_written_is_read(tmp_path: Path) -> None:
    folder = pickle.loads(pickle.dumps(LatentFolder(write(tmp_path))))
    for index, bucket in enumerate(BUCKETS):
        if bucket == CORRUPT:
            with pytest.raises(CorruptSample, match="not an image: torn") as raised:
                folder.get(index)
            assert raised.value.cause == "not an image"
        elif bucket == NO_IMAGE:
            assert folder.get(index) is None
        else:
            found, expected = folder.get(index), latents(index, bucket)
            for one, other in zip(found, expected, strict=True):
                torch.testing.assert_close(one, other.half(), rtol=0, atol=0)
    assert folder.sizes().tolist() == [[32, 32], [64, 16], [0, 0], [32, 32], [32, 32], [64, 16], [32, 32]]
    assert not list(tmp_path.glob(".*"))  # nothing is left of writing aside


def test_a_shard_of_version_0_1_is_read(tmp_path: Path) -> None:
    write(tmp_path)
    path = shard_path(tmp_path, 1)
    with safe_open(path, "pt") as file:
        tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    save_file(tensors, path, {"broken": metadata["corrupt"]})
    with pytest.raises(CorruptSample, match="not an image: torn"):
        LatentFolder(tmp_path).get(4)


def test_features_are_standardised(tmp_path: Path) -> None:
    folder = LatentFolder(write(tmp_path))
    stored = [folder.get(index) for index, bucket in enumerate(BUCKETS) if bucket >= 0]
    values = torch.stack([folder.standardize(entry.features) for entry in stored])
    assert values.mean(dim=(0, 2, 3)).abs().max() < 1e-3
    assert (values.std(dim=(0, 2, 3), correction=0) - 1).abs().max() < 1e-3


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no latents \(latents.json is missing\)"):
        LatentFolder(tmp_path)
    write(tmp_path)
    shard_path(tmp_path, 1).unlink()
    with pytest.raises(
        ValueError, match=r"1 of 2 shards of latents are missing \(the first is latents-00001"
    ):
        LatentFolder(tmp_path)


def test_a_torn_shard_is_named(tmp_path: Path) -> None:
    write(tmp_path)
    shard_path(tmp_path, 0).write_bytes(shard_path(tmp_path, 0).read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"latents-00000\.safetensors cannot be read"):
        LatentFolder(tmp_path).get(0)


def test_other_settings_do_not_overwrite(tmp_path: Path) -> None:
    info().write(tmp_path)
    info().write(tmp_path)
    with pytest.raises(ValueError, match="made with other settings"):
        info(image_size=64).write(tmp_path)
    (tmp_path / "latents.json").write_text(json.dumps({"num_samples": 3}))
    with pytest.raises(ValueError, match=r"latents\.json cannot be read"):
        LatentFolder(tmp_path)


def test_a_cached_source_gives_latents_and_never_opens_an_image(tmp_path: Path) -> None:
    folder = LatentFolder(write(tmp_path))
    inner = ListSource(7)
    cached = CachedSource(inner, CONFIG, folder)
    sample = cached.sample(5, random.Random(0), i2t=True)
    assert isinstance(sample.image, Latents)
    assert sample.image.features is None
    assert sample.turns == inner.sample(5, random.Random(0), i2t=True).turns
    with_features = CachedSource(inner, CONFIG, folder, with_features=True)
    assert with_features.sample(5, random.Random(0), i2t=False).image.features.dtype == torch.float32
    with pytest.raises(CorruptSample, match="torn"):
        cached.sample(4, random.Random(0), i2t=False)
    assert cached.sample(2, random.Random(0), i2t=True).image is None


def test_latents_of_another_source_are_refused(tmp_path: Path) -> None:
    folder = LatentFolder(write(tmp_path))
    other_text = JsonData("metadata.json", caption_key="caption", weight=2.0, latents=str(tmp_path))
    CachedSource(ListSource(7), other_text, folder)
    with pytest.raises(ValueError, match=r"path is .metadata\.json. there and .b\.json. here"):
        CachedSource(ListSource(7), JsonData("b.json"), folder)
    with pytest.raises(ValueError, match="are of 7 samples, but the source has 8"):
        CachedSource(ListSource(8), CONFIG, folder)


def test_latents_that_version_0_1_made_of_conversations_stay_good(tmp_path: Path) -> None:
    cfg = LlavaData("talks.json")
    stored = {key: value for key, value in describe_source(cfg).items() if key != "image_key"}
    folder = LatentFolder(write(tmp_path))
    folder.info = replace(folder.info, source=stored)
    CachedSource(ListSource(7), cfg, folder)
    with pytest.raises(ValueError, match=r"image_key is .image. there and .images. here"):
        CachedSource(ListSource(7), LlavaData("talks.json", image_key="images"), folder)
