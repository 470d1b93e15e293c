"""One rank of an all-reduce, started by torchrun: `python -m ddit.doctor.exchange cuda`. The first prints JSON."""

import json
import os
import sys
import time
from datetime import timedelta

import torch
import torch.distributed as dist

MIB = 64
SECONDS = 60


def main() -> None:
    kind, rank = sys.argv[1], int(os.environ["LOCAL_RANK"])
    device = torch.device(kind, rank) if kind == "cuda" else torch.device(kind)
    if kind == "cuda":
        torch.cuda.set_device(device)
    backend = "nccl" if kind == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=timedelta(seconds=SECONDS))
    size = dist.get_world_size()
    values = torch.full((MIB * 2**18,), float(rank + 1), device=device)
    dist.all_reduce(values)
    wrong = (values != size * (size + 1) / 2).sum().item()
    assert wrong == 0, f"{wrong} of {len(values)} sums are wrong"
    seconds = min(_time(values, device) for _ in range(5))
    if rank == 0:
        rate = 2 * (size - 1) / size * values.nbytes / seconds  # what crosses each device's link
        print(json.dumps({"backend": backend, "mib": MIB, "seconds": seconds, "rate": rate}))
    dist.destroy_process_group()


def _time(values: torch.Tensor, device: torch.device) -> float:
    values.fill_(1)
    dist.barrier()
    start = time.perf_counter()
    dist.all_reduce(values)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
