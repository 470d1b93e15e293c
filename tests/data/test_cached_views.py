"""Latents of several views, and of images that many samples share."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ddit.config.data import QuestionsData
from ddit.config.runs import LatentsRun
from ddit.data.latents import CachedSource, LatentFolder
from ddit.data.samples import Latents
from ddit.data.sources import open_source
from ddit.devices import Ranks
from ddit.model.autoencoder import PatchAutoencoder
from ddit.model.encoders import ImageCodec
from ddit.train.precompute import precompute

NUM_IMAGES, VIEWS = 6, 4


@pytest.fixture
def source(tmp_path: Path) -> QuestionsData:
    """Three questions about each of six images, every third of which names a side; the first one has no answer."""
    rng = np.random.default_rng(0)
    entries = []
    for number in range(NUM_IMAGES):
        Image.fromarray(rng.integers(0, 255, (20, 20, 3), dtype=np.uint8)).save(tmp_path / f"{number}.png")
        entries += [[text, "yes", f"{number}.png"] for text in ("is it red?", "a dog?", "a dog on the left?")]
    entries[0][1] = ""
    (tmp_path / "q.json").write_text(json.dumps(entries))
    return QuestionsData(str(tmp_path / "q.json"), "")


def cached(source: QuestionsData, tmp_path: Path, *, mirror: bool = True) -> CachedSource:
    torch.manual_seed(0)
    model = PatchAutoencoder(4, downsample=4)
    ImageCodec(model).save_pretrained(tmp_path / "vae")
    out = tmp_path / "latents"
    run = LatentsRun(
        str(out), str(tmp_path / "vae"), source, image_size=16, bucket_unit=4, num_views=VIEWS, by_image=True,
        shard_size=5, mirror=mirror,
    )  # fmt: skip
    precompute(run, Ranks(), num_workers=0)
    source = replace(source, latents=str(out))
    return CachedSource(open_source(source), source, LatentFolder(out))


def drawn(source: CachedSource, index: int) -> list[torch.Tensor]:
    """The distinct latents that a sample is trained with."""
    found: dict[bytes, torch.Tensor] = {}
    for seed in range(60):
        latents = source.sample(index, random.Random(seed), i2t=True).image
        assert isinstance(latents, Latents)
        found[latents.mean.numpy().tobytes()] = latents.mean
    return list(found.values())


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return {t.numpy().tobytes() for t in one} == {t.numpy().tobytes() for t in other}


def test_an_image_is_encoded_once_for_all_its_questions(source: QuestionsData, tmp_path: Path) -> None:
    made = cached(source, tmp_path)
    assert len(made) == 3 * NUM_IMAGES
    assert made.latents.info.num_entries == NUM_IMAGES * VIEWS
    assert len(list((tmp_path / "latents").glob("*.safetensors"))) == 5  # of five entries each
    assert len(drawn(made, 1)) == VIEWS
    assert same(drawn(made, 4), drawn(made, 3))
    assert not same(drawn(made, 1), drawn(made, 4))
    assert made.sizes().tolist() == [[16, 16]] * (3 * NUM_IMAGES)


def test_texts_that_name_a_side_get_no_mirrored_view(source: QuestionsData, tmp_path: Path) -> None:
    made = cached(source, tmp_path)
    for index in (2, 5):
        assert len(drawn(made, index)) == VIEWS // 2


def test_without_mirroring_all_views_are_for_all_texts(source: QuestionsData, tmp_path: Path) -> None:
    assert len(drawn(cached(source, tmp_path, mirror=False), 2)) == VIEWS


def test_parts_share_the_latents_of_the_whole(source: QuestionsData, tmp_path: Path) -> None:
    whole = cached(source, tmp_path)
    part = replace(source, latents=str(tmp_path / "latents"), part="held_out", held_out_share=0.5)
    held_out = CachedSource(open_source(part), part, LatentFolder(tmp_path / "latents"))
    assert 0 < len(held_out) < len(whole)
    names = [whole.name(index) for index in range(len(whole))]
    for index in range(len(held_out)):
        place = names.index(held_out.name(index))
        if place % 3 == 1:
            assert same(drawn(held_out, index), drawn(whole, place))


def test_another_number_of_images_is_refused(source: QuestionsData, tmp_path: Path) -> None:
    cached(source, tmp_path)
    entries = json.loads(Path(source.questions).read_text())
    Path(source.questions).write_text(json.dumps(entries[:-3]))
    changed = replace(source, latents=str(tmp_path / "latents"))
    with pytest.raises(ValueError, match="are of 6 images, but the source has 5"):
        CachedSource(open_source(changed), changed, LatentFolder(tmp_path / "latents"))
