"""Data behind URLs: samples are those of local files, trouble ends the run, and the cache stays within its bound."""

import os
import random
import threading
import time
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from ddit.config.data import JsonData, LlavaData, QuestionsData, SourceConfig, TarData
from ddit.data.samples import CorruptSample, SourceError
from ddit.data.sources import open_source, remote
from ddit.data.sources.guess import guess_source
from ddit.data.sources.remote import RemotePath
from ddit.data.world_files import WorldScenes, write_world
from ddit.train.loader import make_ahead
from ddit.world import PRESETS

NUM = 12


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("raw")
    scenes = WorldScenes(PRESETS["fixed"], "train", NUM)
    for form in ("json", "tar", "llava", "questions"):
        write_world(folder / form, scenes, form)
    return folder


@pytest.fixture
def storage(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The same files at memory://store, and a cache of their own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "_FIRST_DELAY", 0.0)
    storage = fsspec.filesystem("memory")
    storage.put(str(raw), "/store", recursive=True)
    yield "memory://store"
    storage.rm("/store", recursive=True)


def config(form: str, base: str) -> SourceConfig:
    match form:
        case "json":
            return JsonData(f"{base}/json/metadata.json")
        case "tar":
            return TarData(f"{base}/tar/{{00000..00000}}.tar")
        case "llava":
            return LlavaData(f"{base}/llava/conversations.json", images=f"{base}/llava")
        case _:
            folder = f"{base}/questions"
            return QuestionsData(
                f"{folder}/questions.json", f"{folder}/annotations.json", images=f"{folder}/images"
            )


def contents(cfg: SourceConfig) -> list[Any]:
    """Every sample of a source, its image as bytes, and all sizes."""
    source = open_source(cfg)
    found: list[Any] = []
    for index in range(len(source)):
        sample = source.sample(index, random.Random(index), i2t=not isinstance(cfg, TarData))
        image = None if sample.image is None else np.asarray(sample.image).tobytes()
        found.append((image, sample.caption, sample.turns))
    return [*found, source.sizes().tolist()]


def break_reading(monkeypatch: pytest.MonkeyPatch, error: Exception, num_times: int = 1000) -> list[str]:
    """The next readings of the storage raise; returns the list of those that did."""
    whole, failed = MemoryFileSystem.cat_file, []

    def cat_file(self: MemoryFileSystem, path: str, *args: Any, **kwargs: Any) -> Any:
        if len(failed) < num_times:
            failed.append(path)
            raise error
        return whole(self, path, *args, **kwargs)

    monkeypatch.setattr(MemoryFileSystem, "cat_file", cat_file)
    return failed


@pytest.mark.parametrize("form", ["json", "tar", "llava", "questions"])
def test_a_url_gives_the_samples_of_the_local_files(
    form: str, raw: Path, storage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = contents(config(form, str(raw)))
    assert len(local) > NUM
    assert contents(config(form, storage)) == local
    failed = break_reading(monkeypatch, OSError("read again"))
    assert contents(config(form, storage)) == local  # of the cache
    assert not failed


def test_folders_and_patterns_of_urls_name_shards(storage: str, raw: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.put(str(raw / "tar" / "00000.tar"), "/store/tar/00001.tar")
    for path in ("tar", "tar/*.tar", "tar/{00000..00001}.tar"):
        assert len(open_source(TarData(f"{storage}/{path}"))) == 2 * NUM
    with pytest.raises(ValueError, match=r"'memory://store/tar/00002\.tar' does not exist"):
        open_source(TarData(f"{storage}/tar/{{00000..00002}}.tar"))
    with pytest.raises(ValueError, match=r"there is no \.tar file at 'memory://store/none/\*'"):
        open_source(TarData(f"{storage}/none/*"))
    with pytest.raises(ValueError, match=r"cannot read 'nowhere://x\.tar': Protocol not known: nowhere"):
        open_source(TarData("nowhere://x.tar"))


def test_the_kind_of_a_url_is_guessed(storage: str) -> None:
    assert isinstance(guess_source(f"{storage}/tar/00000.tar"), TarData)
    assert isinstance(guess_source(f"{storage}/llava/conversations.json"), LlavaData)
    found = guess_source(f"{storage}/json/metadata.json")
    assert isinstance(found, JsonData)
    assert found.path == f"{storage}/json/metadata.json"


def test_parquet_behind_a_url_is_read(storage: str, raw: Path, tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    write_world(tmp_path / "parquet", WorldScenes(PRESETS["fixed"], "train", NUM), "parquet")
    path = next((tmp_path / "parquet").rglob("*.parquet"))
    found = guess_source(f"file://{path}")
    assert contents(found) == contents(guess_source(str(path)))


@pytest.mark.parametrize("form", ["json", "tar"])
def test_trouble_on_the_way_is_tried_again_and_never_makes_a_sample_corrupt(
    form: str, storage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_source(config(form, storage))
    with monkeypatch.context() as context:
        failed = break_reading(context, OSError("timed out"), 3)
        assert source.sample(0, random.Random(0), i2t=False).image is not None
        assert len(failed) == 3
    break_reading(monkeypatch, OSError("timed out"))
    with pytest.raises(SourceError, match=r"cannot read 'memory://store/.*': timed out"):
        source.sample(1, random.Random(0), i2t=False)
    if form == "tar":  # the other's metadata have the sizes
        with pytest.raises(SourceError, match="timed out"):
            source.sizes()


def test_an_image_that_is_not_there_is_a_corrupt_sample(storage: str) -> None:
    source = open_source(config("json", storage))
    memory = fsspec.filesystem("memory")
    memory.rm("/store/json/images", recursive=True)
    with pytest.raises(CorruptSample, match="missing file"):
        source.sample(0, random.Random(0), i2t=False)


def test_another_file_under_the_same_name_is_read_anew(storage: str, raw: Path, tmp_path: Path) -> None:
    before = contents(config("tar", storage))
    write_world(tmp_path / "other", WorldScenes(PRESETS["fixed"], "val", NUM), "tar")
    fsspec.filesystem("memory").put(str(tmp_path / "other" / "00000.tar"), "/store/tar/00000.tar")
    assert (
        contents(config("tar", storage)) == contents(TarData(str(tmp_path / "other" / "00000.tar"))) != before
    )


@pytest.mark.slow
def test_workers_read_from_a_web_server(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In processes that are forked after the source was opened, as a run's; the server knows no ranges."""
    pytest.importorskip("aiohttp")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    handler = partial(SimpleHTTPRequestHandler, directory=str(raw))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/tar/00000.tar"
        source, local = open_source(TarData(url)), open_source(config("tar", str(raw)))
        assert source.sizes().tolist() == local.sizes().tolist()

        def caption(index: int) -> tuple[str | None, bytes]:
            sample = source.sample(index, random.Random(0), i2t=False)
            return sample.caption, np.asarray(sample.image).tobytes()

        found = list(make_ahead(caption, range(NUM), 2))
        source = local
        assert found == [caption(index) for index in range(NUM)]
        server.shutdown()


def test_the_cache_keeps_within_its_bound(
    storage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "_NUM_PARTS", 1)
    monkeypatch.setattr(remote, "_part_of", lambda digest: "all")
    memory, folder = fsspec.filesystem("memory"), remote.cache_folder() / "remote"
    monkeypatch.setenv("DDIT_CACHE_GIB", str(10_000 / 2**30))
    for number in range(40):
        memory.pipe_file(f"/store/{number}.png", bytes([number]) * 900)
        assert RemotePath(f"{storage}/{number}.png").read() == bytes([number]) * 900
        assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) <= 10_000
    assert len([file for file in folder.rglob("*") if file.is_file()]) == 11
    (folder / "all" / "removed meanwhile").symlink_to("by another process")
    memory.pipe_file("/store/one more.png", b"more")
    assert RemotePath(f"{storage}/one more.png").read() == b"more"
    assert b"more" in [file.read_bytes() for file in folder.rglob("*") if file.is_file()]
    memory.pipe_file("/store/large.png", bytes(20_000))
    assert len(RemotePath(f"{storage}/large.png").read()) == 20_000  # is not kept
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) <= 10_000
    monkeypatch.setenv("DDIT_CACHE_GIB", "much")
    with pytest.raises(SourceError, match="DDIT_CACHE_GIB must be a number of GiB, not 'much'"):
        RemotePath(f"{storage}/large.png").read()


def test_copies_that_nobody_uses_are_removed(storage: str) -> None:
    old = remote.local_copy(f"{storage}/json/metadata.json")
    assert old.name == "metadata.json"
    assert old == remote.local_copy(f"{storage}/json/metadata.json")
    month = time.time() - 40 * 86_400
    os.utime(old.parent, (month, month))
    remote.local_copy(f"{storage}/llava/conversations.json")
    assert not old.parent.exists()
