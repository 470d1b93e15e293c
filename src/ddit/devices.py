"""Dtypes and devices by name; the ranks under torchrun; how many threads a small model gets."""

import atexit
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d as c10d

from ddit import fail_fast
from ddit.errors import near_misses

Value = TypeVar("Value")

SMALL_MODEL_BYTES = 100_000_000
WIDE_BATCH = 4
"""Samples of a small model that keep several threads busy."""

DTYPES = {
    "float32": torch.float32,
    "fp32": torch.float32,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float16": torch.float16,
    "fp16": torch.float16,
    "half": torch.float16,
}


def find_device(device: str | torch.device | None = None) -> torch.device:
    """The device of that name; by default, or "auto", the first CUDA device, or else the CPU.

    Raises:
        ValueError: if there is no such device here.
    """
    if device is None or device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
        if found.type == "meta":
            raise RuntimeError("it holds no data")
        torch.empty(1, device=found)
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        reason = str(error).strip().splitlines()[0]
        if isinstance(error, TypeError) or reason.startswith("Expected one of"):  # 400 letters of PyTorch's
            reason = "give one device, such as cpu, cuda or cuda:1"
        raise ValueError(f"device '{device}' cannot be used here: {reason}") from None
    return found


def find_dtype(dtype: str | torch.dtype | None = None, device: torch.device | None = None) -> torch.dtype:
    """The floating dtype of that name; by default, or "auto", bfloat16 on CUDA and float32 elsewhere.

    Raises:
        ValueError: if it is not one of float32, bfloat16, float16.
    """
    if dtype is None or dtype == "auto":
        return torch.bfloat16 if device is not None and device.type == "cuda" else torch.float32
    found = DTYPES.get(dtype.removeprefix("torch.")) if isinstance(dtype, str) else dtype
    if found is None or found not in DTYPES.values():
        near = near_misses(str(dtype), DTYPES)
        raise ValueError(f"unknown dtype '{dtype}': use float32, bfloat16 or float16{near}")
    return found


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether the device has quick matrix products in bfloat16.

    On a CPU: whether oneDNN takes them, which it does from AVX-512 on. Elsewhere plain loops do, 25 times slower than
    float32 on an EPYC with AVX2.
    """
    return device.type != "cpu" or torch.ops.mkldnn._is_mkldnn_bf16_supported()


def compute_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype of a computation by its name; "auto" is bfloat16 where the device is quick at it, else float32."""
    if name == "auto":
        return torch.bfloat16 if multiplies_bfloat16(device) else torch.float32
    return DTYPES[name]


def available_memory() -> int | None:
    """Bytes of main memory that programs may still take, or None where the system does not say (Linux does)."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = 1024 * int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1])
    except (OSError, StopIteration, ValueError):
        return None
    group = Path("/sys/fs/cgroup")  # a container's bounds, where it has any
    try:
        bound, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
        cached = re.search(r"^inactive_file (\d+)$", (group / "memory.stat").read_text(), flags=re.MULTILINE)
        return min(free, bound - used + int(cached[1] if cached else 0))
    except (OSError, ValueError):  # no cgroup, or "max"
        return free


# --- ranks ---

SECONDS_FOR_GLOO = 0.5
START_TIMEOUT = 1800.0


@dataclass(frozen=True)
class Ranks:
    """This process's place among `size` processes, and the device it computes on.

    All processes must call `gather`, `mean`, `sum_counts`, `share` and `wait` together.
    """

    index: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_first(self) -> bool:
        return self.index == 0

    def part(self, count: int) -> range:
        """This rank's share of `count` samples: consecutive, and of equal size on all ranks to within one."""
        return range(count * self.index // self.size, count * (self.index + 1) // self.size)

    def gather(self, values: list[Value]) -> list[Value]:
        """All ranks' values in the order of the ranks, on every rank."""
        if self.size == 1:
            return values
        parts: list[list[Value]] = [[] for _ in range(self.size)]
        dist.all_gather_object(parts, values)
        return [value for part in parts for value in part]

    def mean(self, values: Sequence[float]) -> list[float]:
        """The average of each value over the ranks, the same on all of them."""
        if self.size == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor)
        return (tensor / self.size).tolist()

    def sum_counts(self, counts: Mapping[str, int]) -> Counter[str]:
        """Counts by name, summed over the ranks, the same on all of them."""
        total: Counter[str] = Counter()
        for part in self.gather([counts]):
            total.update(part)
        return total

    def share(self, value: Value) -> Value:
        """The first rank's value, on all ranks."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def wait(self) -> None:
        """Returns when all ranks have come here."""
        if self.size > 1:
            dist.barrier()


def rank_device() -> torch.device:
    """The CUDA device of this process, of its own if there are as many, or the CPU."""
    device = find_device()
    if device.type != "cuda":
        return device
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())


def join_ranks() -> Ranks:
    """Joins the processes that torchrun started; a process started otherwise is a group of one.

    Tensors on CUDA are exchanged by NCCL, everything else by gloo. Each process takes a GPU of its own, if there are
    as many. When one of several processes fails, the others end too. A rank waits half an hour for the others, until
    `limit_waits` says otherwise. May be called again.
    """
    device = rank_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        atexit.register(_leave_ranks)
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            dist.init_process_group(backend, timeout=timedelta(seconds=START_TIMEOUT))
            _watch_ranks()
        else:
            store = dist.HashStore()  # pyright: ignore[reportPrivateImportUsage]
            dist.init_process_group(backend, store=store, rank=0, world_size=1)
    return Ranks(dist.get_rank(), dist.get_world_size(), device)


def limit_waits(timeout_s: float) -> None:
    """From now on a rank waits for the others at most so many seconds, in every group of ranks; all ranks together.

    NCCL's own thread ends a process that has waited longer; gloo raises an error.
    """
    if dist.get_world_size() == 1:
        return
    dist.barrier()
    for group in c10d._world.pg_map:
        if dist.get_rank(group) >= 0:
            c10d._set_pg_timeout(timedelta(seconds=timeout_s), group)  # there is no public way


def _watch_ranks() -> None:
    """Lets this process end when another rank fails (see `fail_fast`), by a connection of its own to the store."""
    places = Ranks(dist.get_rank(), dist.get_world_size()).gather([fail_fast.Place.here()])
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.TCPStore(host, port, is_master=False, wait_for_workers=False)  # pyright: ignore[reportPrivateImportUsage]
    # a restart by torchrun may find the store as the ranks before it left it
    own = dist.PrefixStore(f"ddit/{places[0]}", store)  # pyright: ignore[reportPrivateImportUsage]
    fail_fast.watch(own, dist.get_rank(), places)


def _leave_ranks() -> None:
    """At exit. After an error nothing is torn down: the end of a process group waits for the other ranks.

    Else a thread of gloo's may still hold tensors of the last exchange, and would abort the process if it freed them
    after the interpreter has ended.
    """
    if not dist.is_initialized():
        return
    is_alone = dist.get_world_size() == 1
    error = getattr(sys, "last_value", None)  # of a program that nothing caught
    if error is not None and not is_alone:
        fail_fast.end_rank(error, is_printed=True)
    fail_fast.leave()
    dist.destroy_process_group()
    if not is_alone:
        time.sleep(SECONDS_FOR_GLOO)


# --- threads ---

_spare_threads: int | None = None  # what `limit_threads` took away


def limit_threads(folder: Path) -> None:
    """Runs a small model (by the size of its files) on one thread, unless OMP_NUM_THREADS says otherwise.

    Its operations are short, and on a busy machine threads that wait for each other cost more than they bring:
    beside a training run on two cores, six images of 64 px took 105 s on two threads and 13 s on one. For
    programs, not for libraries: the setting is the process's.
    """
    global _spare_threads
    size = sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
    if size < SMALL_MODEL_BYTES and "OMP_NUM_THREADS" not in os.environ:
        _spare_threads = torch.get_num_threads()
        torch.set_num_threads(1)


@contextmanager
def batch_threads(num_samples: int) -> Iterator[None]:
    """Gives a call of many samples the threads that `limit_threads` took away, in the thread that calls."""
    if _spare_threads is None or num_samples < WIDE_BATCH:
        yield
        return
    torch.set_num_threads(_spare_threads)
    try:
        yield
    finally:
        torch.set_num_threads(1)
