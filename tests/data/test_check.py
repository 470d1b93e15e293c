"""`ddit data check`: one percent of corrupt samples is counted exactly, by cause, in a tar and in JSON."""

import json
import sys
import tarfile
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from ddit.cli import main
from ddit.config.data import JsonData, TarData, WorldData
from ddit.data.check import Fit, check_source
from ddit.data.world_files import WorldScenes, _add, write_world
from ddit.world import PRESETS

NUM = 400
CORRUPT = {"truncated image": 5, "not an image": 130, "missing file": 222, "no caption": 399}
"""Which sample has which fault: one percent of all."""


@pytest.fixture(scope="module")
def json_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("json")
    path = write_world(folder, WorldScenes(PRESETS["fixed"], "train", NUM), "json")
    entries = json.loads(path.read_text())
    images = [folder / entry["image_path"] for entry in entries]
    truncated = images[CORRUPT["truncated image"]]
    truncated.write_bytes(truncated.read_bytes()[:1000])
    images[CORRUPT["not an image"]].write_text("this is text")
    images[CORRUPT["missing file"]].unlink()
    entries[CORRUPT["no caption"]] |= {"caption": "", "re_caption": " "}
    path.write_text(json.dumps(entries))
    return path


@pytest.fixture(scope="module")
def tar_path(json_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tar") / "00000.tar"
    with tarfile.open(path, "w") as tar:
        for i, entry in enumerate(json.loads(json_path.read_text())):
            image = json_path.parent / entry["image_path"]
            if image.exists():
                _add(tar, f"{i:09d}.png", image.read_bytes())
            _add(tar, f"{i:09d}.txt", entry["re_caption"].encode())
    return path


def test_corrupt_json_entries_are_counted_by_cause(json_path: Path) -> None:
    report = check_source(JsonData(str(json_path)))
    assert {cause: corrupt.num for cause, corrupt in report.corrupt.items()} == dict.fromkeys(CORRUPT, 1)
    assert report.corrupt["missing file"].first == (f"{json_path}[222]",)
    assert (report.num_samples, report.num_corrupt, report.corrupt_share) == (NUM, 4, 0.01)


def test_corrupt_members_of_a_tar_are_counted_by_cause(tar_path: Path) -> None:
    report = check_source(TarData(str(tar_path)))
    expected = {("no image" if cause == "missing file" else cause): 1 for cause in CORRUPT}
    assert {cause: corrupt.num for cause, corrupt in report.corrupt.items()} == expected
    assert report.num_samples == NUM


@pytest.mark.slow
def test_several_processes_find_what_one_finds(json_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = check_source(JsonData(str(json_path)))
    monkeypatch.setattr("ddit.data.check._WORTH_PROCESSES", 0)
    calls = Counter()
    together = check_source(
        JsonData(str(json_path)), num_workers=2, on_progress=lambda done, total: calls.update([(done, total)])
    )
    assert together == alone
    assert max(calls) == (NUM, NUM)


def test_a_limit_reads_samples_spread_over_the_source() -> None:
    report = check_source(WorldData(num_scenes=1_000_000), limit=10)
    assert (report.num_samples, report.num_checked, report.num_corrupt) == (1_000_000, 10, 0)
    assert report.width == (64, 64, 64)
    assert report.words is not None
    assert report.words.least >= 1


def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object
) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["ddit", *map(str, arguments)])
    code = None
    try:
        main()
    except SystemExit as end:
        code = end.code
    said = capsys.readouterr()
    return code if isinstance(code, int) else 0, said.out, said.err


def test_the_command_reports_and_fails_above_the_allowed_share(
    json_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(monkeypatch, capsys, "data", "check", json_path)
    assert code == 0
    assert "usable       396 (99.00 %)" in out
    assert f"1  missing file: {json_path}[222]" in out
    assert err == ""  # a bar is for terminals
    code, out, err = run(
        monkeypatch, capsys, "data", "check", json_path, "--max-corrupt-share", 0.005, "--json"
    )
    assert code == 1
    assert json.loads(out)["corrupt"]["no caption"]["num"] == 1
    assert "ddit: 1.00 % of the samples are corrupt, 0.5 % may be" in err


def test_mistakes_get_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, fault in {
        ("nowhere.tar",): "'nowhere.tar' does not exist: give a .tar file, a folder of them",
        ("nowhere.json", "--kind", "jsn"): "unknown kind of source 'jsn'",
        ("nowhere.json", "--set", "x"): "--set takes KEY=VALUE",
    }.items():
        code, out, err = run(monkeypatch, capsys, "data", "check", *arguments)
        assert (code, out) == (1, "")
        assert err.startswith(f"ddit: {fault}")
        assert len(err.splitlines()) == 1
    (tmp_path / "empty.json").write_text("[]")
    assert (
        "the source holds no sample" in run(monkeypatch, capsys, "data", "check", tmp_path / "empty.json")[2]
    )


# --- texts that are too long ---


def write_captions(folder: Path, lengths: list[int]) -> Path:
    Image.new("RGB", (4, 4)).save(folder / "a.png")
    entries = [{"image_path": "a.png", "caption": " ".join(["dog,"] * length)} for length in lengths]
    (folder / "metadata.json").write_text(json.dumps(entries))
    return folder / "metadata.json"


def test_texts_longer_than_a_run_keeps_are_counted(tmp_path: Path) -> None:
    cfg = JsonData(str(write_captions(tmp_path, [1, 62, 63, 64, 200])))
    report = check_source(cfg)
    assert (report.num_cut, report.cut_share, report.is_exact) == (2, 0.4, False)
    assert "cut texts    at least 2 (40.00 %): more than 64 tokens" in list(report.lines())
    assert check_source(cfg, fit=Fit(201)).num_cut == 0
    exact = check_source(cfg, fit=Fit(63, lambda text: 2 * len(text.split())))
    assert (exact.num_cut, exact.is_exact) == (4, True)
    assert "cut texts    4 (80.00 %): more than 63 tokens" in list(exact.lines())


def test_the_command_counts_with_the_runs_tokenizer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_captions(tmp_path, [3, 4, 30])
    for arguments, expected in (
        (("--length", 7, "--text", "mini"), (2, True)),  # the comma is a token
        (("--length", 8, "--text", "mini"), (2, True)),
        (("--length", 9, "--text", "mini"), (1, True)),
        (("--length", 9), (1, False)),
        ((), (0, False)),
    ):
        code, out, _ = run(monkeypatch, capsys, "data", "check", path, "--json", *arguments)
        found = json.loads(out)
        assert (code, found["num_cut"], found["is_exact"]) == (0, *expected)
    code, out, err = run(monkeypatch, capsys, "data", "check", path, "--text", tmp_path)
    assert (code, out) == (1, "")
    assert (
        "tokenizer.json' does not exist: --text takes the folder that the run's `text` or `init` names" in err
    )


def test_half_a_surrogate_pair_is_no_usable_text(tmp_path: Path) -> None:
    path = write_captions(tmp_path, [1])
    path.write_text('[{"image_path": "a.png", "caption": "a \\ud83d dog"}]')
    assert list(check_source(JsonData(str(path))).corrupt) == ["unusable text"]
