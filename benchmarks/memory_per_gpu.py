"""Memory a GPU of the two-billion model's recipes, computed on the meta device (nothing here needs a GPU).

    python benchmarks/memory_per_gpu.py

Prints the table of memory_per_gpu.md. Counted are weights, gradients, optimiser, averages, gathered blocks, activations
and the frozen encoders; not counted are the allocator's slack, kernels' workspace and communication buffers.
"""

from __future__ import annotations

from dataclasses import fields, replace

from ddit.config.runs import DualRun
from ddit.recipes import build
from ddit.train.memory import GIB, MemoryReport, memory_per_gpu

ROWS = [
    ("sd3-medium-stage1", 1, 1),
    ("sd3-medium-stage1", 8, 1),
    ("sd3-medium-stage1", 32, 1),
    ("sd3-medium-stage1", 32, 4),
    ("sd3-medium-stage2", 32, 4),
    ("sd3-medium-stage2_512", 32, 4),
    ("sd3-medium-stage3", 8, 1),
    ("sd3-medium-stage3", 16, 2),
    ("sd3-medium-lora", 1, 1),
    ("sd3.5-medium-stage1", 8, 1),
]
"""Recipe, GPUs, replicas (1: FSDP2 over all; more: HSDP)."""


def main() -> None:
    parts = [field.name for field in fields(MemoryReport)]
    print(
        "| recipe | GPUs | sharding | micro batch |",
        " | ".join(part.replace("_", " ") for part in parts),
        "| total |",
    )
    print("|" + "---|" * (len(parts) + 5))
    for name, num_gpus, num_replicas in ROWS:
        config = build(name, "runs")
        assert isinstance(config, DualRun)
        config = replace(config, parallel=replace(config.parallel, num_replicas=num_replicas))
        report = memory_per_gpu(config, num_gpus)
        if config.lora.rank:
            sharding = "LoRA"
        else:
            sharding = (
                "none"
                if num_gpus == 1
                else "FSDP2"
                if num_replicas == 1
                else f"HSDP {num_replicas} x {num_gpus // num_replicas}"
            )
        figures = [f"{getattr(report, part) / GIB:.2f}" for part in parts]
        print(
            f"| `{name}` | {num_gpus} | {sharding} | {config.micro_batch_size} |",
            " | ".join(figures),
            f"| **{report.total / GIB:.1f}** |",
        )


if __name__ == "__main__":
    main()
