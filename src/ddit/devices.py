"""Names of dtypes and devices, checked before anything is loaded; how many threads a small model gets."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from ddit.errors import near_misses

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
}


def find_device(device: str | torch.device | None = None) -> torch.device:
    """The device of that name; by default the first CUDA device, or else the CPU.

    Raises:
        ValueError: if there is no such device here.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
        if found.type == "meta":
            raise RuntimeError("it holds no data")
        torch.empty(1, device=found)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"device '{device}' cannot be used here: {reason}") from None
    return found


def find_dtype(dtype: str | torch.dtype | None = None, device: torch.device | None = None) -> torch.dtype:
    """The floating dtype of that name; by default bfloat16 on CUDA and float32 elsewhere.

    Raises:
        ValueError: if it is not one of float32, bfloat16, float16.
    """
    if dtype is None:
        return torch.bfloat16 if device is not None and device.type == "cuda" else torch.float32
    found = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
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


_spare_threads: int | None = None  # what `limit_threads` took away


def limit_threads(folder: Path) -> None:
    """Runs a small model (by the size of its files) on one thread, unless OMP_NUM_THREADS says otherwise.

    Its operations are short, and on a busy machine threads that wait for each other cost more than they bring:
    beside a training run on two cores, six pictures of 64 px took 105 s on two threads and 13 s on one. For
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
