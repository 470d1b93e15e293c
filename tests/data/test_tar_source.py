"""Tar shards are read at random through an index that is built once, by any number of processes, and renewed."""

import io
import json
import multiprocessing
import os
import random
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddit.config.data import TarData
from ddit.data.samples import CorruptSample
from ddit.data.sources import TarSource, open_source
from ddit.data.sources.finding import expand_braces
from ddit.data.sources.tar import find_shards
from ddit.data.sources.tar_index import load_index, split_name

NUM = 12


def png(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (10 + number, 20), (number, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def members(first: int = 0, num: int = NUM) -> dict[str, bytes]:
    found = {}
    for i in range(first, first + num):
        found[f"{i:05d}.png"] = png(i)
        found[f"{i:05d}.txt"] = f"caption {i}".encode()
        found[f"{i:05d}.json"] = json.dumps({"caption": f"alt {i}", "re_caption": f"long {i}"}).encode()
    return found


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    return write_tar(tmp_path / "00000.tar", members())


def read(source: TarSource, index: int) -> tuple[str | None, int]:
    sample = source.sample(index, random.Random(0), i2t=False)
    return sample.caption, sample.image.getpixel((0, 0))[0]


def test_any_order_gives_the_written_samples(shard: Path) -> None:
    source = open_source(TarData(str(shard)))
    assert len(source) == NUM
    for index in (11, 0, 5, 5, 3):
        assert read(source, index) == (f"caption {index}", index)
    assert source.name(3) == f"{shard}:00003"
    with pytest.raises(IndexError):
        source.sample(NUM, random.Random(0), i2t=False)


def test_captions_come_from_the_metadata_where_a_key_is_set(shard: Path) -> None:
    cfg = TarData(str(shard), caption_key="re_caption", original_key="caption", original_share=0.5)
    source = open_source(cfg)
    found = {
        source.sample(4, random.Random(i), i2t=True, with_image=False).turns[0].answer for i in range(50)
    }
    assert found == {"alt 4", "long 4"}


def test_folders_patterns_and_braces_name_the_same_shards(tmp_path: Path) -> None:
    paths = [write_tar(tmp_path / f"{i:02d}.tar", members(i * 10, 3)) for i in range(3)]
    (tmp_path / "notes.txt").write_text("")
    for pattern in ("", "*.tar", "0?.tar", "{00..02}.tar", "0{0,1,2}.tar"):
        assert find_shards(str(tmp_path / pattern)) == paths
    source = open_source(TarData(str(tmp_path)))
    assert [read(source, i)[1] for i in range(9)] == [0, 1, 2, 10, 11, 12, 20, 21, 22]
    assert expand_braces("a{1,2}/{08..10}") == ["a1/08", "a1/09", "a1/10", "a2/08", "a2/09", "a2/10"]


def test_missing_shards_say_what_to_do(tmp_path: Path, shard: Path) -> None:
    with pytest.raises(ValueError, match=r"2 shards of .* are missing, .*00001.tar' first: use \*"):
        find_shards(str(tmp_path / "{00000..00002}.tar"))
    with pytest.raises(ValueError, match=r"does not exist: give a \.tar file"):
        find_shards(str(tmp_path / "none.tar"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no \.tar file in"):
        find_shards(str(tmp_path / "empty"))


def test_members_go_together_by_webdatasets_rule(tmp_path: Path) -> None:
    assert split_name("a.b/0001.seg.PNG") == ("a.b/0001", "seg.png")
    assert split_name("x/.hidden.jpg") == ("", "hidden.jpg")
    names = {"a/1.jpg": png(1), "a/1.txt": b"one", "b/1.JPG": png(2), "b/1.txt": b"two", "b/1.cls": b"0"}
    source = open_source(
        TarData(str(write_tar(tmp_path / "x.tar", {**names, "._1.jpg": b"", "README": b"hi"})))
    )
    assert [read(source, i) for i in range(len(source))] == [("one", 1), ("two", 2)]


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_long_and_foreign_names_are_read(form: int, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w", format=form) as tar:
        for folder in ("a" * 150, "é☃"):
            for name, data in {f"{folder}/1.png": png(3), f"{folder}/1.txt": folder.encode()}.items():
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    source = open_source(TarData(str(tmp_path / "x.tar")))
    assert [read(source, i) for i in range(len(source))] == [("a" * 150, 3), ("é☃", 3)]
    assert source.name(1).endswith("x.tar:é☃/1")


def test_a_compressed_tar_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("a"))
    with pytest.raises(ValueError, match=r"x\.tar' is compressed.*: decompress it"):
        open_source(TarData(str(tmp_path / "x.tar")))


# --- what is corrupt ---


def causes(source: TarSource) -> list[str]:
    found = []
    for index in range(len(source)):
        try:
            source.sample(index, random.Random(0), i2t=True)
        except CorruptSample as error:
            found.append(error.cause)
    return found


def test_faults_of_members_have_their_causes(tmp_path: Path) -> None:
    corrupt = {
        "1.txt": b"no image", "2.png": png(0), "3.png": png(0), "3.txt": b"\xff\xfe", "4.jpg": b"text", "4.txt": b"x",
        "5.jpg": b"", "5.txt": b"x",
    }  # fmt: skip
    source = open_source(TarData(str(write_tar(tmp_path / "x.tar", corrupt))))
    assert causes(source) == ["no image", "no caption", "bad text", "not an image", "empty file"]
    assert source.sizes().tolist() == [[0, 0], [10, 20], [10, 20], [0, 0], [0, 0]]
    with_key = open_source(
        TarData(str(write_tar(tmp_path / "y.tar", {"1.png": png(0), "1.json": b"{"})), caption_key="c")
    )
    assert causes(with_key) == ["bad JSON"]


def test_of_a_truncated_tar_the_whole_part_is_used(shard: Path) -> None:
    data, whole = shard.read_bytes(), load_index(shard)
    last = int(whole.images[-1, 0])
    for size in (
        last + 10,
        last - 100,
        last - 512,
    ):  # within an image, within its header, between two members
        shard.write_bytes(data[:size])
        source = open_source(TarData(str(shard)))
        expected = [] if size == last - 512 else ["truncated tar"]
        assert causes(source) == expected
        assert len(source) == NUM - 1 + len(expected)
        assert len(source.sizes()) == len(source)
        assert read(source, NUM - 2) == (f"caption {NUM - 2}", NUM - 2)
    assert len(whole.stems) == NUM


def test_of_a_damaged_tar_the_part_before_is_used(shard: Path) -> None:
    data, whole = bytearray(shard.read_bytes()), load_index(shard)
    header = int(whole.images[6, 0]) - 512
    data[header : header + 512] = b"\x01" * 512
    shard.write_bytes(data)
    os.utime(shard, ns=(1, 1))
    source = open_source(TarData(str(shard)))
    assert (len(source), causes(source)) == (7, ["damaged tar"])


@pytest.mark.parametrize("data", [b"", b"this is no tar file" * 100])
def test_what_is_no_tar_is_one_corrupt_sample(data: bytes, shard: Path) -> None:
    (shard.parent / "00001.tar").write_bytes(data)
    source = open_source(TarData(str(shard.parent)))
    assert len(source) == NUM + 1
    assert causes(source) == [{True: "damaged tar", False: "truncated tar"}[bool(data)]]


# --- the index ---


def test_the_index_is_built_once_and_again_when_the_shard_changes(
    shard: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_index(shard)
    assert shard.with_name("00000.tar.index.npz").is_file()
    with monkeypatch.context() as patch:
        patch.setattr("ddit.data.sources.tar_index.tarfile.open", None)  # reading headers again would fail
        assert len(load_index(shard).stems) == NUM
    write_tar(shard, members(num=NUM + 1))
    assert len(load_index(shard).stems) == NUM + 1
    same_size = shard.read_bytes().replace(b"00003.", b"00033.")
    shard.write_bytes(same_size)
    os.utime(shard, ns=(5, 5))
    # a changed name leaves a header with a wrong checksum, where the readable part ends
    assert load_index(shard).end == "damaged tar"


def test_a_torn_index_is_built_again(shard: Path) -> None:
    load_index(shard)
    place = shard.with_name("00000.tar.index.npz")
    for data in (b"", b"PK\x03\x04", place.read_bytes()[:200]):
        place.write_bytes(data)
        assert len(load_index(shard).stems) == NUM
        assert len(place.read_bytes()) > 200


def test_beside_a_folder_that_cannot_be_written_the_index_is_in_the_cache(
    shard: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shard.with_name("00000.tar.index.npz").mkdir()  # so that writing fails, even for root
    load_index(shard)
    assert len(list((tmp_path / "cache/ddit/data").glob("00000.tar.*.index.npz"))) == 1
    monkeypatch.setattr("ddit.data.sources.tar_index.tarfile.open", None)
    assert len(load_index(shard).stems) == NUM


def test_without_a_place_to_keep_it_the_index_still_serves(
    shard: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    shard.with_name("00000.tar.index.npz").mkdir()
    assert len(load_index(shard).stems) == NUM


def _index_and_read(path: str, barrier, results) -> None:
    barrier.wait()
    source = TarSource(TarData(path))
    results.put([read(source, i) for i in range(len(source))])


def test_two_processes_may_build_the_index_at_once(shard: Path) -> None:
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(2), context.Queue()
    workers = [context.Process(target=_index_and_read, args=(str(shard), barrier, results)) for _ in range(2)]
    for worker in workers:
        worker.start()
    found = [results.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join(60)
    assert found == [[(f"caption {i}", i) for i in range(NUM)]] * 2
    assert [path.name for path in shard.parent.iterdir() if path != shard] == ["00000.tar.index.npz"]


def _read_many(source: TarSource, seed: int) -> bool:
    order = np.random.default_rng(seed).integers(0, len(source), 300).tolist()
    return all(read(source, i) == (f"caption {i}", i) for i in order)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_forked_processes_share_a_source(shard: Path) -> None:
    source = TarSource(TarData(str(shard)))
    read(source, 0)
    children = []
    for seed in range(4):
        child = os.fork()
        if child == 0:
            right = False
            try:
                right = _read_many(source, seed)
            finally:
                os._exit(0 if right else 1)
        children.append(child)
    assert _read_many(source, 9)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * 4
