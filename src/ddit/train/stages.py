"""Runs stages of any kind, skipping those of a chain that are finished."""

import sys
from collections.abc import Sequence
from pathlib import Path

from ddit.config.runs import AutoencoderRun, DualRun, LatentsRun, RunConfig, TextEncoderRun, to_json
from ddit.devices import join_ranks, limit_waits
from ddit.train.familiarity import add_familiarity
from ddit.train.loop import train
from ddit.train.precompute import precompute
from ddit.train.small_nets import train_autoencoder, train_teacher, train_text_encoder

FINISHED = "finished.json"
_DAY = 86_400.0


def run_stage(config: RunConfig) -> Path:
    """Runs one stage to its end and marks its folder as finished; returns the folder.

    Of several processes (torchrun) all work on the transformer and on latents, and the first on the small networks.
    """
    ranks = join_ranks()
    # a small network is trained by the first rank alone
    limit_waits(config.parallel.start_timeout_s if isinstance(config, DualRun) else _DAY)
    if isinstance(config, DualRun):
        train(config)
    elif isinstance(config, LatentsRun):
        precompute(config, ranks)
    elif ranks.is_first:
        if isinstance(config, AutoencoderRun):
            train_autoencoder(config)
        elif isinstance(config, TextEncoderRun):
            train_text_encoder(config)
        else:
            train_teacher(config)
    out = Path(config.out)
    if ranks.is_first:
        (out / FINISHED).write_text(to_json(config))
    ranks.wait()
    return out


def run_stages(configs: Sequence[RunConfig]) -> None:
    """Runs one stage, or the stages of a chain that are not finished."""
    ranks = join_ranks()
    for config in configs:
        if len(configs) > 1 and ranks.share((Path(config.out) / FINISHED).exists()):
            if ranks.is_first:
                print(f"{config.out}: finished before, skipped", file=sys.stderr)
            continue
        run_stage(config)
        if isinstance(config, DualRun) and ranks.is_first:
            add_familiarity(Path(config.out) / "export", config)
