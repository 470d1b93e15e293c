"""Every member of a tar is used, corrupt with a cause, or left out with a cause; none goes without a word."""

import io
import random
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from ddit.config.data import TarData
from ddit.data.check import check_source
from ddit.data.samples import CorruptSample
from ddit.data.sources import TarSource
from ddit.data.sources.tar import find_shards


def png(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (shade, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


Members = list[tuple[str, bytes] | tarfile.TarInfo]


def write(path: Path, members: Members) -> Path:
    with tarfile.open(path, "w") as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
                continue
            info = tarfile.TarInfo(member[0])
            info.size = len(member[1])
            tar.addfile(info, io.BytesIO(member[1]))
    return path


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def read(path: Path) -> dict[str, str | tuple[str | None, int]]:
    """By name within the shard: caption and shade, or the cause of a corrupt sample."""
    source = TarSource(TarData(str(path)))
    found: dict[str, str | tuple[str | None, int]] = {}
    for index in range(len(source)):
        name = source.name(index).rpartition(":")[2]
        try:
            sample = source.sample(index, random.Random(0), i2t=False)
        except CorruptSample as error:
            found[name] = error.cause
        else:
            assert isinstance(sample.image, Image.Image)
            found[name] = sample.caption, sample.image.getpixel((0, 0))[0]
    return found


def left_out(path: Path) -> dict[str, int]:
    return {cause: found.num for cause, found in TarSource(TarData(str(path))).left_out().items()}


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    return tmp_path / "x.tar"


# --- names ---


def test_a_point_in_a_base_name_loses_no_sample(shard: Path) -> None:
    stems = ["001", "photo.v2", "photo.v3", "img 1.5x", "2024.01.03 shot", "2024.01.04 shot", "a.b/c.d"]
    members: Members = []
    for shade, stem in enumerate(stems):
        members += [(f"{stem}.png", png(shade)), (f"{stem}.txt", stem.encode())]
    write(shard, members)
    assert read(shard) == {
        ("a.b/c" if stem == "a.b/c.d" else stem): (stem, i) for i, stem in enumerate(stems)
    }
    assert left_out(shard) == {}


def test_named_fields_of_a_key_are_one_sample(shard: Path) -> None:
    members: Members = []
    for i in range(3):
        members += [
            (f"s{i}.input.png", png(i)),
            (f"s{i}.outputs.txt", b"t%d" % i),
            (f"s{i}.meta.json", b"{}"),
        ]
    assert read(write(shard, members)) == {f"s{i}": (f"t{i}", i) for i in range(3)}


def test_files_that_only_share_the_start_of_their_names_are_not_put_together(shard: Path) -> None:
    write(shard, [("2024.01 a.png", png(1)), ("2024.02 b.txt", b"of another image")])
    assert read(shard) == {"2024.01 a": "no caption", "2024.02 b": "no image"}


def test_further_fields_of_a_sample_are_left_out_and_counted(shard: Path) -> None:
    write(shard, [("1.png", png(1)), ("1.mask.png", png(2)), ("1.txt", b"one"), ("1.cls", b"7")])
    assert read(shard) == {"1": ("one", 1)}
    assert left_out(shard) == {"unknown suffix": 1, "further field of a sample": 1}


def test_two_images_or_texts_under_one_key_are_corrupt(shard: Path) -> None:
    members: Members = [
        ("1.png", png(1)),
        ("1.jpg", png(2)),
        ("1.txt", b"one"),
        ("2.png", png(2)),
        ("2.txt", b"two"),
    ]
    assert read(write(shard, members)) == {"1": "several images", "2": ("two", 2)}


def test_suffixes_count_in_any_case_and_members_in_any_order(shard: Path) -> None:
    members: Members = [("1.TXT", b"one"), ("2.Png", png(2)), ("1.JPG", png(1)), ("./2.txt", b"two")]
    assert read(write(shard, members)) == {"1": ("one", 1), "2": ("two", 2)}


def test_hidden_files_and_those_of_other_suffixes_are_left_out_by_cause(shard: Path) -> None:
    folder, device = tarfile.TarInfo("folder"), tarfile.TarInfo("3.png")
    folder.type, device.type = tarfile.DIRTYPE, tarfile.FIFOTYPE
    members: Members = [
        folder,
        ("1.png", png(1)),
        ("1.txt", b"one"),
        ("README", b""),
        ("2.heic", b""),
        device,
    ]
    members += [
        ("._1.png", b"\0"),
        ("__MACOSX/._1.png", b"\0"),
        ("__MACOSX/1.png", b"\0"),
        (".DS_Store", b""),
    ]
    write(shard, members)
    assert read(shard) == {"1": ("one", 1)}
    assert left_out(shard) == {"unknown suffix": 2, "no plain file": 1, "hidden file": 4}


def test_names_that_are_not_utf_8_are_read(shard: Path) -> None:
    write(shard, [("caf\udce9.png", png(1)), ("caf\udce9.txt", b"coffee"), ("caf\udce9.x", b"")])
    assert read(shard) == {"caf\ufffd": ("coffee", 1)}
    assert TarSource(TarData(str(shard))).left_out()["unknown suffix"].first == (f"{shard}:caf\ufffd.x",)


def test_of_two_members_with_one_name_the_later_counts(shard: Path) -> None:
    members: Members = [
        ("1.png", png(1)),
        ("1.txt", b"old"),
        ("2.png", png(2)),
        ("2.txt", b"two"),
        ("1.txt", b"new"),
    ]
    assert read(write(shard, members)) == {"1": ("new", 1), "2": ("two", 2)}
    assert left_out(shard) == {"replaced by a later member of the same name": 1}


def test_a_caption_may_begin_with_a_bom_and_hold_any_separator(shard: Path) -> None:
    text = "a\u2028b\x85c\x0bd\x0ce"
    write(shard, [("1.png", png(1)), ("1.txt", ("\ufeff" + text).encode())])
    assert read(shard) == {"1": (text, 1)}


# --- links, and archives behind archives ---


def test_links_within_the_tar_are_followed(shard: Path) -> None:
    members: Members = [("real/1.png", png(1)), ("real/1.txt", b"one")]
    members += [
        link("hard/1.png", "real/1.png", tarfile.LNKTYPE),
        link("hard/1.txt", "real/1.txt", tarfile.LNKTYPE),
    ]
    members += [link("soft/1.png", "../real/1.png"), link("soft/1.txt", "../hard/1.txt")]
    assert read(write(shard, members)) == {f"{folder}/1": ("one", 1) for folder in ("real", "hard", "soft")}


def test_links_out_of_the_tar_and_in_circles_are_counted(shard: Path) -> None:
    members: Members = [link("1.png", "/elsewhere/1.png"), ("1.txt", b"one"), link("2.png", "2.png")]
    assert read(write(shard, members)) == {"1": "no image", "2": "no image"}
    assert left_out(shard) == {"link to what is not in the tar": 2}


def test_archives_that_were_concatenated_are_read_to_their_end(shard: Path, tmp_path: Path) -> None:
    parts = [write(tmp_path / f"{i}.part", [(f"{i}.png", png(i)), (f"{i}.txt", b"x")]) for i in range(3)]
    shard.write_bytes(b"".join(part.read_bytes() for part in parts))
    assert read(shard) == {str(i): ("x", i) for i in range(3)}
    shard.write_bytes(parts[0].read_bytes() + b"no archive" * 100)
    assert read(shard) == {"0": ("x", 0), "end": "damaged tar"}


# --- shards ---


def test_shards_below_folders_and_links_are_found_once(tmp_path: Path) -> None:
    elsewhere, folder = tmp_path / "elsewhere", tmp_path / "shards"
    for place in (elsewhere, folder / "a", folder / "b"):
        place.mkdir(parents=True)
    for path in (elsewhere / "0.tar", folder / "a/0.tar", folder / "b/0.TAR", tmp_path / "blob"):
        write(path, [("1.png", png(1)), ("1.txt", b"x")])
    write(folder / "._0.tar", [])
    (folder / "linked").symlink_to(elsewhere)
    (folder / "1.tar").symlink_to(tmp_path / "blob")
    (folder / "again").symlink_to(folder / "a")
    (folder / "up").symlink_to(tmp_path / "shards")
    found = [str(path.relative_to(folder)) for path in find_shards(str(folder))]
    assert found == ["1.tar", "a/0.tar", "b/0.TAR", "linked/0.tar"]
    assert len(TarSource(TarData(str(folder)))) == 4


def test_compressed_shards_and_dead_links_in_a_folder_are_errors(tmp_path: Path) -> None:
    write(tmp_path / "0.tar", [])
    (tmp_path / "1.tar.gz").write_bytes(b"")
    with pytest.raises(
        ValueError, match=r"holds compressed tars \(1, .*1\.tar\.gz' first\).*: decompress them"
    ):
        find_shards(str(tmp_path))
    (tmp_path / "1.tar.gz").unlink()
    (tmp_path / "2.tar").symlink_to("nowhere")
    with pytest.raises(ValueError, match=r"2\.tar' is a link to 'nowhere', which does not exist"):
        find_shards(str(tmp_path))


def test_an_alternative_of_a_pattern_that_names_nothing_is_an_error(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "0.tar", [])
    assert len(find_shards(f"{tmp_path}/{{a,b,*}}/*.tar")) == 2
    with pytest.raises(ValueError, match=r"1 shards of .* are missing"):
        find_shards(f"{tmp_path}/{{a,b,c}}/*.tar")
    TarSource(TarData(str(tmp_path)))  # leaves its caches beside the shards
    assert len(find_shards(f"{tmp_path}/*/*")) == 2


# --- what is said ---


def test_the_check_reports_what_is_left_out(shard: Path) -> None:
    write(shard, [("1.png", png(1)), ("1.txt", b"one"), ("1.cls", b"0"), ("2.heic", b"")])
    report = check_source(TarData(str(shard)))
    assert (report.num_samples, report.num_corrupt) == (1, 0)
    assert report.to_json()["left_out"] == {
        "unknown suffix": {"num": 2, "first": (f"{shard}:1.cls", f"{shard}:2.heic")}
    }
    lines = list(report.lines())
    assert "left out     2" in lines
    assert f"         2  unknown suffix: {shard}:1.cls, {shard}:2.heic" in lines
    with pytest.raises(ValueError, match="the source holds no sample; left out are unknown suffix: 1"):
        check_source(TarData(str(write(shard.with_name("y.tar"), [("2.heic", b"")]))))


@pytest.mark.slow
def test_no_damage_to_a_tar_raises_anything_but_its_cause(tmp_path: Path) -> None:
    members: Members = [
        (f"{i}.{s}", png(i) if s == "png" else b"{}") for i in range(4) for s in ("png", "txt", "json")
    ]
    members += [
        link("l.png", "1.png"),
        link("h.png", "1.png", tarfile.LNKTYPE),
        ("n" * 200 + "é.png", png(5)),
    ]
    data = write(tmp_path / "x.tar", members).read_bytes()
    rng = random.Random(0)
    for number in range(1500):
        damaged = bytearray(data)
        for _ in range(rng.choice((1, 1, 3, 30))):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        path = tmp_path / f"{number}.tar"
        path.write_bytes(damaged[: rng.randrange(len(damaged)) if number % 5 == 0 else None])
        read(path)
        TarSource(TarData(str(path))).sizes()
