import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from stepping import make_trainer, take_steps

from ddit.config.runs import DualRun
from ddit.devices import Ranks, join_ranks
from ddit.train.checkpoint import find_newest, load_tensors, save_checkpoint, stored_shapes


@pytest.fixture
def ranks() -> Ranks:
    return join_ranks()


def save(run: Path, step: int, ranks: Ranks, *, keep: int = 2) -> Path:
    state = {"weight": torch.full((40, 50), float(step)), "step": torch.tensor(float(step))}
    return save_checkpoint(run, step, state, {"note": "n"}, keep=keep, ranks=ranks)


def load(run: Path) -> tuple[int, float]:
    """Step and weight of the newest checkpoint."""
    checkpoint = find_newest(run)
    assert checkpoint is not None
    assert checkpoint.description["note"] == "n"
    assert stored_shapes(checkpoint.folder) == {"weight": (40, 50), "step": ()}
    tensors = {"weight": torch.zeros(40, 50), "step": torch.tensor(0.0)}
    load_tensors(checkpoint.folder, tensors)
    assert tensors["step"].item() == checkpoint.step
    return checkpoint.step, tensors["weight"].mean().item()


def test_the_newest_is_found_and_the_oldest_are_removed(tmp_path: Path, ranks: Ranks) -> None:
    assert find_newest(tmp_path) is None
    for step in (1, 2, 10):
        save(tmp_path, step, ranks)
    assert load(tmp_path) == (10, 10.0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ckpt-00000002", "ckpt-00000010"]


def test_a_torn_or_half_deleted_newest_is_skipped(
    tmp_path: Path, ranks: Ranks, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [save(tmp_path, step, ranks, keep=5) for step in (1, 2, 3, 4, 5)]
    (data,) = folders[1].glob("*.distcp")
    data.write_bytes(data.read_bytes()[:-100])
    (folders[2] / ".metadata").unlink()
    (folders[3] / "manifest.json").write_text("{")
    shutil.rmtree(folders[4])
    folders[4].mkdir()
    (tmp_path / "ckpt-00000006.tmp").mkdir()
    assert load(tmp_path) == (1, 1.0)
    words = capsys.readouterr().err
    for step, reason in ((2, "bytes, not"), (3, "No such file"), (4, "Expecting"), (5, "No such file")):
        assert f"ckpt-0000000{step} is skipped: " in words
        assert reason in words
    assert "ckpt-00000006.tmp is skipped: it was never finished" in words


def test_what_was_torn_goes_with_the_next_checkpoint(tmp_path: Path, ranks: Ranks) -> None:
    """Otherwise it would take the place of a good one among those that are kept."""
    for step in (1, 2, 4):
        torn = save(tmp_path, step, ranks, keep=3)
    (torn / "manifest.json").unlink()
    save(tmp_path, 3, ranks, keep=3)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["ckpt-00000001", "ckpt-00000002", "ckpt-00000003"]


@contextmanager
def small_files(num_bytes: int) -> Iterator[None]:
    """No file may grow beyond so many bytes: writing fails as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("room", [0, 3000], ids=["none", "some"])
def test_a_full_disk_is_one_line_and_leaves_the_last_checkpoint_whole(
    tmp_path: Path, ranks: Ranks, room: int
) -> None:
    save(tmp_path, 1, ranks)
    with (
        small_files(room),
        pytest.raises(
            OSError, match=r"the checkpoint of step 2 cannot be written to .*: File too large"
        ) as caught,
    ):
        save(tmp_path, 2, ranks)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["ckpt-00000001"]
    assert load(tmp_path) == (1, 1.0)
    save(tmp_path, 2, ranks)
    assert load(tmp_path) == (2, 2.0)


def test_a_run_goes_on_from_what_was_saved_before_the_disk_was_full(plain: DualRun) -> None:
    trainer = make_trainer(plain)
    take_steps(trainer, 1)
    trainer.save()
    take_steps(trainer, 1)
    with small_files(20_000), pytest.raises(OSError, match="checkpoint of step 2 cannot be written"):
        trainer.save()
    checkpoint = find_newest(Path(plain.out))
    assert checkpoint is not None
    again = make_trainer(replace(plain))
    again.resume(checkpoint)
    assert again.step == 1
    take_steps(again, 1)
    for name, parameter in trainer.trained.items():
        assert torch.equal(parameter.full_tensor(), again.trained[name].full_tensor()), name
