"""Milliseconds of one training step at mini size, by way of computing it: `python benchmarks/mini_step.py`.

Each arm runs in a fresh process (or two, joined by gloo). Half of the batch is t2i, half is i2t, unless
--image-only.
"""

import argparse
import os
import subprocess
import sys
import time

import torch
import torch.distributed as dist

from ddit.model import DualDiT, DualDiTConfig

ARMS = {
    # name: (precision, compiled, processes)
    "float32, 1 process": ("float32", False, 1),
    "autocast, 1 process": ("autocast", False, 1),
    "bf16 copy, 1 process": ("copy", False, 1),
    "bf16 copy, 2 processes": ("copy", False, 2),
    "autocast, 2 processes": ("autocast", False, 2),
    "bf16 copy, compiled, 1 process": ("copy", True, 1),
}


def run_arm(options: argparse.Namespace) -> None:
    precision, compiled, world = ARMS[options.arm]
    rank = int(os.environ.get("RANK", 0))
    torch.set_num_threads(2 // world)
    if world > 1:
        dist.init_process_group("gloo")
    torch.manual_seed(0)
    config = DualDiTConfig(
        in_channels=8, patch_size=4, hidden_size=options.hidden, depth=options.depth, num_heads=options.hidden // 64,
        text_dim=192, vocab_size=160, sample_size=16, pos_embed_max_size=8,
    )  # fmt: skip
    model = DualDiT(config)
    masters = [p.detach().clone() for p in model.parameters()]
    if precision == "copy":
        model.bfloat16()
    if compiled:
        for block in model.transformer_blocks:
            block.compile()
    batch, length = options.batch // world, 24
    num_t2i = batch if options.image_only else batch // 2
    dtype = torch.bfloat16 if precision == "copy" else torch.float32
    latents, target = torch.randn(batch, 8, 16, 16, dtype=dtype), torch.randn(num_t2i, 8, 16, 16)
    t, states = torch.rand(batch), torch.randn(batch, length, 192, dtype=dtype)
    mask = torch.rand(batch - num_t2i, length) < 0.3

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"):
            out = model(latents, t, states, num_t2i=num_t2i, logit_mask=None if options.image_only else mask)
        loss = (out.velocity.float() - target).square().mean()
        if out.logits is not None:
            loss = loss + out.logits.float().logsumexp(-1).mean()
        loss.backward()
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        if world > 1:
            flat = torch.cat([g.float().flatten() for g in grads])
            dist.all_reduce(flat)
        if precision == "copy":  # gradients to float32, masters back to bf16
            [g.float() for g in grads]
            with torch.no_grad():
                torch._foreach_copy_(list(model.parameters()), masters)  # pyright: ignore[reportPrivateImportUsage]
        model.zero_grad(set_to_none=True)

    start = time.perf_counter()
    step()
    first = time.perf_counter() - start
    for _ in range(2):
        step()
    start = time.perf_counter()
    for _ in range(options.steps):
        step()
    ms = (time.perf_counter() - start) / options.steps * 1e3
    if rank == 0:
        print(f"| {options.arm} | {ms:.0f} | {options.batch / ms * 1e3:.0f} | {first:.1f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--arm", choices=list(ARMS))
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--depth", type=int, default=6)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--image-only", action="store_true")
    parser.add_argument("--only", default="", help="run the arms whose name contains this")
    options = parser.parse_args()
    if options.arm:
        run_arm(options)
        return
    print(
        f"hidden {options.hidden}, depth {options.depth}, batch {options.batch}, image only: {options.image_only}"
    )
    print("| arm | ms a step | pairs/s | first step, s |\n|---|---|---|---|", flush=True)
    for arm in (name for name in ARMS if options.only in name):
        environment = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511"}
        world = ARMS[arm][2]
        command = [sys.executable, __file__, *sys.argv[1:], "--arm", arm]
        ranks = [
            subprocess.Popen(command, env=environment | {"RANK": str(r), "WORLD_SIZE": str(world)})
            for r in range(world)
        ]
        if any(process.wait() for process in ranks):
            raise SystemExit(f"arm {arm!r} failed")


if __name__ == "__main__":
    main()
