"""A run killed again and again, against the run that is left alone: `python benchmarks/kill_resume.py`.

Both train the recipes' `tiny` model on the small world, with a checkpoint every few steps. One
is sent SIGKILL, all its processes at once, at moments drawn at random over the whole of its life: while it starts,
steps, or writes a checkpoint. Each kill is followed by a restart. In the end every tensor of the last checkpoint
(weights, averages, optimiser state) must be the same, bit for bit.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from ddit.config.runs import DualRun, from_json, save_config
from ddit.devices import join_ranks
from ddit.recipes import build
from ddit.train.checkpoint import find_newest, load_tensors, stored_shapes
from ddit.train.loop import train
from ddit.train.stages import run_stage


def make_config(root: Path, num_steps: int, checkpoint_steps: int) -> DualRun:
    """A tiny joint run on scenes of the small world, rendered on the fly; its encoders are trained first."""
    for stage in ("vae", "text"):
        run_stage(build(f"tiny-{stage}", root))
    config = build("tiny-stage1", root)
    assert isinstance(config, DualRun)
    report = replace(
        config.report, checkpoint_steps=checkpoint_steps, num_held_out=0, tensorboard=False, peak_tflops=1.0,
        log_every=10, evaluate_every=10**9, grid_every=10**9,
    )  # fmt: skip
    plain = [
        tuple(replace(s, latents=None) for s in sources) for sources in (config.data.t2i, config.data.i2t)
    ]
    data = replace(config.data, t2i=plain[0], i2t=plain[1], held_out=(), num_workers=1)
    objective = replace(config.objective, alignment_weight=0.0)
    return replace(
        config, init=None, data=data, objective=objective, report=report, max_steps=num_steps, compute_dtype="bfloat16"
    )  # fmt: skip


def start(config: DualRun) -> subprocess.Popen[bytes]:
    """The run's own process group, so that a kill meets its loader's worker too."""
    command = [sys.executable, __file__, "--run", str(Path(config.out) / "config.json")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with (Path(config.out) / "stderr.txt").open("ab") as stderr:
        return subprocess.Popen(command, env=environment, stderr=stderr, start_new_session=True)


def newest_step(config: DualRun) -> int:
    found = sorted(Path(config.out).glob("ckpt-????????"))
    return int(found[-1].name.removeprefix("ckpt-")) if found else 0


def kill_and_restart(config: DualRun, *, num_kills: int, seconds: float, rng: random.Random) -> list[int]:
    """Kills and restarts the run until it has had its kills, then lets it end; the newest step at each kill.

    One in three is killed after a random part of `seconds` from its start, the others from its first checkpoint. One
    that would end before its kill is not left to.
    """
    seen: list[int] = []
    while len(seen) < num_kills:
        process, before = start(config), newest_step(config)
        if len(seen) % 3:
            while process.poll() is None and newest_step(config) == before:
                time.sleep(0.005)
        deadline, unfinished = time.monotonic() + rng.uniform(0, seconds), True
        while time.monotonic() < deadline and unfinished:
            time.sleep(0.005)
            unfinished = process.poll() is None and newest_step(config) < 0.9 * config.max_steps
        if process.poll() is not None:
            raise SystemExit(f"the run ended by itself, with {process.returncode}, before it was killed")
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        seen.append(newest_step(config))
    process = start(config)
    if process.wait() != 0:
        raise SystemExit(f"the run failed: {(Path(config.out) / 'stderr.txt').read_text()[-2000:]}")
    return seen


def load_last(config: DualRun) -> dict[str, torch.Tensor]:
    checkpoint = find_newest(Path(config.out))
    if checkpoint is None or checkpoint.step != config.max_steps:
        raise SystemExit(f"{config.out} did not come to its end")
    tensors = {name: torch.empty(shape) for name, shape in stored_shapes(checkpoint.folder).items()}
    load_tensors(checkpoint.folder, tensors)
    return tensors


def compare(
    root: Path, *, num_kills: int, num_steps: int, checkpoint_steps: int, seconds: float, seed: int
) -> dict[str, object]:  # fmt: skip
    """Both runs under `root`; figures of the comparison."""
    join_ranks()
    config = make_config(root, num_steps, checkpoint_steps)
    alone, killed = (replace(config, out=str(root / name)) for name in ("alone", "killed"))
    for each in (alone, killed):
        save_config(each, Path(each.out))
    start_time = time.monotonic()
    if start(alone).wait() != 0:
        raise SystemExit(f"the run failed: {(Path(alone.out) / 'stderr.txt').read_text()[-2000:]}")
    whole = time.monotonic() - start_time
    rng = random.Random(seed)
    seen = kill_and_restart(killed, num_kills=num_kills, seconds=seconds, rng=rng)
    expected, found = load_last(alone), load_last(killed)
    differing = [
        name for name in expected if not torch.equal(expected[name], found.get(name, torch.empty(0)))
    ]
    words = (Path(killed.out) / "stderr.txt").read_text()
    return {
        "steps": num_steps,
        "checkpoint every": checkpoint_steps,
        "kills": num_kills,
        "newest checkpoint at each kill": seen,
        "unfinished checkpoints passed over": words.count("it was never finished"),
        "seconds undisturbed": round(whole, 1),
        "tensors compared": len(expected),
        "tensors that differ": len(differing) + len(found.keys() ^ expected.keys()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--checkpoint-steps", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0, help="the longest wait for a kill")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.run is not None:
        config = from_json(options.run.read_text())
        assert isinstance(config, DualRun)
        train(config)
        return
    with tempfile.TemporaryDirectory() as root:
        figures = compare(
            Path(root), num_kills=options.kills, num_steps=options.steps, checkpoint_steps=options.checkpoint_steps,
            seconds=options.seconds, seed=options.seed,
        )  # fmt: skip
    print(json.dumps(figures, indent=2))
    if figures["tensors that differ"]:
        raise SystemExit("the killed run differs from the one that was left alone")


if __name__ == "__main__":
    main()
