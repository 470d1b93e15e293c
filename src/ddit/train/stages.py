"""Runs a stage of any kind, or a chain of stages, skipping what is finished."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from ddit.config.overrides import override_run
from ddit.config.runs import (
    AutoencoderRun,
    DualRun,
    LatentsRun,
    RunConfig,
    TeacherRun,
    TextEncoderRun,
    to_json,
)
from ddit.recipes import build, stages
from ddit.train.autoencoder import train_autoencoder
from ddit.train.loop import train
from ddit.train.parallel import join_ranks
from ddit.train.precompute import precompute
from ddit.train.teacher import train_teacher
from ddit.train.text_encoder import train_text_encoder

FINISHED = "finished.json"


def run_stage(config: RunConfig) -> Path:
    """Runs one stage to its end and marks its folder as finished; returns the folder.

    Of several processes (torchrun) all work on the transformer and on latents, and the first on the small networks.
    """
    ranks = join_ranks()
    if isinstance(config, DualRun):
        train(config)
    elif isinstance(config, LatentsRun):
        precompute(config)
    elif ranks.is_first:
        if isinstance(config, AutoencoderRun):
            train_autoencoder(config)
        elif isinstance(config, TextEncoderRun):
            train_text_encoder(config)
        else:
            assert isinstance(config, TeacherRun)
            train_teacher(config)
    out = Path(config.out)
    if ranks.is_first:
        (out / FINISHED).write_text(to_json(config))
    ranks.wait()
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
        config = override_run(build(stage, root, world=world), overrides)
        if dry_run:
            print(to_json(config), end="")
            continue
        ranks = join_ranks()
        if len(names) > 1 and ranks.share((Path(config.out) / FINISHED).exists()):
            if ranks.is_first:
                print(f"{stage}: finished before, skipped", file=sys.stderr)
        else:
            run_stage(config)
