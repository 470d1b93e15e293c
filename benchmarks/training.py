"""Training step of this project against that of the published code, on the same tiny model, alternating in one run.

    OMP_NUM_THREADS=1 python benchmarks/training.py --published PATH

PATH is your own checkout of github.com/zijieli-Jlee/Dual-Diffusion; its losses and model run as they are (diffusers is
all they need), its loop needs CUDA and is written out here. Both sides start from the same weights and get the same
draws; that their losses agree is checked before anything is timed. Each side is a process of its own and they take
turns, step by step, so that both see the same machine.
"""

import argparse
import copy
import gc
import multiprocessing
import statistics
import sys
import time
import warnings
from contextlib import nullcontext
from dataclasses import dataclass
from multiprocessing.connection import Connection
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ddit.config.data import DataConfig
from ddit.config.runs import DualRun, ObjectiveConfig, OptimizerConfig
from ddit.diffusion import masked
from ddit.model.block import Mask
from ddit.model.dual_dit import DualDiT, DualDiTConfig, JointBlock
from ddit.model.encoders import TextCodec
from ddit.objectives import FlowConfig
from ddit.train.batch import Batch, I2TBatch, Images, T2IBatch

TEXT_DIM, LENGTH, SIDE, CHANNELS = 256, 32, 16, 16  # patches of 2 x 2: 64 image tokens
LR, WEIGHT_DECAY, MAX_NORM, EMA_DECAY, LAMBDA_TEXT = 3e-5, 1e-2, 2.0, 0.9995, 0.2


@dataclass(frozen=True)
class Job:
    """What a process trains. `switches` turn parts of our step off, for the breakdown."""

    side: str
    vocab: int
    batch: int
    published: str
    switches: tuple[str, ...] = ()

    def model_config(self) -> DualDiTConfig:
        return DualDiTConfig(
            in_channels=CHANNELS, patch_size=2, hidden_size=256, depth=8, num_heads=4, text_dim=TEXT_DIM,
            vocab_size=self.vocab, sample_size=SIDE, pos_embed_max_size=SIDE,
        )  # fmt: skip

    @property
    def mask_token_id(self) -> int:
        return min(32099, self.vocab - 1)


class Material(NamedTuple):
    """A global batch: clean latents of both halves, ids of the prompts and of the texts."""

    t2i: Tensor
    i2t: Tensor
    prompt_ids: Tensor
    input_ids: Tensor


def material_of(job: Job, step: int) -> Material:
    g = torch.Generator().manual_seed(1000 + step)
    latents = torch.randn(2, job.batch, CHANNELS, SIDE, SIDE, generator=g)
    ids = torch.randint(0, job.mask_token_id, (2, job.batch, LENGTH), generator=g)
    return Material(latents[0], latents[1], ids[0], ids[1])


def start_weights(job: Job) -> dict[str, Tensor]:
    """Random weights with no zero-initialised path, under the names that both sides use."""
    model = DualDiT(job.model_config())
    g = torch.Generator().manual_seed(0)
    model.init_weights(g)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=g))
    return model.state_dict()


def text_table(job: Job) -> Tensor:
    """States of a token, the same wherever it stands: in place of T5, which neither side trains."""
    return torch.randn(job.vocab, TEXT_DIM, generator=torch.Generator().manual_seed(1))


class Published:
    """The published model and losses, in a loop as theirs on one device: autocast over float32 weights, AdamW, EMA."""

    def __init__(self, job: Job) -> None:
        sys.path.insert(0, job.published)
        warnings.filterwarnings("ignore")
        from sd3_modules.sd3_model import SD3JointModelFlexible  # type: ignore[import-not-found]
        from sd3_modules.sd_loss_utils import (  # type: ignore[import-not-found]
            ImageFlowMatchingLoss,
            TextMaskedDiffusionLoss,
        )

        self.imported = memory_now()
        self.job, table = job, text_table(job)
        config = job.model_config()
        self.model = SD3JointModelFlexible(
            job.vocab, sample_size=SIDE, patch_size=2, in_channels=CHANNELS, num_layers=config.depth,
            attention_head_dim=64, num_attention_heads=config.num_heads, joint_attention_dim=TEXT_DIM,
            caption_projection_dim=config.hidden_size, out_channels=CHANNELS, pos_embed_max_size=SIDE,
        ).train()  # fmt: skip
        self.model.load_state_dict(start_weights(job))
        self.ema = copy.deepcopy(self.model).requires_grad_(False)
        pipe = SimpleNamespace(
            device="cpu",
            text_encoder_3=lambda ids, attention_mask=None: (table[ids],),
            _get_t5_prompt_embeds=lambda prompt, max_sequence_length: table[null_prompt(max_sequence_length)],
        )
        self.encode = pipe.text_encoder_3
        settings = SimpleNamespace(
            sampling_eps=1e-3, antithetic_sampling=True, importance_sampling=False, ignore_padding=False
        )
        self.text_loss = TextMaskedDiffusionLoss(SimpleNamespace(training=settings), pipe)
        self.text_loss.mask_index = job.mask_token_id  # written into the code as 32099
        self.image_loss = ImageFlowMatchingLoss(pipe, text_max_length=LENGTH)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=LR, weight_decay=WEIGHT_DECAY)
        self.state = [*self.model.parameters(), *self.ema.parameters(), table]

    def losses(self, step: int, precision: str) -> dict[str, Tensor]:
        material = material_of(self.job, step)
        torch.manual_seed(step)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            text = self.text_loss.compute_loss(
                self.model, material.input_ids, material.i2t, None, use_dummy_loss=False, disable_t5_grad=True,
                label_mask=torch.ones_like(material.input_ids),
            )  # fmt: skip
            image = self.image_loss.compute_loss(
                self.model, self.encode(material.prompt_ids)[0], material.t2i
            )
            return {"image": image, "text": text, "total": image + LAMBDA_TEXT * text}

    def backward(self, step: int) -> None:
        self.optimizer.zero_grad()
        self.losses(step, "bfloat16")["total"].backward()

    @torch.no_grad()
    def update(self, step: int) -> None:
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        squares = torch.zeros(())
        for parameter in parameters:
            squares += cast(Tensor, parameter.grad).norm(dtype=torch.float32) ** 2
        norm = squares.item() ** 0.5
        if norm > MAX_NORM:
            for parameter in parameters:
                cast(Tensor, parameter.grad).mul_(MAX_NORM / norm)
        self.optimizer.step()
        for average, parameter in zip(self.ema.parameters(), self.model.parameters(), strict=True):
            average.mul_(EMA_DECAY).add_(parameter, alpha=1 - EMA_DECAY)


def null_prompt(length: int) -> Tensor:
    return torch.ones(1, length, dtype=torch.long)


class Ours:
    """This project's learner, sharded over one rank as every run is, its optimiser and its average."""

    def __init__(self, job: Job) -> None:
        from ddit import devices
        from ddit.train import learner, optim, parallel

        self.imported = memory_now()
        self.job, table = job, text_table(job)
        self.devices, self.parallel = devices, parallel
        cfg = DualRun(
            out="", vae=None, text=None, model=job.model_config(), data=DataConfig(),
            objective=ObjectiveConfig(lambda_text=LAMBDA_TEXT, flow=FlowConfig(weighting="x0")),
            optimizer=OptimizerConfig(lr=LR, weight_decay=WEIGHT_DECAY, warmup_steps=0, ema_decay=EMA_DECAY),
        )  # fmt: skip
        self.table = table
        codec = SimpleNamespace(
            states=lambda ids: table[ids], mask_token_id=job.mask_token_id, eos_token_id=1
        )
        self.codec = cast(TextCodec, codec)
        transformer = DualDiT(job.model_config())
        transformer.load_state_dict(start_weights(job))
        turn_off(job.switches, transformer)
        self.plain = learner.Learner(cfg.objective, transformer)
        self.cfg, self.optim = cfg, optim
        self.autocast = "bf16" in job.switches
        self.learner: Any = None

    def share(self) -> None:
        """What a run does before its first step."""
        mesh = self.parallel.make_mesh(self.devices.join_ranks(), 1)
        dtype = torch.float32 if self.autocast else torch.bfloat16
        self.learner = self.plain
        if "compile" not in self.job.switches:
            self.learner.transformer.compile_blocks()
        blocks = list(self.learner.transformer.transformer_blocks)
        if not self.autocast:
            self.parallel.shard_blocks(self.learner, blocks, mesh, self.cfg.parallel, dtype)
        self.trained = self.learner.trained()
        if "fused" in self.job.switches:
            self.optimizers = {
                "adamw": torch.optim.AdamW(self.trained.values(), lr=LR, weight_decay=WEIGHT_DECAY)
            }
        else:
            self.optimizers = self.optim.build_optimizers(self.trained, self.cfg.optimizer)
        self.ema = self.optim.Ema(self.trained, EMA_DECAY)
        self.optimizer = self.optimizers["adamw"]
        tensors = [*self.trained.values(), *self.ema.tensors.values()]
        self.state = [*(self.parallel.local(tensor) for tensor in tensors), self.table]

    def losses(self, step: int, precision: str) -> dict[str, Tensor]:
        material = material_of(self.job, step)
        torch.manual_seed(step)
        batch = draw_as_published(material, self.job.mask_token_id)
        if self.learner is None and precision == "bfloat16":
            self.share()
        root = self.learner or self.plain
        with torch.autocast("cpu", torch.bfloat16) if self.autocast else nullcontext():
            return root(batch, (material.t2i, material.i2t), self.codec)._asdict()

    def backward(self, step: int) -> None:
        self.losses(step, "bfloat16")["total"].backward()

    def update(self, step: int) -> None:
        gradients = [p.grad for p in self.trained.values() if p.grad is not None]
        norm = self.parallel.total_norm(gradients)
        if norm > MAX_NORM:
            own = [self.parallel.local(g) for g in gradients]
            torch._foreach_mul_(own, MAX_NORM / norm)  # pyright: ignore[reportPrivateImportUsage]
        self.optimizer.step()
        self.ema.update(self.trained, step)
        for parameter in self.trained.values():
            parameter.grad = None
        if not self.autocast:
            self.parallel.free_gathered(self.learner)


def draw_as_published(material: Material, mask_token_id: int) -> Batch:
    """A batch whose randomness is taken from torch's generator in the order in which the published losses take it."""
    n = len(material.t2i)
    everything = torch.ones_like(material.input_ids, dtype=torch.bool)
    text_t = masked.sample_t(n)
    noisy_ids = masked.mask_tokens(material.input_ids, everything, text_t, mask_token_id=mask_token_id)
    noise = torch.randn_like(material.t2i)
    level = (torch.normal(mean=0.0, std=1.0, size=(n,)).sigmoid() * 1000).long()
    is_dropped = torch.rand(n) < 0.1
    prompt_ids = torch.where(is_dropped[:, None], null_prompt(LENGTH), material.prompt_ids)
    nothing = Images(None, None, None, None)
    return Batch(
        T2IBatch(nothing, prompt_ids, 1 - level / 1000, noise),
        I2TBatch(nothing, material.input_ids, everything, noisy_ids, text_t),
        {},
    )


SWITCHES = {
    "compile": "blocks compiled one by one, keeping matrix products alone for the backward pass",
    "joint": "one forward for both halves, not two",
    "masked": "logits at the masked positions of the texts, not at all of them",
    "chunks": "cross-entropy with its gradients, chunk by chunk, not torch's",
    "last": "last block: only what a head uses",
    "attention": "attention as plain products on a CPU, not torch's fused kernel",
    "fused": "fused AdamW",
    "bf16": "bfloat16 weights gathered from float32 masters (FSDP2), not autocast over float32 weights",
}


def turn_off(switches: tuple[str, ...], transformer: DualDiT) -> None:
    """Undoes parts of our step (the losses stay, but for "masked", of which only the cost is meant)."""
    from ddit.model import attention
    from ddit.train import objective

    if "joint" in switches:
        objective._fit = lambda t2i, i2t: False
    if "masked" in switches:
        objective._is_scored = lambda i2t, cfg, mask_token_id: i2t.answer_mask
    if "chunks" in switches:
        objective.weighted_nll = plain_nll
    if "attention" in switches:
        attention.MAX_PLAIN_ATTENTION = 0
    if "last" in switches:
        block = cast(JointBlock, transformer.transformer_blocks[-1])
        whole = block.last

        def last(
            image: Tensor, text: Tensor, cond: Tensor, n: int | None, mask: Mask = None, *, keep: bool = False
        ):
            image, text, kv = whole(image, text, cond, None, mask, keep=keep)
            return image[:n], text[n:], kv

        block.last = last


def plain_nll(
    hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, weights: Tensor, *, ruled_out: int
) -> Tensor:
    log_probs = masked.subs_log_probs(torch.nn.functional.linear(hidden, weight, bias), ruled_out)
    return -(weights * log_probs.gather(1, targets[:, None])[:, 0]).sum()


def memory_now(field: str = "VmRSS") -> float:
    """Resident memory of this process in MB, now or (VmHWM) at its peak; as Linux counts it."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith(field))


def forget_peak() -> None:
    gc.collect()
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def tensor_peak(side: Published | Ours, step: int) -> tuple[float, float]:
    """MB of tensors: those that stay between steps, and the most that the allocator gives out on top in a step."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profiler:
        side.backward(step)
        side.update(step)
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]  # type: ignore[union-attr]
    given = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        given += cast(Any, event).nbytes()
        peak = max(peak, given)
    moments = [value for state in side.optimizer.state.values() for value in state.values()]
    kept = {}
    for tensor in [*side.state, *moments]:
        tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return sum(kept.values()) / 2**20, peak / 2**20


def work(job: Job, options: argparse.Namespace, pipe: Connection) -> None:
    """A side's process: answers requests until it is told to stop."""
    torch.set_num_threads(options.threads)
    clock = time.process_time if options.cpu_time else time.perf_counter
    side = Published(job) if job.side == "published" else Ours(job)
    step = 0
    while (request := pipe.recv()) != "stop":
        if request == "losses":
            with torch.no_grad():
                pipe.send({k: v.item() for k, v in side.losses(0, "float32").items() if v is not None})
        elif request == "step":
            start = clock()
            side.backward(step)
            middle = clock()
            side.update(step)
            pipe.send((clock() - start, middle - start))
            step += 1
            if step == 1:
                forget_peak()
        elif request == "memory":
            resident = memory_now("VmHWM")
            kept, passing = tensor_peak(side, step)
            pipe.send((resident, resident - side.imported, kept + passing, passing))
        elif request == "flops":
            with FlopCounterMode(display=False) as counter:
                side.backward(step)
            side.update(step)
            pipe.send(counter.get_total_flops())


MEMORIES = (
    "resident",
    "resident, above the imports",
    "tensors",
    "tensors, above those that stay (weights, moments, average)",
)


class Process:
    """A side at work in its own process."""

    def __init__(self, job: Job, options: argparse.Namespace) -> None:
        self.job = job
        context = multiprocessing.get_context("spawn")
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=work, args=(job, options, other), daemon=True)
        self.process.start()

    def ask(self, request: str) -> Any:
        self.pipe.send(request)
        return self.pipe.recv()

    def stop(self) -> None:
        self.pipe.send("stop")
        self.process.join()


def matmul_rate(options: argparse.Namespace, size: int = 2048) -> float:
    """This machine's GFLOP/s in a bfloat16 matrix product, now: the best of four."""
    clock = time.process_time if options.cpu_time else time.perf_counter
    a = torch.randn(size, size).bfloat16()
    times = []
    for _ in range(4):
        start = clock()
        torch.mm(a, a)
        times.append(clock() - start)
    return 2 * size**3 / min(times) / 1e9


def spread(values: list[float], form: str = ".2f") -> str:
    """Median, and the quarters' bounds."""
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:{form}} ({low:{form}}-{high:{form}})"


def check_losses(processes: list[Process]) -> None:
    first, *others = [process.ask("losses") for process in processes]
    for other in others:
        for name in ("image", "text", "total"):
            if abs(other[name] - first[name]) > 1e-5 * max(1, abs(first[name])):
                raise SystemExit(f"the two sides' {name} losses differ: {first[name]} and {other[name]}")
    print("losses of both in float32: " + ", ".join(f"{k} {v:.6f}" for k, v in first.items()), flush=True)


def compare(options: argparse.Namespace, vocab: int) -> None:
    """Prints the table of one vocabulary."""
    jobs = [Job(side, vocab, options.batch, options.published) for side in ("published", "ours")]
    processes = [Process(job, options) for job in jobs]
    print(f"\n## vocabulary {vocab}, {options.batch} t2i and {options.batch} i2t samples a step\n")
    check_losses(processes)
    for process in processes:
        process.ask("step")
    times: dict[str, list[tuple[float, float]]] = {job.side: [] for job in jobs}
    rates = []
    for _ in range(options.rounds):
        rates.append(matmul_rate(options))
        for process in processes:
            times[process.job.side].append(process.ask("step"))
    memory = {process.job.side: process.ask("memory") for process in processes}
    flops = {process.job.side: process.ask("flops") for process in processes}
    for process in processes:
        process.stop()
    rate = statistics.median(rates)
    print(f"\nbfloat16 product of 2048 x 2048 matrices: {spread(rates, '.0f')} GFLOP/s\n")
    print("| | published | ours | ratio |\n|---|---|---|---|")
    steps = {side: [whole for whole, _ in pairs] for side, pairs in times.items()}
    ratio = [a / b for a, b in zip(steps["published"], steps["ours"], strict=True)]
    speed = [statistics.median(2 * options.batch / t for t in steps[side]) for side in steps]
    print(f"| pairs/s | {speed[0]:.1f} | {speed[1]:.1f} | {spread(ratio)} |")
    for name, pick in (
        ("forward and backward", lambda p: p[1]),
        ("optimiser, clipping, average", lambda p: p[0] - p[1]),
    ):
        parts = [statistics.median(map(pick, times[side])) * 1e3 for side in times]
        print(f"| ms: {name} | {parts[0]:.0f} | {parts[1]:.0f} | {parts[0] / parts[1]:.2f} |")
    for index, name in enumerate(MEMORIES):
        a, b = (memory[side][index] for side in memory)
        print(f"| peak MB: {name} | {a:.0f} | {b:.0f} | {b / a:.2f} |")
    a, b = flops["published"] / 1e9, flops["ours"] / 1e9
    print(f"| GFLOP of matrix products a step | {a:.0f} | {b:.0f} | {b / a:.2f} |")
    shares = [flops[side] / statistics.median(steps[side]) / 1e9 / rate for side in steps]
    print(f"| share of the machine's rate, by what each computes | {shares[0]:.0%} | {shares[1]:.0%} | |")
    useful = [flops["ours"] / statistics.median(steps[side]) / 1e9 / rate for side in steps]
    print(
        f"| share, by what the losses need (our products) | {useful[0]:.0%} | {useful[1]:.0%} | |", flush=True
    )


def break_down(options: argparse.Namespace, vocab: int) -> None:
    """Prints what each part of our step is worth: the step without it, in turns with the whole step."""
    print("\n| what | time without it / with it | peak MB of tensors, without it - with it |\n|---|---|---|")
    whole = Process(Job("ours", vocab, options.batch, options.published), options)
    whole.ask("step")
    memory = whole.ask("memory")[2]
    for switch, meaning in SWITCHES.items():
        lacking = Process(Job("ours", vocab, options.batch, options.published, (switch,)), options)
        lacking.ask("step")
        ratios = [lacking.ask("step")[0] / whole.ask("step")[0] for _ in range(options.rounds)]
        difference = lacking.ask("memory")[2] - memory
        lacking.stop()
        print(f"| {switch}: {meaning} | {spread(ratios)} | {difference:+.0f} |", flush=True)
    whole.stop()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--published", required=True, help="your checkout of the published code")
    parser.add_argument("--vocab", type=int, nargs="+", default=[32128, 2048])
    parser.add_argument("--batch", type=int, default=32, help="t2i samples, and as many i2t samples, a step")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--cpu-time", action="store_true", help="processor time: on a busy machine, with one thread"
    )
    parser.add_argument("--no-breakdown", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for vocab in options.vocab:
        compare(options, vocab)
        if not options.no_breakdown:
            break_down(options, vocab)


if __name__ == "__main__":
    main()
