"""The curves of runs: what is drawn is what is in their logs."""

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest

from ddit.images import read_image
from ddit.train.plot import by_time, panel_names, plot_runs, read_curves, smooth


def make_run(folder: Path, *, steps: int = 40, extra: str | None = None) -> Path:
    folder.mkdir()
    events = [
        {"step": i, "total": 1 / i, "lr": 1e-3, "grad_norm": 2.0, "seconds": float(i)}
        for i in range(1, steps)
    ]
    events.append({"step": steps, "uptake": 0.5, "final": 1, **({extra: 1.0} if extra else {})})
    text = "".join(json.dumps(event) + "\n" for event in events)
    (folder / "log.jsonl").write_text(text + '{"step": 41, "to')  # a run that is being written
    return folder


def test_curves_are_the_numbers_of_the_log(tmp_path: Path) -> None:
    curves = read_curves(make_run(tmp_path / "a", extra="loss_of_ours"))
    assert set(curves) == {"total", "lr", "grad_norm", "uptake", "loss_of_ours"}
    assert curves["total"] == [(i, 1 / i) for i in range(1, 40)]
    assert panel_names([curves]) == ["total", "grad_norm", "lr", "uptake", "loss_of_ours"]


def test_one_run_is_drawn_into_its_folder_and_several_over_one_another(tmp_path: Path) -> None:
    one, two = make_run(tmp_path / "a"), make_run(tmp_path / "b", steps=20)
    alone = plot_runs([one])
    assert alone == one / "curves.png"
    together = plot_runs([one, two], tmp_path / "both.png")
    assert together == tmp_path / "both.png"

    def colors(path: Path) -> set[tuple[int, ...]]:
        return {tuple(color) for color in np.asarray(read_image(path)).reshape(-1, 3)}

    first, second = (0x1F, 0x77, 0xB4), (0xFF, 0x7F, 0x0E)  # the first two colours of the library's cycle
    assert first in colors(alone)
    assert second not in colors(alone)
    assert {first, second} <= colors(together)


def test_losses_by_time_are_one_panel_and_intervals_are_bands(tmp_path: Path) -> None:
    def run(name: str, **figures: float) -> Path:
        (tmp_path / name).mkdir()
        events = [
            {"step": step, "flow_loss": 1.0, "flow_t0.05": 3.0 - step, "flow_t0.15": 0.5} for step in (1, 2)
        ]
        text = "".join(json.dumps(event | figures) + "\n" for event in events)
        (tmp_path / name / "log.jsonl").write_text(text)
        return tmp_path / name

    plain, banded = (
        run("plain"),
        run("banded", flow_loss_ci=0.2, **{"flow_t0.05_ci": 0.1, "flow_t0.15_ci": 0.1}),
    )
    curves = read_curves(banded)
    assert panel_names([curves]) == ["flow_loss", "flow_t"]
    assert by_time(curves) == {
        "flow_t": [(0.05, 1.0), (0.15, 0.5)],  # of the last evaluation
        "flow_t_ci": [(0.05, 0.1), (0.15, 0.1)],
    }

    def shades(folder: Path) -> int:
        image = np.asarray(read_image(plot_runs([folder]))).reshape(-1, 3).astype(int)
        return int(
            (np.abs(image - (210, 228, 240)).max(1) < 3).sum()
        )  # the first colour, at a fifth, on white

    assert shades(banded) > 1000 > shades(plain)


def test_runs_of_one_name_can_be_told_apart(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "y").mkdir()
    runs = [make_run(tmp_path / name / "run") for name in ("x", "y")]
    assert plot_runs(runs).is_file()


def test_the_running_mean_looks_back_only() -> None:
    assert smooth([4.0, 2.0, 0.0, 2.0], 2) == [4.0, 3.0, 1.0, 1.0]
    assert not any(math.isnan(v) for v in smooth([1.0], 25))


def test_what_cannot_be_drawn_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"is not a run: it has no log\.jsonl"):
        plot_runs([tmp_path])
    (tmp_path / "log.jsonl").write_text("")
    with pytest.raises(ValueError, match="holds no figures yet"):
        plot_runs([tmp_path])
    run = make_run(tmp_path / "a")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ValueError, match=r"pip install 'ddit\[plot\]'"):
        plot_runs([run])
