"""A split of a folder of parquet files is what was asked for, or an error; other splits are never mixed in."""

import io
import random
from pathlib import Path

import pytest
from PIL import Image

from ddit.config.data import HuggingFaceData
from ddit.data.samples import CorruptSample
from ddit.data.sources import HuggingFaceSource
from ddit.data.sources.guess import Hints, guess_source
from ddit.data.sources.parquet_files import has_configs, split_files, split_names

HUB = [
    "default/train/0000.parquet",
    "default/train/0001.parquet",
    "default/test/0000.parquet",
    "default/extra/0.parquet",
]
PUSHED = [
    "data/train-00000-of-00002.parquet",
    "data/train-00001-of-00002-0a1b.parquet",
    "data/test-00000-of-00001.parquet",
]
NAMED = ["train.parquet", "val.parquet", "my_test_set.parquet"]
TWO = ["a/train/0.parquet", "b/train/0.parquet", "b/test/0.parquet"]
PARTS = ["part-00000-of-00002.parquet", "part-00001-of-00002.parquet"]
NONE = ["x/0.parquet", "y/0.parquet", ".hidden/train.parquet", "x/._0.parquet"]


def make(folder: Path, names: list[str]) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")


def found(folder: Path, pattern: str, split: str = "train", name: str | None = None) -> list[str]:
    files = split_files(str(folder / pattern), name, split)
    assert files is not None
    return [str(file.relative_to(folder)) for file in files]


@pytest.mark.parametrize(
    ("names", "pattern", "split", "expected"),
    [
        (HUB, "", "train", HUB[:2]),
        (HUB, "", "test", HUB[2:3]),
        (HUB, "", "extra", HUB[3:]),
        (HUB, "default", "test", HUB[2:3]),
        (HUB, "default/test", "train", HUB[2:3]),  # the folder itself was named
        (HUB, "default/*/*.parquet", "test", HUB[2:3]),
        (PUSHED, "", "train", PUSHED[:2]),
        (PUSHED, "data/*.parquet", "test", PUSHED[2:]),
        (PUSHED, "data/train-*", "train", PUSHED[:2]),
        (NAMED, "", "train", NAMED[:1]),
        (NAMED, "", "validation", NAMED[1:2]),
        (NAMED, "", "val", NAMED[1:2]),
        (NAMED, "", "test", NAMED[2:]),
        (NAMED, "val.parquet", "train", NAMED[1:2]),  # the file itself was named
        (NAMED, "val.parquet", "val", NAMED[1:2]),
        (TWO, "", "test", TWO[2:]),
        (TWO, "*/train/*.parquet", "train", TWO[:2]),
        (PARTS, "", "train", PARTS),
        ([f"train/{name}" for name in PARTS] + ["test/0.parquet"], "", "train", [f"train/{name}" for name in PARTS]),
        (["a/partial-train/0.parquet", "a/partial-test/0.parquet"], "", "test", ["a/partial-test/0.parquet"]),
        (["train2017/0.parquet", "val2017/0.parquet"], "", "train", ["train2017/0.parquet"]),
        (NONE, "", "train", NONE[:2]),
    ],
)  # fmt: skip
def test_the_files_of_a_split_are_found(
    names: list[str], pattern: str, split: str, expected: list[str], tmp_path: Path
) -> None:
    make(tmp_path, names)
    assert found(tmp_path, pattern, split) == expected


@pytest.mark.parametrize(
    ("names", "pattern", "split", "fault"),
    [
        (HUB, "", "nonsense", r"has no split 'nonsense': it has extra, test, train"),
        (PUSHED, "", "validation", r"has no split 'validation': it has test, train"),
        (PUSHED, "data/test-*", "train", r"has no split 'train': it has test"),
        (NAMED, "val.parquet", "test", r"has no split 'test': it has validation"),
        (NONE, "", "test", r"has no split 'test': its files name no split: leave split out"),
        (TWO, "", "train", r"in several configurations \(a, b\): set name to one"),
        (
            [*NAMED, "more.parquet"],
            "",
            "train",
            r"1 parquet files of .* name no split, .*more\.parquet' first",
        ),
        ([*NAMED, "more.parquet"], "*.parquet", "train", r"1 parquet files of .* name no split"),
        ([], "", "train", "there is no parquet file at"),
    ],
)
def test_what_cannot_be_told_is_an_error(
    names: list[str], pattern: str, split: str, fault: str, tmp_path: Path
) -> None:
    make(tmp_path, names)
    with pytest.raises(ValueError, match=fault):
        found(tmp_path, pattern, split)


def test_a_configuration_is_chosen_by_its_name(tmp_path: Path) -> None:
    make(tmp_path, TWO)
    assert found(tmp_path, "", name="b") == ["b/train/0.parquet"]
    with pytest.raises(ValueError, match="has no configuration 'c'"):
        found(tmp_path, "", name="c")


def test_splits_may_be_parts_and_sums() -> None:
    assert split_names("train") == ["train"]
    assert split_names("train[:10%]+test[5:]") == ["train", "test"]


def test_a_described_repository_is_left_to_the_library(tmp_path: Path) -> None:
    assert not has_configs(tmp_path)
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\nconfigs: none\n")
    assert not has_configs(tmp_path)
    (tmp_path / "README.md").write_text("---\nlicense: mit\nconfigs:\n- config_name: default\n---\n")
    assert has_configs(tmp_path)


# --- with the library ---


def png(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4 + shade, 4), (shade, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def write(path: Path, shades: list[int]) -> None:
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    images = [{"bytes": png(shade), "path": None} for shade in shades]
    kind = arrow.struct({"bytes": arrow.binary(), "path": arrow.string()})
    table = arrow.table({"image": arrow.array(images, kind), "caption": [str(shade) for shade in shades]})
    parquet.write_table(table, path)


def captions(cfg: HuggingFaceData) -> list[str]:
    return HuggingFaceSource(cfg).rows["caption"][:]


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    pytest.importorskip("datasets")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    write(tmp_path / "data/default/train/0000.parquet", [1, 2, 3])
    write(tmp_path / "data/default/test/0000.parquet", [8, 9])
    return tmp_path / "data"


@pytest.mark.slow
def test_rows_are_those_of_the_split_and_parts_of_it(repository: Path) -> None:
    path = str(repository)
    for split, expected in {
        "train": "123", "test": "89", "train[1:]": "23", "train[:1]+test": "189"
    }.items():  # fmt: skip
        cfg = HuggingFaceData(path, split=split, caption_key="caption")
        assert "".join(captions(cfg)) == expected
        assert HuggingFaceSource(cfg).sizes()[:, 0].tolist() == [4 + int(shade) for shade in expected]
    with pytest.raises(ValueError, match="has no split 'validation'"):
        HuggingFaceSource(HuggingFaceData(path, split="val", caption_key="caption"))
    guessed = guess_source(path, Hints(fields=(("split", "test"),)))
    assert isinstance(guessed, HuggingFaceData)
    assert captions(guessed) == ["8", "9"]


@pytest.mark.slow
def test_a_described_repository_has_the_splits_that_it_describes(repository: Path) -> None:
    files = "  data_files:\n  - split: train\n    path: default/test/*.parquet\n"
    head = f"---\nconfigs:\n- config_name: default\n{files}---\n"
    (repository / "README.md").write_text(head)
    assert captions(HuggingFaceData(str(repository), caption_key="caption")) == ["8", "9"]
    with pytest.raises(ValueError, match=r"cannot load .*nonsense"):
        captions(HuggingFaceData(str(repository), split="nonsense", caption_key="caption"))


@pytest.mark.slow
def test_what_save_to_disk_wrote_has_its_splits(repository: Path, tmp_path: Path) -> None:
    import datasets

    files = {split: str(repository / f"default/{split}/0000.parquet") for split in ("train", "test")}
    both = datasets.load_dataset("parquet", data_files=files)
    assert isinstance(both, datasets.DatasetDict)
    both.save_to_disk(str(tmp_path / "both"))
    both["test"].save_to_disk(str(tmp_path / "one"))
    assert captions(HuggingFaceData(str(tmp_path / "both"), split="test", caption_key="caption")) == [
        "8",
        "9",
    ]
    assert captions(HuggingFaceData(str(tmp_path / "one"), split="test", caption_key="caption")) == ["8", "9"]
    assert isinstance(guess_source(str(tmp_path / "both")), HuggingFaceData)
    for name, known in (("both", "train, test"), ("one", "test")):
        with pytest.raises(ValueError, match=f"it has no split 'nonsense', but {known}"):
            captions(HuggingFaceData(str(tmp_path / name), split="nonsense", caption_key="caption"))


@pytest.mark.slow
def test_a_list_of_one_image_is_that_image_and_paths_are_beside_the_data(repository: Path) -> None:
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    (repository / "1.png").write_bytes(png(1))
    images = [["1.png"], ["1.png", "1.png"], []]
    parquet.write_table(arrow.table({"image": images, "caption": ["a", "b", "c"]}), repository / "x.parquet")
    source = HuggingFaceSource(HuggingFaceData(str(repository / "x.parquet"), caption_key="caption"))
    sample = source.sample(0, random.Random(0), i2t=False)
    assert isinstance(sample.image, Image.Image)
    assert sample.image.size == (5, 4)
    for index, cause in ((1, "several images"), (2, "no image")):
        with pytest.raises(CorruptSample) as caught:
            source.sample(index, random.Random(0), i2t=False)
        assert caught.value.cause == cause
    assert source.sizes().tolist() == [[5, 4], [0, 0], [0, 0]]
