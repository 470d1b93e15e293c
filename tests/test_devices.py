"""Threads of small models: one for a few samples, all for many; how ranks share samples."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ddit import devices
from ddit.devices import WIDE_BATCH, Ranks, batch_threads, limit_threads


@pytest.fixture
def two_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process of two threads that nobody has limited."""
    before = torch.get_num_threads()
    monkeypatch.setattr(devices, "_spare_threads", None)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def folder_of(path: Path, num_bytes: int) -> Path:
    with (path / "model.safetensors").open("wb") as file:
        file.truncate(num_bytes)
    return path


def threads_of(num_samples: int) -> int:
    with batch_threads(num_samples):
        return torch.get_num_threads()


@pytest.mark.usefixtures("two_threads")
def test_a_small_model_gets_one_thread_and_its_large_batches_all(tmp_path: Path) -> None:
    limit_threads(folder_of(tmp_path, 1000))
    assert [threads_of(count) for count in (1, WIDE_BATCH - 1, WIDE_BATCH, 16)] == [1, 1, 2, 2]
    assert torch.get_num_threads() == 1


@pytest.mark.usefixtures("two_threads")
def test_a_fault_in_a_batch_takes_the_threads_back(tmp_path: Path) -> None:
    limit_threads(folder_of(tmp_path, 1000))
    with pytest.raises(ValueError, match="broken"), batch_threads(16):
        raise ValueError("broken")
    assert torch.get_num_threads() == 1


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("why", ["large", "asked"])
def test_a_large_model_and_a_number_that_was_told_stay(
    why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if why == "asked":
        monkeypatch.setenv("OMP_NUM_THREADS", "2")
    limit_threads(folder_of(tmp_path, devices.SMALL_MODEL_BYTES if why == "large" else 1000))
    assert [threads_of(count) for count in (1, 16)] == [2, 2]


@pytest.mark.parametrize(("count", "size"), [(0, 2), (1, 3), (7, 2), (12, 5)])
def test_ranks_share_all_samples_once(count: int, size: int) -> None:
    parts = [Ranks(index, size).part(count) for index in range(size)]
    assert [k for part in parts for k in part] == list(range(count))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
