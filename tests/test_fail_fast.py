"""What a rank learns of the failures of others. That processes end by it is tested in tests/train/test_fail_fast.py."""

import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
from torch.distributed import HashStore

from ddit import fail_fast
from ddit.fail_fast import Place, Watch


@pytest.fixture
def watches(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., list[Watch]]]:
    """Watches of the ranks at some places, which share a store and do not look by themselves."""
    monkeypatch.setattr(fail_fast, "_PERIOD", 3600.0)
    made: list[Watch] = []

    def make(*places: Place) -> list[Watch]:
        store = HashStore()
        made.extend(Watch(store, rank, places) for rank in range(len(places)))
        return made

    yield make
    for watch in made:
        watch.leave()


def ended_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_the_first_failure_is_the_one_that_counts(watches: Callable[..., list[Watch]]) -> None:
    first, second, third = watches(*[Place.here()] * 3)
    assert third.failure() is None
    assert second.announce("rank 1: a fault")
    assert not first.announce("rank 0: Connection closed by peer")
    assert not first.announce("rank 1: a fault")
    assert [watch.failure() for watch in (first, second, third)] == ["rank 1: a fault"] * 3


def test_a_process_that_ended_without_a_word_is_named(watches: Callable[..., list[Watch]]) -> None:
    gone = Place.here()._replace(process=ended_process())
    first, second = watches(Place.here(), gone)
    assert (
        first.failure()
        == f"rank 1: process {gone.process} has ended without a word: killed, or out of memory"
    )
    second.leave()
    assert first.failure() is None


def test_processes_of_other_machines_are_not_judged(watches: Callable[..., list[Watch]]) -> None:
    first, _ = watches(Place.here(), Place("another machine", ended_process()))
    assert first.failure() is None


def test_a_connection_that_another_rank_has_closed_waits_for_the_cause(
    watches: Callable[..., list[Watch]],
) -> None:
    first, second = watches(Place.here(), Place.here())
    assert second.announce("rank 1: a fault")
    assert fail_fast._cause(first) == "rank 1: a fault"
