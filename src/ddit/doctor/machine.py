"""What the machine is and can do: software, device, number formats, attention kernels, memory, disk, exchange."""

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from ddit.devices import available_memory, multiplies_bfloat16
from ddit.doctor.report import NO_GPU, Bench, Check, Outcome, Skipped, in_group, timed
from ddit.train.flops import known_peak

GIB = 2**30
LIBRARIES = ("diffusers", "transformers", "safetensors", "peft", "triton", "torchao", "flash-attn")
PRODUCT_ERRORS = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
"""Largest relative error of a product, by its type; TF32's would be 1e-3."""
ATTENTION_SHAPE = (2, 24, 1280, 64)
"""SD3's heads; 1024 tokens of an image of 512 px, 256 of a text."""
KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "memory-efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cuDNN": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}
SMALL_SHM = GIB
EXCHANGE_SECONDS = 90


def check_software(bench: Bench) -> Outcome:
    parts = [f"CUDA {torch.version.cuda or 'none'}"]
    if torch.backends.cudnn.is_available():
        parts.append(f"cuDNN {torch.backends.cudnn.version()}")
    if bench.is_gpu:
        import torch.cuda.nccl as nccl

        parts += [f"driver {_driver()}", f"NCCL {'.'.join(map(str, nccl.version()))}"]
    for name in LIBRARIES:
        try:
            parts.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return Outcome(", ".join(parts))


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.split()[0]


def check_device(bench: Bench) -> Outcome:
    threads = f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"
    if not bench.is_gpu:
        return Outcome(f"{bench.device}; {threads}")
    facts = torch.cuda.get_device_properties(bench.device)
    return Outcome(
        f"{torch.cuda.device_count()} x {facts.name}, compute capability {facts.major}.{facts.minor}, "
        f"{facts.multi_processor_count} multiprocessors; {threads}"
    )


def check_products(bench: Bench, dtype: torch.dtype) -> Outcome:
    """Speed of large products, and the error of a small one."""
    if dtype == torch.bfloat16 and not multiplies_bfloat16(bench.device):
        raise Skipped("this CPU has no quick bfloat16 products")
    if dtype == torch.float16 and not bench.is_gpu:
        raise Skipped(NO_GPU)
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(512, 512, generator=generator, dtype=torch.float64) for _ in range(2))
    exact = a.to(dtype).double() @ b.to(dtype).double()
    found = (a.to(bench.device, dtype) @ b.to(bench.device, dtype)).cpu().double()
    error = ((found - exact).norm() / exact.norm()).item()
    side = 8192 if bench.is_gpu else 1024
    matrix = torch.randn(side, side, device=bench.device, dtype=dtype)
    rate = 2 * side**3 / timed(lambda: matrix @ matrix, bench)
    figure = f"{rate / 1e12:.3g} TFLOP/s, relative error {error:.1e}"
    peak = known_peak(torch.cuda.get_device_name(bench.device)) if bench.is_gpu else None
    if dtype == torch.float32:
        tf32 = torch.backends.cuda.matmul.allow_tf32
        return Outcome(
            f"{figure}{', TF32 on' if tf32 else ''}", "ok" if error < PRODUCT_ERRORS[dtype] else "failed"
        )
    if error > PRODUCT_ERRORS[dtype]:
        return Outcome(figure, "failed")
    if peak is None:
        return Outcome(figure)
    return Outcome(f"{figure}, {rate / peak:.0%} of the data sheet's", "ok" if rate > 0.5 * peak else "slow")


def check_attention(bench: Bench, kernel: SDPBackend) -> Outcome:
    """One kernel at SD3's size, there and back, against float32's plain products."""
    if not bench.is_gpu and kernel not in (SDPBackend.FLASH_ATTENTION, SDPBackend.MATH):
        raise Skipped(NO_GPU)
    dtype = torch.bfloat16 if multiplies_bfloat16(bench.device) else torch.float32
    shape = ATTENTION_SHAPE if bench.is_gpu else (1, 4, 320, 64)
    generator = torch.Generator().manual_seed(0)
    given = [torch.randn(shape, generator=generator).to(bench.device, dtype) for _ in range(3)]
    q, k, v = (tensor.requires_grad_() for tensor in given)

    def both_ways() -> torch.Tensor:
        out = F.scaled_dot_product_attention(q, k, v)
        out.sum().backward()
        return out

    try:
        with sdpa_kernel(kernel):
            seconds = timed(both_ways, bench)
            out = both_ways()
    except RuntimeError as error:
        if "No available kernel" not in str(error):
            raise
        raise Skipped(f"not available in {dtype}") from None
    with sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        exact = F.scaled_dot_product_attention(q.float(), k.float(), v.float())
    error = ((out - exact).norm() / exact.norm()).item()
    figure = (
        f"{seconds * 1e3:.2f} ms there and back at {'x'.join(map(str, shape))}, relative error {error:.1e}"
    )
    return Outcome(figure, "ok" if error < 2e-2 else "failed")


def check_device_memory(bench: Bench) -> Outcome:
    bench.need_gpu()
    free, total = torch.cuda.mem_get_info(bench.device)
    figure = f"{free / GIB:.1f} of {total / GIB:.1f} GiB free"
    return Outcome(figure, "ok" if free > 0.5 * total else "slow")


def check_main_memory(bench: Bench) -> Outcome:
    free = available_memory()
    if free is None:
        raise Skipped("this system does not say")
    return Outcome(f"{free / GIB:.1f} GiB available")


def check_disk(bench: Bench) -> Outcome:
    """Of the current folder, where runs are written."""
    free = shutil.disk_usage(Path.cwd()).free
    path, data = bench.folder / "written", os.urandom(2**20)
    start = time.perf_counter()
    with path.open("wb") as file:
        for _ in range(64):
            file.write(data)
        file.flush()
        os.fsync(file.fileno())
    rate = 64 / (time.perf_counter() - start)
    path.unlink()
    figure = f"{free / GIB:.0f} GiB free here; {rate:.0f} MiB/s to temporary files"
    return Outcome(figure, "ok" if rate > 50 and free > 20 * GIB else "slow")


def check_shared_memory(bench: Bench) -> Outcome:
    shm = Path("/dev/shm")
    if not shm.is_dir():
        raise Skipped("this system has no /dev/shm")
    usage = shutil.disk_usage(shm)
    figure = f"{usage.free / GIB:.1f} of {usage.total / GIB:.1f} GiB free"
    if usage.total < SMALL_SHM:
        return Outcome(f"{figure}: workers that load data may die; in docker give --shm-size=8g", "slow")
    return Outcome(figure)


def check_exchange(bench: Bench) -> Outcome:
    """An all-reduce of this machine's devices, each in a process of its own; on a CPU, of two processes."""
    count = torch.cuda.device_count() if bench.is_gpu else 2
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    command += ["-m", "ddit.doctor.exchange", bench.device.type]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    )  # fmt: skip
    try:
        out, err = process.communicate(timeout=EXCHANGE_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        process.communicate()
        raise TimeoutError(f"no answer within {EXCHANGE_SECONDS} s") from None
    if process.returncode:
        errors = [line for line in err.splitlines() if "Error" in line]
        raise RuntimeError(errors[-1] if errors else f"exit code {process.returncode}")
    found = json.loads(out.splitlines()[-1])
    who = f"{found['backend']}, {count} process{'es' * (count > 1)}"
    how = f"{found['mib']} MiB in {found['seconds'] * 1e3:.1f} ms, {found['rate'] / 1e9:.2f} GB/s of each"
    return Outcome(f"{who}: {how}")


def machine_checks() -> list[Check]:
    checks = {"software": check_software, "device": check_device}
    memory = {
        "device memory": check_device_memory,
        "main memory": check_main_memory,
        "disk": check_disk,
        "/dev/shm": check_shared_memory,
        "all-reduce": check_exchange,
    }
    return in_group("machine", {**checks, **memory})


def kernel_checks() -> list[Check]:
    products = {
        f"products in {str(dtype).removeprefix('torch.')}": partial(check_products, dtype=dtype)
        for dtype in PRODUCT_ERRORS
    }
    kernels = {
        f"attention: {name}": partial(check_attention, kernel=kernel) for name, kernel in KERNELS.items()
    }
    return in_group("kernels", {**products, **kernels})
