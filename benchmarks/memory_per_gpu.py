"""Memory a GPU of the two-billion model's recipes, as their plans settle them, on the meta device: no GPU is needed.

    python benchmarks/memory_per_gpu.py

Prints the table of memory_per_gpu.md.
"""

import math
from dataclasses import fields

from ddit.config.runs import DualRun, settled
from ddit.recipes import build
from ddit.train.memory import GIB, MemoryReport, sharding_of
from ddit.train.plan import Machine, make_plan

ROWS = [
    ("sd3-medium-stage1", "H100"),
    ("sd3-medium-stage1", "8xH100"),
    ("sd3-medium-stage1", "4x8xH100"),
    ("sd3-medium-stage1", "8xRTX 4090"),
    ("sd3-medium-stage2", "4x8xH100"),
    ("sd3-medium-stage2_512", "4x8xH100"),
    ("sd3-medium-stage3", "8xH100"),
    ("sd3-medium-stage3", "2x8xA100"),
    ("sd3-medium-lora", "RTX 4090"),
    ("sd3-medium-lora", "H100"),
    ("sd3-medium-full", "RTX 4090"),
    ("sd3-medium-full", "L40S"),
    ("sd3.5-medium-stage1", "8xH100"),
]
"""Recipe and machine."""


def main() -> None:
    parts = [field.name for field in fields(MemoryReport)]
    heads = ["recipe", "machine", "sharding", "micro-batch", "T5", "activations"]
    heads += [*(part.replace("_", " ") for part in parts), "total", "pairs/s"]
    print("|", " | ".join(heads), "|")
    print("|" + "---|" * len(heads))
    for name, machine in ROWS:
        config = build(name, "runs")
        assert isinstance(config, DualRun)
        plan = make_plan(config, Machine.named(machine))
        cfg, num_gpus = plan.cfg, plan.machine.num_gpus
        micro = settled(cfg.micro_batch_size) or cfg.global_batch_size // num_gpus
        row = [
            f"`{name}`",
            machine.replace("x", " x "),
            sharding_of(cfg, num_gpus),
            f"{micro} x {math.ceil(cfg.global_batch_size / num_gpus / micro)}",
            settled(cfg.parallel.text_encoder),
            "recomputed" if settled(cfg.parallel.checkpoint_activations) else "kept",
            *(f"{getattr(plan.memory, part) / GIB:.2f}" for part in parts),
            f"**{plan.memory.total / GIB:.1f}**",
            f"{plan.pairs_per_second:,.0f}",
        ]
        print("|", " | ".join(row), "|", flush=True)


if __name__ == "__main__":
    main()
