"""Loss curves of 8-bit AdamW and of bfloat16 weights beside float32's, at mini size.

    OMP_NUM_THREADS=1 python benchmarks/optimizers.py --out runs/optimizers [--seeds 0 1 2]

Trains every arm with every seed (those that are finished are not run again): stage 1 of mini from fresh weights,
batches of 8, computation in bfloat16. The arms of a seed see the same batches and the same noise. Prints the tables
of optimizers.md and draws optimizers.png, which needs matplotlib (`ddit[plot]`).
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from ddit.config.data import WorldData
from ddit.config.runs import DualRun, LatentsRun, OptimizerConfig
from ddit.recipes import build
from ddit.train import adamw8bit
from ddit.train.log import LOG_FILE, read_log
from ddit.train.stages import run_stages

MINI = "src/ddit/assets/mini"
ARMS = {
    "float32": OptimizerConfig(name="adamw"),
    "8-bit moments": OptimizerConfig(name="adamw8bit"),
    "8-bit moments, bf16 weights": OptimizerConfig(name="adamw8bit", weights="bfloat16"),
}
CONTROL = "8-bit moments, bf16 weights, rounded to nearest"
"""What stochastic rounding is for; one seed."""
HELD_OUT = {"velocity_true": "velocity loss, t = 0.85", "question_nll": "answers, NLL a token"}


def make_latents(root: Path) -> LatentsRun:
    """The training images, encoded by mini's autoencoder."""
    latents = build("mini-latents", root)
    assert isinstance(latents, LatentsRun)
    source = replace(latents.source, num_scenes=12_000)
    return replace(latents, source=source, vae=f"{MINI}/vae", teacher=None)


def make_run(root: Path, arm: str, seed: int, num_steps: int) -> DualRun:
    """One curve: both losses, from fresh weights, the rate falling over the last 40% of the steps."""
    stage1, latents = build("mini-stage1", root), make_latents(root)
    assert isinstance(stage1, DualRun)
    source = latents.source
    assert isinstance(source, WorldData)
    cached = replace(source, latents=latents.out)
    return replace(
        stage1,
        out=str(root / f"{arm.replace(', ', '-').replace(' ', '_')}-{seed}"),
        init=None,
        vae=f"{MINI}/vae",
        text=MINI,
        data=replace(stage1.data, t2i=(cached,), i2t=(replace(cached, question_fraction=0.5),)),
        objective=replace(stage1.objective, alignment_weight=0.0),
        optimizer=replace(
            ARMS.get(arm, ARMS["8-bit moments, bf16 weights"]),
            lr=5e-4, max_grad_norm=1.0, warmup_steps=100, schedule="linear", ema_decay=0.999,
        ),
        report=replace(
            stage1.report, log_every=20, evaluate_every=1000, num_held_out=128, grid_every=num_steps + 1, num_grid=4,
            checkpoint_minutes=60.0, tensorboard=False,
        ),
        global_batch_size=8,
        max_steps=num_steps,
        compute_dtype="bfloat16",
        seed=seed,
    )  # fmt: skip


@contextmanager
def rounding(arm: str) -> Iterator[None]:
    """The control's rounding in place of the optimiser's."""
    before = adamw8bit.round_stochastically
    if arm == CONTROL:
        adamw8bit.round_stochastically = lambda x: x.bfloat16()
    try:
        yield
    finally:
        adamw8bit.round_stochastically = before


class Curve:
    """The log of a run: mean training losses of 20 steps each, that of its second half, held-out figures at the end."""

    def __init__(self, config: DualRun) -> None:
        events = list(read_log(Path(config.out) / LOG_FILE))
        self.losses = [(e["step"], e["total"]) for e in events if "total" in e]
        self.half = [loss for step, loss in self.losses if step > config.max_steps / 2]
        self.held_out = {key: next(e[key] for e in reversed(events) if key in e) for key in HELD_OUT}


def difference(curve: Curve, other: Curve) -> str:
    """Of the second halves in percent, and its standard error; the steps see the same batches in both."""
    gaps = [100 * (mine / theirs - 1) for mine, theirs in zip(curve.half, other.half, strict=True)]
    return f"{statistics.mean(gaps):+.2f} ± {statistics.stdev(gaps) / len(gaps) ** 0.5:.2f}"


def print_tables(curves: dict[tuple[str, int], Curve]) -> None:
    """Losses of the second half, seed by seed, and the difference from float32 with the same seed."""
    seeds = sorted({seed for _, seed in curves})
    print(f"| arm | {' | '.join(f'seed {s}' for s in seeds)} | difference from float32, % | "
          f"{' | '.join(HELD_OUT.values())} |")  # fmt: skip
    print("|---|" + "---|" * (len(seeds) + 1 + len(HELD_OUT)))
    for arm in dict.fromkeys(arm for arm, _ in curves):
        own = {seed: curves[arm, seed] for seed in seeds if (arm, seed) in curves}
        cells = [f"{statistics.mean(own[seed].half):.4f}" if seed in own else "" for seed in seeds]
        pairs = [(c, curves["float32", s]) for s, c in own.items() if ("float32", s) in curves]
        cells.append(", ".join(difference(*pair) for pair in pairs) if arm != "float32" else "")
        cells += [f"{statistics.mean(c.held_out[key] for c in own.values()):.4f}" for key in HELD_OUT]
        print(f"| {arm} | {' | '.join(cells)} |")


def plot(curves: dict[tuple[str, int], Curve], out: Path) -> None:
    """Training losses, a line a run, a colour an arm; and what is left of them after float32's with the same seed."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    whole, gap = figure.subplots(1, 2)
    arms = list(dict.fromkeys(arm for arm, _ in curves))
    for (arm, seed), curve in curves.items():
        color = f"C{arms.index(arm)}"
        label = arm if seed == min(s for a, s in curves if a == arm) else None
        steps, losses = zip(*curve.losses, strict=True)
        whole.plot(steps, losses, color, label=label, linewidth=0.8)
        theirs = curves.get(("float32", seed))
        if arm != "float32" and theirs is not None:
            pairs = zip(losses, (v for _, v in theirs.losses), strict=False)
            gap.plot(steps, [mine - other for mine, other in pairs], color, linewidth=0.8)
    whole.set(ylabel="training loss, mean of 20 steps", yscale="log")
    whole.legend(frameon=False, fontsize="small")
    gap.set(ylabel="difference from float32, same seed")
    gap.axhline(0, color="0.7", linewidth=0.8, zorder=0)
    for axis in (whole, gap):
        axis.set_xlabel("step")
    figure.savefig(out, dpi=110)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/optimizers"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--tables", action="store_true", help="only print what is finished")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    named = [(arm, seed) for seed in args.seeds for arm in ARMS] + [(CONTROL, args.seeds[0])]
    runs = {key: make_run(args.out, *key, args.steps) for key in named}
    if not args.tables:
        for (arm, _), config in runs.items():
            with rounding(arm):
                run_stages([make_latents(args.out), config])
    curves = {
        key: Curve(config) for key, config in runs.items() if (Path(config.out) / "finished.json").exists()
    }
    print_tables(curves)
    plot(curves, Path(__file__).with_suffix(".png"))


if __name__ == "__main__":
    main()
