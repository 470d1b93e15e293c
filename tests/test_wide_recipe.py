"""The chain on the wide world: its stages go together, and it runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ddit.config.data import WideData
from ddit.config.overrides import override_run
from ddit.config.runs import DualRun, TeacherRun, TextEncoderRun
from ddit.pipeline import Pipeline
from ddit.recipes import build, list_stages
from ddit.recipes.mini import make_tiny
from ddit.train.stages import run_stages
from ddit.world.wide import WIDE_PRESETS, make_scene, render


def duals() -> list[DualRun]:
    return [run for stage in list_stages("wide") if isinstance(run := build(stage, "runs"), DualRun)]


def test_each_stage_begins_with_the_one_before_and_is_watched_by_other_scenes() -> None:
    runs = duals()
    assert [run.init for run in runs] == [
        "runs/wide-start",
        *(f"{run.out}/export" for run in runs[:-1]),
    ]
    assert len({run.seed for run in runs}) == len(runs)
    for run in runs:
        assert {source.split for source in run.data.t2i + run.data.i2t} == {"train"}  # type: ignore[union-attr]
        assert {source.split for source in run.data.held_out} == {"val"}  # type: ignore[union-attr]
    assert [run.global_batch_size * run.objective.i2t_fraction for run in runs] == [
        128,
        96,
        128,
        96,
        80,
        96,
        128,
        72,
        32,
    ]
    details = [[s.detailed_fraction for s in run.data.i2t if isinstance(s, WideData)] for run in runs]
    assert details == [
        [0.08] * 3,
        [0.0] * 3,
        [0.7] * 3,
        [0.25],
        [0.3] * 3,
        [0.5] * 3,
        [0.3] * 3,
        [0.3] * 3,
        [0.4] * 3,
    ]
    assert [run.model.text_block_size for run in runs] == [0, 0, 16, 16, 16, 16, 16, 16, 16]
    assert len({replace(run.model, text_block_size=0) for run in runs}) == 1


def test_every_stage_takes_overrides() -> None:
    for stage in list_stages("wide"):
        key = "source.seed" if "latents" in stage else "seed"
        run = override_run(build(stage, "runs"), [f"{key}=50"])
        assert run != build(stage, "runs")


@pytest.mark.slow
def test_the_chain_runs_and_leaves_a_model_that_describes_in_blocks(tmp_path: Path) -> None:
    runs = [make_tiny(build(stage, tmp_path)) for stage in list_stages("wide")]
    runs = [run if isinstance(run, TextEncoderRun | TeacherRun) else replace(run, vae="mini") for run in runs]  # type: ignore[call-arg]
    runs = [
        replace(run, global_batch_size=64) if isinstance(run, DualRun) else run for run in runs
    ]  # of fewer, five sixteenths would be no fours
    joint = next(run for run in runs if isinstance(run, DualRun))
    runs[runs.index(joint)] = replace(joint, init=None)  # a start of this size is nowhere
    run_stages(runs)
    pipeline = Pipeline.from_pretrained(tmp_path / "wide-distilled" / "export")
    image = render(make_scene(WIDE_PRESETS["wide"], "test", 0))
    assert isinstance(pipeline.caption(image, style="detailed")[0], str)
    assert len(pipeline.generate("a red dog", seed=0, num_steps=2)) == 1
