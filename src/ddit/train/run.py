"""Runs a stage of any kind, or a chain of stages, skipping what is finished."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from ddit.config import (
    AutoencoderRun,
    DualRun,
    LatentsRun,
    RunConfig,
    TeacherRun,
    TextEncoderRun,
    to_json,
)
from ddit.overrides import apply_overrides
from ddit.recipes import build, stages
from ddit.train.autoencoder import train_autoencoder
from ddit.train.loop import train
from ddit.train.parallel import join_ranks
from ddit.train.teacher import make_pool, train_teacher
from ddit.train.text_encoder import train_text_encoder

FINISHED = "finished.json"


def run_stage(config: RunConfig) -> Path:
    """Runs one stage to its end and marks its folder as finished; returns the folder."""
    if isinstance(config, DualRun):
        out = train(config)
    elif isinstance(config, AutoencoderRun):
        out = train_autoencoder(config)
    elif isinstance(config, TextEncoderRun):
        out = train_text_encoder(config)
    elif isinstance(config, TeacherRun):
        out = train_teacher(config)
    else:
        assert isinstance(config, LatentsRun)
        out = make_pool(config)
    if join_ranks().is_first:
        (out / FINISHED).write_text(to_json(config))
    return out


def run_recipe(
    name: str, root: str | Path, *, world: str = "fixed", overrides: Sequence[str] = (), dry_run: bool = False
) -> None:
    """Runs the stage or the chain `name` under `root`; finished stages of a chain are skipped.

    Overrides ("optimizer.lr=1e-3") go to a single stage; for a chain they are a `ValueError`. With `dry_run` the
    resolved configurations are printed as JSON and nothing is run.
    """
    names = stages(name)
    if overrides and len(names) > 1:
        raise ValueError(f"overrides need one stage, but {name!r} stands for {', '.join(names)}")
    for stage in names:
        config = apply_overrides(build(stage, root, world=world), overrides)
        if dry_run:
            print(to_json(config), end="")
        elif len(names) > 1 and (Path(config.out) / FINISHED).exists():
            print(f"{stage}: finished before, skipped", file=sys.stderr)
        else:
            run_stage(config)
