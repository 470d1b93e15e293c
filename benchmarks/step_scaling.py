"""Memory and time of a training step against model size, sequence length and batch: measured, with a plot.

    OMP_NUM_THREADS=1 python benchmarks/step_scaling.py [--out docs/images/step_scaling.png]

Each point is a process of its own: the learner as a run shards it, bfloat16 over float32 masters, AdamW, the average.
Seconds are processor time of one thread, which a busy machine does not change much.
Takes about four minutes and needs Linux (which counts the peak of a process's memory) and matplotlib (`ddit[plot]`).
"""

import argparse
import multiprocessing
import statistics
import time
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple, cast

import torch

from ddit.config.data import DataConfig
from ddit.config.runs import DualRun
from ddit.diffusion import masked
from ddit.model import DualDiT, DualDiTConfig
from ddit.model.encoders import TextCodec
from ddit.train.batch import Batch, I2TBatch, Images, T2IBatch

VOCAB, TEXT_DIM, CHANNELS = 2048, 256, 16


class Point(NamedTuple):
    """One measurement: sizes, and the number of pairs (half t2i, half i2t)."""

    dim: int = 256
    depth: int = 8
    side: int = 16  # of the latents; image tokens are its square over 4
    length: int = 32
    pairs: int = 16


SWEEPS = {
    "model size": [
        Point(dim=d, depth=k) for d, k in ((128, 4), (256, 4), (256, 8), (384, 8), (512, 8), (512, 12))
    ],
    "sequence length": [
        Point(side=s, length=n) for s, n in ((8, 16), (16, 32), (24, 64), (32, 64), (48, 64))
    ],
    "batch": [Point(pairs=p) for p in (4, 8, 16, 32, 64)],
}


class Measured(NamedTuple):
    parameters: int
    seconds: float
    megabytes: float


def train(point: Point, steps: int, pipe: Connection) -> None:
    """Takes a few steps and sends the parameters' count, median seconds, and peak memory above the imports."""
    torch.set_num_threads(1)
    from ddit.devices import join_ranks
    from ddit.train import learner, optim, parallel

    mesh = parallel.make_mesh(join_ranks(), 1)
    imported = memory("VmRSS")
    config = DualDiTConfig(
        in_channels=CHANNELS, hidden_size=point.dim, depth=point.depth, num_heads=point.dim // 64, text_dim=TEXT_DIM,
        vocab_size=VOCAB, sample_size=point.side, pos_embed_max_size=point.side // 2,
    )  # fmt: skip
    cfg = DualRun(out="", model=config, data=DataConfig())
    transformer = DualDiT(config)
    transformer.init_weights(torch.Generator().manual_seed(0))
    root = learner.Learner(cfg.objective, transformer)
    parallel.shard_blocks(root, list(transformer.transformer_blocks), mesh, cfg.parallel, torch.bfloat16)
    trained = root.trained()
    optimizer = optim.build_optimizers(trained, cfg.optimizer)["adamw"]
    ema = optim.Ema(trained, cfg.optimizer.ema_decay)
    table = torch.randn(VOCAB, TEXT_DIM)
    codec = cast(
        TextCodec, SimpleNamespace(states=lambda ids: table[ids], mask_token_id=VOCAB - 1, eos_token_id=1)
    )

    def step(number: int) -> float:
        batch, latents = make_batch(point, number)
        start = time.process_time()
        root(batch, (latents, latents), codec).total.backward()
        parallel.total_norm([p.grad for p in trained.values() if p.grad is not None])
        optimizer.step()
        ema.update(trained, number)
        optimizer.zero_grad()
        parallel.free_gathered(root)
        return time.process_time() - start

    step(0)
    seconds = [step(number) for number in range(1, steps + 1)]
    count = sum(p.numel() for p in trained.values())
    pipe.send(Measured(count, statistics.median(seconds), memory("VmHWM") - imported))


def make_batch(point: Point, number: int) -> tuple[Batch, torch.Tensor]:
    g, n = torch.Generator().manual_seed(number), point.pairs // 2
    latents, noise = torch.randn(2, n, CHANNELS, point.side, point.side, generator=g)
    ids = torch.randint(0, VOCAB - 1, (n, point.length), generator=g)
    answer, t = torch.ones_like(ids, dtype=torch.bool), masked.sample_t(n, generator=g)
    noisy = masked.mask_tokens(ids, answer, t, mask_token_id=VOCAB - 1, generator=g)
    nothing = Images(None, None, None, None)
    return Batch(T2IBatch(nothing, ids, t, noise), I2TBatch(nothing, ids, answer, noisy, t), {}), latents


def memory(field: str) -> float:
    """Resident memory of this process in MB, now (VmRSS) or at its peak (VmHWM)."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith(field))


def measure(point: Point, steps: int) -> Measured:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=train, args=(point, steps, theirs))
    process.start()
    measured = ours.recv()
    process.join()
    return measured


def plot(results: dict[str, list[tuple[Point, Measured]]], path: Path) -> None:
    import matplotlib.pyplot as plt
    from matplotlib.axes import Axes

    def abscissa(name: str, point: Point, measured: Measured) -> float:
        tokens = point.side**2 // 4 + point.length
        return {"model size": measured.parameters / 1e6, "sequence length": tokens, "batch": point.pairs}[
            name
        ]

    labels = {
        "model size": "parameters, millions",
        "sequence length": "tokens a sample",
        "batch": "pairs a step",
    }
    figure, axes = plt.subplots(2, 3, figsize=(10, 5.4), sharey="row", layout="constrained")
    for column, (name, points) in enumerate(results.items()):
        x = [abscissa(name, point, measured) for point, measured in points]
        for row, (unit, y) in enumerate(
            (
                ("seconds a step", [m.seconds for _, m in points]),
                ("peak memory, MB", [m.megabytes for _, m in points]),
            )
        ):
            axis: Axes = axes[row][column]
            axis.plot(x, y, "o-", color=("tab:blue", "tab:orange")[row])
            axis.set_xlim(left=0)
            axis.grid(alpha=0.3)
            axis.set_xlabel(labels[name])
            if column == 0:
                axis.set_ylabel(unit)
    for row in axes:
        row[0].set_ylim(bottom=0)  # shared by the row, once it holds every curve
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("docs/images/step_scaling.png"))
    parser.add_argument("--steps", type=int, default=3)
    options = parser.parse_args()
    done: dict[Point, Measured] = {}
    print("| width | depth | parameters, M | image tokens | text tokens | pairs | s a step | peak MB |")
    print("|---|---|---|---|---|---|---|---|")
    for points in SWEEPS.values():
        for point in points:
            if point in done:
                continue
            m = done[point] = measure(point, options.steps)
            sizes = f"{point.dim} | {point.depth} | {m.parameters / 1e6:.1f} | {point.side**2 // 4} | {point.length}"
            print(f"| {sizes} | {point.pairs} | {m.seconds:.2f} | {m.megabytes:.0f} |", flush=True)
    plot({name: [(point, done[point]) for point in points] for name, points in SWEEPS.items()}, options.out)


if __name__ == "__main__":
    main()
