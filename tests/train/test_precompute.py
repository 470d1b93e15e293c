import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from list_source import ListSource
from safetensors.torch import load_file
from tiny_models import tiny_image_codec
from typer.testing import CliRunner

from ddit.cli import app
from ddit.config.data import WorldData
from ddit.config.runs import TEACHER_FILE, LatentsRun, save_config
from ddit.data.buckets import assign_buckets
from ddit.data.latents import CachedSource, LatentFolder, shard_path
from ddit.data.sources import WorldSource
from ddit.devices import Ranks
from ddit.train import precompute as making
from ddit.train.precompute import precompute, teacher_features
from ddit.world.detector import DetectorNet, load_detector

RUN = """
import sys
from pathlib import Path
from ddit.config.runs import from_json
from ddit.devices import join_ranks
from ddit.train.precompute import precompute
precompute(from_json(Path(sys.argv[1]).read_text()), join_ranks(), num_workers=0)
"""


@pytest.fixture
def run(tmp_path: Path) -> LatentsRun:
    torch.set_num_threads(1)  # as the processes of torchrun have
    tiny_image_codec().save_pretrained(tmp_path / "vae")
    torch.manual_seed(0)
    DetectorNet(8).save(tmp_path / TEACHER_FILE)
    return LatentsRun(
        out=str(tmp_path / "one"), vae=str(tmp_path / "vae"), source=WorldData(num_scenes=50),
        teacher=str(tmp_path / TEACHER_FILE), image_size=64, shard_size=12, batch_size=5,
    )  # fmt: skip


def contents(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    return {path.name: load_file(path) for path in sorted(folder.glob("*.safetensors"))}


def assert_same(found: Path, expected: Path) -> None:
    one, other = contents(found), contents(expected)
    assert one.keys() == other.keys()
    for name, tensors in other.items():
        assert tensors.keys() == one[name].keys()
        assert all(torch.equal(one[name][key], tensor) for key, tensor in tensors.items())


def test_latents_and_features_are_those_of_the_images(run: LatentsRun) -> None:
    folder = LatentFolder(precompute(run, Ranks()))
    assert len(contents(folder.folder)) == 5
    pixels = WorldSource(WorldData(num_scenes=50)).pixels(0, 50)
    mean, std = tiny_image_codec().encode_distribution(pixels)
    features = teacher_features(load_detector(Path(run.teacher or "")), pixels, 4)
    for index in range(50):
        found = folder.get(index)
        assert found is not None
        for name, expected in (("mean", mean), ("std", std), ("features", features)):
            torch.testing.assert_close(getattr(found, name).float(), expected[index], rtol=2e-3, atol=2e-3)


@pytest.mark.slow
def test_two_processes_make_what_one_makes(run: LatentsRun, tmp_path: Path) -> None:
    precompute(run, Ranks())
    two = replace(run, out=str(tmp_path / "two"))
    save_config(two, tmp_path)
    (tmp_path / "run.py").write_text(RUN)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    command += [str(tmp_path / "run.py"), str(tmp_path / "config.json")]
    subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True)
    assert_same(tmp_path / "two", tmp_path / "one")


def test_ranks_share_the_shards_and_workers_change_nothing(
    run: LatentsRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    precompute(run, Ranks())
    two = replace(run, out=str(tmp_path / "two"))
    monkeypatch.setattr(making.time, "sleep", lambda _: pytest.fail("waits"))
    for rank, made in ((1, [1, 3]), (0, [0, 1, 2, 3, 4])):
        if rank == 1:  # the other's shards are still missing
            with pytest.raises(pytest.fail.Exception, match="waits"):
                precompute(two, Ranks(rank, 2), num_workers=1)
        else:
            precompute(two, Ranks(rank, 2), num_workers=1)
        names = [shard_path(tmp_path, shard).name for shard in made]
        assert sorted(contents(tmp_path / "two")) == names
    assert_same(tmp_path / "two", tmp_path / "one")


def test_an_interrupted_run_goes_on_with_what_is_missing(
    run: LatentsRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = precompute(run, Ranks())
    before = contents(out)
    shard_path(out, 3).unlink()
    times = {path: path.stat().st_mtime_ns for path in out.glob("*.safetensors")}
    asked = []
    original = WorldSource.sample
    monkeypatch.setattr(
        WorldSource,
        "sample",
        lambda self, index, *a, **k: asked.append(index) or original(self, index, *a, **k),
    )
    precompute(run, Ranks(), num_workers=0)
    assert asked == list(range(36, 48))
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())
    assert all(torch.equal(contents(out)[n][k], t) for n, part in before.items() for k, t in part.items())
    with pytest.raises(ValueError, match="made with other settings"):
        precompute(replace(run, image_size=32), Ranks())


def test_buckets_corrupt_images_and_texts_alone_are_told_apart(
    run: LatentsRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = [(64, 64), (128, 64), (64, 128), (70, 64), (64, 64)] * 6
    source = ListSource(30, sizes=sizes, corrupt=frozenset({7, 29}), without=frozenset({2, 5}))
    monkeypatch.setattr(making, "open_source", lambda _: source)
    run = replace(run, teacher=None, image_size=32, num_buckets=5, bucket_unit=8)
    folder = LatentFolder(precompute(run, Ranks()))
    wanted = assign_buckets(np.array(sizes), folder.info.shapes)
    found = folder.sizes()
    for index in range(30):
        height, width = folder.info.shapes[wanted[index]]
        if index in source.without:
            assert found[index].tolist() == [0, 0]
            assert folder.get(index) is None
        elif index in source.corrupt:
            with pytest.raises(Exception, match="not an image"):
                folder.get(index)
        else:
            assert found[index].tolist() == [width, height]
            latents = folder.get(index)
            assert latents is not None
            assert latents.mean.shape == (4, height // 4, width // 4)
            assert latents.features is None
    with pytest.raises(ValueError, match="features need num_buckets=1"):
        precompute(replace(run, out=run.out + "b", teacher=str(Path(run.vae).parent / TEACHER_FILE)), Ranks())


def test_the_command_makes_latents_that_a_source_can_name(run: LatentsRun, tmp_path: Path) -> None:
    (tmp_path / "source.json").write_text('{"kind": "world", "num_scenes": 6}')
    out = tmp_path / "made"
    arguments = [
        "data",
        "precompute",
        str(tmp_path / "source.json"),
        str(out),
        "--vae",
        run.vae,
        "--size",
        "64",
    ]
    found = CliRunner().invoke(app, [*arguments, "--json", "--num-workers", "0"])
    assert found.exit_code == 0, found.output
    assert json.loads(found.stdout) == {"path": str(out), "num": 6}
    cfg = WorldData(num_scenes=6, question_fraction=0.5, latents=str(out))
    assert len(CachedSource(WorldSource(cfg), cfg, LatentFolder(out))) == 6
