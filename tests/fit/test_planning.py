"""The choices of a plan, and what it warns of."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tiny_models import tiny_pipeline

from ddit.config.runs import AutoencoderRun, DualRun, LatentsRun, TextEncoderRun
from ddit.fit.plan import Findings, FitOptions, FitPlan, Request, SourceFindings
from ddit.fit.planning import (
    _choose_patch,
    _choose_size,
    _choose_stem,
    _choose_views,
    duals,
    make_plan,
    share_time,
)
from ddit.fit.sources import divide, find_sources, read_sources


def plan_of(*sources: Path, base: str | None = None, **options: object) -> tuple[FitPlan, Findings]:
    given = FitOptions(**options)  # pyright: ignore[reportArgumentType]
    request = Request(tuple(map(str, sources)), "out", base, given)
    trained, judged, num, num_held_out = divide(find_sources(request), request)
    return make_plan(request, trained, judged, read_sources(trained, judged, num, num_held_out))


def findings(side: float = 32.0, num: int = 1000) -> Findings:
    source = SourceFindings("x", "images", num, num, width=(1.0, side, 9e3), height=(1.0, side, 9e3))
    return Findings((source,), num_images=num)


@pytest.mark.parametrize(("side", "size"), [(20, 32), (32, 32), (50, 48), (64, 64), (2000, 64)])
def test_the_size_is_the_images_within_32_and_the_presets(side: float, size: int) -> None:
    assert _choose_size(findings(side), 64) == size


@pytest.mark.parametrize(
    ("size", "downsample", "preset", "patch"),
    [(32, 2, "s", 2), (64, 4, "s", 2), (64, 8, "s", 1), (32, 2, "xs", 4)],
)
def test_the_patch_gives_the_presets_number_of_tokens(
    size: int, downsample: int, preset: str, patch: int
) -> None:
    assert _choose_patch(size, downsample, preset) == patch


def test_few_images_have_many_views_and_many_have_one() -> None:
    assert [_choose_views(findings(num=num), 3.0, 1e7) for num in (100, 50_000, 500_000)] == [16, 4, 1]
    assert _choose_views(findings(num=1000), 0.01, 1e7) == 1


def test_data_that_is_seen_a_few_times_needs_no_views() -> None:
    assert [_choose_views(findings(num=1000), 3.0, pairs) for pairs in (9e3, 11e3, 45e3)] == [1, 2, 8]


@pytest.mark.parametrize(
    ("patch", "widths"), [(1, ()), (2, (64, 128)), (3, ()), (4, (64, 128, 256)), (6, ())]
)
def test_the_stem_halves_its_side_down_to_the_patch(patch: int, widths: tuple[int, ...]) -> None:
    assert _choose_stem(patch) == widths


def test_long_images_are_warned_of(listed: Path) -> None:
    plan, _ = plan_of(listed / "captions.json", hours=0.25)
    assert any("the longest is 8.0 times as long as wide" in warning for warning in plan.warnings)


def test_the_runs_fit_the_data_and_the_time(classes: Path) -> None:
    plan, found = plan_of(classes, hours=1.0, preset="xs", seed=3, keep_sides=True)
    autoencoder, text, latents, *transformer = plan.runs
    assert isinstance(autoencoder, AutoencoderRun)
    assert isinstance(text, TextEncoderRun)
    assert isinstance(latents, LatentsRun)
    assert autoencoder.max_seconds == text.max_seconds == pytest.approx(0.07 * 3600)
    assert (latents.mirror, latents.by_image, latents.num_views) == (False, True, 16)
    assert all(isinstance(run, DualRun) and run.data.num_workers == 0 for run in transformer)
    assert len({run.seed for run in plan.runs if not isinstance(run, LatentsRun)}) > 1
    assert [run.report.keep_best for run in duals(plan.runs)] == [False, True, True]
    assert found.text_length == plan.runs[-1].data.i2t_length == 20  # pyright: ignore[reportAttributeAccessIssue]
    assert sum(share_time(plan.runs).values()) == pytest.approx(1.0)
    assert share_time(plan.runs, ["image"])["joint"] == pytest.approx(0.35 / 0.55)


def test_twenty_images_are_warned_of_with_figures(classes: Path, tmp_path: Path) -> None:
    for number in range(10):
        for name in ("rot", "blau"):
            (tmp_path / name).mkdir(exist_ok=True)
            shutil.copy(classes / name / f"{number}.png", tmp_path / name)
    plan, _ = plan_of(tmp_path, hours=0.25)
    warnings = "\n".join(plan.warnings)
    assert "19 images to train on are few: each is seen about" in warnings
    assert "figures on 1 held-out images say little" in warnings
    assert "2 classes have less than 20 images, blau the fewest (10)" in warnings


def test_a_base_models_sizes_are_kept_and_its_own_encoders(
    classes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    plan, _ = plan_of(classes, base="mini", hours=1.0)
    assert (plan.base, plan.preset, plan.image_size) == ("mini", "s", 64)
    assert [stage.name for stage in plan.stages] == [
        "latents_0",
        "joint",
        "final",
    ]  # its pieces spell any word
    with pytest.raises(ValueError, match="--vae and --from do not go together"):
        plan_of(classes, base="mini", vae="somewhere")
    with pytest.raises(ValueError, match="--size must be a multiple of 16 up to 128 for this model, got 40"):
        plan_of(classes, base="mini", size=40)


def test_a_base_model_of_whole_words_first_learns_those_that_are_new(
    classes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny_pipeline().save_pretrained(tmp_path / "tiny")
    plan, _ = plan_of(classes, base="./tiny", hours=1.0)
    assert [stage.name for stage in plan.stages] == ["text", "latents_0", "joint", "final"]
    assert "new words" in plan.stages[0].what
