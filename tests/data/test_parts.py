"""A held-out part: by the image's contents alone, the same in every order, and with cached latents."""

import json
import random
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ddit.config.data import (
    FoldersData,
    HuggingFaceData,
    JsonData,
    LlavaData,
    QuestionsData,
    SourceConfig,
    TarData,
    TextData,
    WorldData,
)
from ddit.data.check import check_source
from ddit.data.latents import CachedSource, LatentFolder, LatentsInfo, describe_source, write_shard
from ddit.data.mixture import HalfBatches
from ddit.data.parts import PartSource, is_held_out
from ddit.data.samples import Latents
from ddit.data.sources import open_source
from ddit.data.world_files import WorldScenes, write_world
from ddit.world import PRESETS

NUM = 60
SHARE = 0.3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders, a tar and JSON of the same images."""
    root = tmp_path_factory.mktemp("parts")
    entries = []
    for number in range(NUM):
        values = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        path = root / "photos" / ("dog" if number % 2 else "cat") / f"{number:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values).save(path)
        entries.append({"image": str(path.relative_to(root)), "image_path": str(path.relative_to(root))})
        entries[-1] |= {"caption": f"image {number}", "id": number}
    (root / "list.json").write_text(json.dumps(entries))
    talk = [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "a dog"}]
    (root / "talks.json").write_text(json.dumps([entry | {"conversations": talk} for entry in entries]))
    asked = [
        {"image": entry["image"], "question": question, "answers": ["a dog"]}
        for question in ("what?", "where?") for entry in entries
    ]  # fmt: skip
    (root / "questions.json").write_text(json.dumps(asked))
    with tarfile.open(root / "list.tar", "w") as tar:
        for entry in reversed(entries):
            name = f"{entry['id']:09}"
            tar.add(root / entry["image"], f"{name}.png")
            (root / "caption.txt").write_text(entry["caption"])
            tar.add(root / "caption.txt", f"{name}.txt")
    (root / "caption.txt").unlink()
    return root


def configs(folder: Path) -> dict[str, SourceConfig]:
    return {
        "folders": FoldersData(str(folder / "photos")),
        "json": JsonData(str(folder / "list.json")),
        "llava": LlavaData(str(folder / "talks.json")),
        "questions": QuestionsData(str(folder / "questions.json"), annotations=""),
        "tar": TarData(str(folder / "list.tar")),
    }


def parts(cfg: SourceConfig, share: float = SHARE) -> tuple[PartSource, PartSource]:
    found = [open_source(replace(cfg, part=part, held_out_share=share)) for part in ("train", "held_out")]
    assert all(isinstance(source, PartSource) for source in found)
    return found[0], found[1]  # type: ignore[return-value]


def pixels(source, index: int) -> bytes:
    return source.sample(index, random.Random(0), i2t=True).image.tobytes()


def all_pixels(source) -> set[bytes]:
    return {pixels(source, index) for index in range(len(source))}


def test_two_parts_make_the_whole_and_share_no_image(folder: Path) -> None:
    expected = None
    for cfg in configs(folder).values():
        whole = open_source(cfg)
        train, held_out = parts(cfg)
        assert sorted([*train.indices, *held_out.indices]) == list(range(len(whole)))
        assert 0.15 * len(whole) < len(held_out) < 0.45 * len(whole)
        assert not all_pixels(train) & all_pixels(held_out)
        assert train.name(3) == whole.name(int(train.indices[3]))
        assert train.sizes().tolist() == [[8, 8]] * len(train)
        # an image is in the same part whatever the form that lists it, and wherever it stands in it
        expected = expected or all_pixels(held_out)
        assert all_pixels(held_out) == expected


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.9])
def test_so_many_are_held_out_and_a_larger_share_adds_to_them(share: float) -> None:
    digests = open_source(WorldData(num_scenes=20_000)).digests()
    held = is_held_out(digests, share)
    assert abs(held.mean() - share) < 4 * (share * (1 - share) / 20_000) ** 0.5
    assert not (held & ~is_held_out(digests, share + 0.05)).any()


def test_other_names_orders_and_images_move_nobody(folder: Path, tmp_path: Path) -> None:
    _, before = parts(FoldersData(str(folder / "photos")))
    for number, path in enumerate(sorted((folder / "photos").rglob("*.png"), reverse=True)):
        place = tmp_path / "other" / path.parent.name / f"renamed-{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place)
    Image.new("RGB", (9, 9)).save(tmp_path / "other/cat/0-first.png")
    _, after = parts(FoldersData(str(tmp_path / "other")))
    assert all_pixels(before) == all_pixels(after) - {Image.new("RGB", (9, 9)).tobytes()}


def test_copies_of_an_image_and_all_its_questions_are_in_one_part(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "photos", tmp_path / "photos")
    for number, path in enumerate(sorted((tmp_path / "photos/cat").iterdir())):
        shutil.copy(path, tmp_path / "photos/dog" / f"copy-{number}.png")
    train, held_out = parts(FoldersData(str(tmp_path / "photos")))
    assert len(train) + len(held_out) == NUM + NUM // 2
    assert not all_pixels(train) & all_pixels(held_out)
    train, held_out = parts(configs(folder)["questions"])
    for source in (train, held_out):
        assert len(source) == 2 * len(all_pixels(source))


def test_lines_of_text_are_told_apart_by_their_words(tmp_path: Path) -> None:
    lines = [f"sentence {number}" for number in range(100)] * 2
    random.Random(0).shuffle(lines)
    (tmp_path / "a.txt").write_text("\n".join(lines))

    def told(source) -> list[str]:
        return [source.sample(i, random.Random(0), i2t=True).turns[0].answer for i in range(len(source))]

    train, held_out = (told(source) for source in parts(TextData(str(tmp_path / "a.txt"))))
    assert len(train) + len(held_out) == 200
    assert len(held_out) == 2 * len(set(held_out))
    assert not set(train) & set(held_out)
    (tmp_path / "a.txt").write_text("\n\n".join(sorted(lines)))
    assert set(told(parts(TextData(str(tmp_path / "a.txt")))[1])) == set(held_out)


def test_parquet_is_split_by_its_images(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    path = write_world(tmp_path, WorldScenes(PRESETS["fixed"], "train", 30), "parquet")
    train, held_out = parts(HuggingFaceData(str(path), caption_key="caption"))
    assert len(train) + len(held_out) == 30
    assert not all_pixels(train) & all_pixels(held_out)


def test_unreadable_images_stay_where_their_names_are(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    for path in sorted((tmp_path / "copy/photos/cat").iterdir())[:5]:
        path.unlink()
    cfg = JsonData(str(tmp_path / "copy/list.json"))
    digests = open_source(cfg).digests()
    assert len(set(digests.tolist())) == NUM
    assert digests.tolist() == open_source(cfg).digests().tolist()


def test_a_part_without_a_sample_says_what_to_do(folder: Path) -> None:
    cfg = replace(configs(folder)["folders"], part="held_out", held_out_share=1e-6)
    with pytest.raises(
        ValueError, match=r"of the 60 samples .* none is in the part 'held_out': raise held_out_share"
    ):
        open_source(cfg)
    cfg = replace(cfg, part="train", held_out_share=1 - 1e-9)
    with pytest.raises(ValueError, match="none is in the part 'train': lower held_out_share, which is 1"):
        open_source(cfg)
    with pytest.raises(ValueError, match="held_out_share must be"):
        replace(cfg, held_out_share=1.0)


def test_batches_of_a_part_hold_its_samples_alone_and_are_the_same_again(folder: Path) -> None:
    def order(part: str) -> list[str]:
        source = open_source(replace(configs(folder)["tar"], part=part, held_out_share=SHARE))  # type: ignore[arg-type]
        half = HalfBatches([(source, 1.0)], 8, shapes=[(8, 8)], seed=5, stream=0)
        return [source.name(half.place(step, i).index) for step in range(20) for i in range(8)]

    assert order("train") == order("train")
    train, held_out = set(order("train")), set(order("held_out"))
    assert len(train) + len(held_out) == NUM
    assert not train & held_out


# --- cached latents ---


def cache(cfg: SourceConfig, out: Path) -> LatentFolder:
    """Latents whose mean tells the index, in shards of 16; sample 7 has no image."""
    num = len(open_source(cfg))
    info = LatentsInfo(describe_source(cfg), num, 16, 8, 1, [(8, 8)], 1, 8, "x")
    info.write(out)
    for shard in range(info.num_shards):
        indices = range(shard * 16, min(shard * 16 + 16, num))
        buckets = np.array([-1 if index == 7 else 0 for index in indices])
        entries = {
            index % 16: Latents(torch.full((1, 1, 1), float(index)), torch.ones(1, 1, 1), None)
            for index in indices
        }
        write_shard(out, shard, buckets, entries, {})
    return LatentFolder(out)


def test_one_folder_of_latents_serves_the_whole_and_both_parts(folder: Path, tmp_path: Path) -> None:
    cfg = configs(folder)["json"]
    latents = cache(cfg, tmp_path / "latents")
    for part in ("all", "train", "held_out"):
        chosen = replace(cfg, part=part, held_out_share=SHARE)  # type: ignore[arg-type]
        source = open_source(chosen)
        cached = CachedSource(source, chosen, latents)
        assert len(cached) == len(source)
        sizes = cached.sizes()
        assert cached.digests().tolist() == source.digests().tolist()
        for index in range(len(cached)):
            sample = cached.sample(index, random.Random(0), i2t=True)
            number = int(source.name(index).rpartition("[")[2].removesuffix("]"))
            assert sample.turns[0].answer == f"image {number}"
            if number == 7:
                assert (sample.image, sizes[index].tolist()) == (None, [0, 0])
                continue
            assert isinstance(sample.image, Latents)
            assert (sample.image.mean.item(), sizes[index].tolist()) == (number, [8, 8])
    (tmp_path / "list.json").write_text(json.dumps(json.loads((folder / "list.json").read_text())[:50]))
    fewer = open_source(JsonData(str(tmp_path / "list.json"), images=str(folder), part="train"))
    with pytest.raises(ValueError, match="are of 60 samples, but the source has 50"):
        CachedSource(fewer, cfg, latents)


# --- the report ---


def test_the_check_reads_both_parts_and_tells_what_is_held_out(folder: Path, tmp_path: Path) -> None:
    cfg = replace(configs(folder)["folders"], part="train", held_out_share=SHARE)
    report = check_source(cfg)
    assert (report.num_samples, report.num_checked) == (NUM, NUM)
    assert report.num_held_out == len(parts(cfg)[1])
    assert f"held out     {report.num_held_out} (" in "\n".join(report.lines())
    assert report.images is not None
    assert report.images.across.num == 0
    assert check_source(replace(cfg, part="all")).num_held_out is None


def test_images_that_look_alike_in_both_parts_are_reported(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "photos", tmp_path / "photos")
    for path in sorted((tmp_path / "photos/cat").iterdir()):
        Image.open(path).resize((32, 32), Image.Resampling.NEAREST).save(
            path.with_suffix(".webp"), lossless=True
        )
        Image.open(path).save(path.with_name(f"again-{path.name}"), compress_level=0)
    cfg = FoldersData(str(tmp_path / "photos"), part="held_out", held_out_share=SHARE)
    report = check_source(cfg)
    assert report.images is not None
    assert report.images.near.num == report.images.repeated.num == NUM // 2
    assert 5 < report.images.across.num < NUM
    assert "held out, and nearly like one that is trained on" in "\n".join(report.lines())
