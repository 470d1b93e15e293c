"""The doctor: every check is a line whatever the others do, and the report and the exit code say how it went."""

import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from command_line import Run

from ddit.commands.doctor import PARTS
from ddit.doctor import checks, machine
from ddit.doctor.report import Bench, Check, Finding, Outcome, Skipped, open_bench, run_checks, to_markdown

CPU = torch.device("cpu")


def breaks(bench: Bench) -> Outcome:
    raise RuntimeError("no such\nkernel")


def skips(bench: Bench) -> Outcome:
    raise Skipped("nothing to do")


SOME = [
    Check("machine", "good", lambda bench: Outcome("1 | 2 GiB")),
    Check("machine", "bad", breaks),
    Check("model", "absent", skips),
    Check("model", "slow", lambda bench: Outcome("0.1 TFLOP/s", "slow")),
]


def statuses(found: list[Finding]) -> list[str]:
    return [finding.status for finding in found]


def test_a_check_that_fails_ends_no_other() -> None:
    with open_bench(CPU) as bench:
        found = list(run_checks(SOME, bench))
        assert bench.folder.is_dir()
    assert not bench.folder.exists()
    assert statuses(found) == ["ok", "failed", "skipped", "slow"]
    assert found[1].figure == "RuntimeError: no such kernel"
    assert found[2].figure == "nothing to do"
    lines = to_markdown(found, CPU).splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 2 + len(SOME)
    assert all(line.count("|") == 6 for line in table)
    assert lines[-1].startswith("1 ok, 1 slow, 1 failed, 1 skipped; ")


def test_the_command_prints_what_it_writes_and_fails_if_a_check_does(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for some, code in ((SOME, 1), ([SOME[0], *SOME[2:]], 0)):
        monkeypatch.setattr(checks, "list_checks", lambda train, some=some: some)
        result = run("doctor", "--device", "cpu", "--out", tmp_path / "report.md")
        assert result.code == code
        assert result.out == (tmp_path / "report.md").read_text()
        assert "| machine | good | ok | 1 / 2 GiB |" in result.out
        assert "ok      machine: good: 1 | 2 GiB" in result.err


def test_with_json_each_check_is_an_object(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "list_checks", lambda train: SOME)
    lines = run("doctor", "--json", "--only", "machine", "--device", "cpu").out.splitlines()
    found = [json.loads(line) for line in lines]
    assert [(each["group"], each["name"], each["status"]) for each in found] == [
        ("machine", "good", "ok"),
        ("machine", "bad", "failed"),
    ]


def test_an_unknown_part_is_named(run: Run) -> None:
    assert run("doctor", "--only", "kernel").fault.startswith("unknown part 'kernel': use machine, kernels")


def test_machine_and_kernels_on_a_cpu() -> None:
    """All of them but the exchange, which starts processes."""
    some = [c for c in (*machine.machine_checks(), *machine.kernel_checks()) if c.name != "all-reduce"]
    with open_bench(CPU) as bench:
        found = {finding.name: finding for finding in run_checks(some, bench)}
    assert not [finding for finding in found.values() if finding.status == "failed"]
    no_gpu = {name for name, finding in found.items() if finding.figure == "no GPU"}
    assert no_gpu == {
        "device memory", "products in float16", "attention: memory-efficient", "attention: cuDNN"
    }  # fmt: skip
    assert "TFLOP/s, relative error" in found["products in float32"].figure


def test_a_product_that_is_wrong_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "PRODUCT_ERRORS", {torch.float32: 1e-9})
    with open_bench(CPU) as bench:
        outcome = machine.check_products(bench, torch.float32)
    assert outcome.status == "failed"


def test_little_shared_memory_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = SimpleNamespace(total=64 * 2**20, used=0, free=64 * 2**20)
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda path: usage)
    with open_bench(CPU) as bench:
        outcome = machine.check_shared_memory(bench)
    assert outcome.status == "slow"
    assert "--shm-size" in outcome.figure


def test_every_check_has_a_name_of_its_own() -> None:
    listed = checks.list_checks(train=True)
    assert len({(check.group, check.name) for check in listed}) == len(listed)
    assert {check.group for check in checks.list_checks()} == {"machine", "kernels", "model"}
    assert tuple(dict.fromkeys(check.group for check in listed)) == PARTS
    assert all(callable(check.run) or isinstance(check.run, partial) for check in listed)


@pytest.mark.slow
def test_two_processes_exchange() -> None:
    with open_bench(CPU) as bench:
        outcome = machine.check_exchange(bench)
    assert outcome.status == "ok"
    assert outcome.figure.startswith("gloo, 2 processes: 64 MiB in ")
