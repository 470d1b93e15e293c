"""Whether training runs: every recipe at toy width, and steps at the real width beside what the plan expects."""

import contextlib
import dataclasses
import importlib.util
import io
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import torch

from ddit.config.runs import DualRun, settled
from ddit.data.latents import LatentFolder
from ddit.devices import Ranks, available_memory, compute_dtype, join_ranks
from ddit.doctor.models import counted_graphs
from ddit.doctor.report import Bench, Check, Outcome, Skipped, in_group
from ddit.model.encoders import TextCodec
from ddit.recipes import build
from ddit.recipes.mini import EXTRA_STAGES, MINI_STAGES
from ddit.recipes.sd3 import SD3_STAGES
from ddit.train.batch import Batch, I2TBatch, Images, T2IBatch
from ddit.train.flops import peak_flops, run_flops
from ddit.train.learner import make_learner
from ddit.train.log import LOG_FILE, read_log
from ddit.train.memory import GIB, memory_per_gpu
from ddit.train.optim import Ema, build_optimizers, scale_gradients, set_lr
from ddit.train.parallel import free_gathered, sync_gradients, total_norm
from ddit.train.plan import Machine, make_plan
from ddit.train.precompute import precompute
from ddit.train.stages import run_stage

SMALL_NETWORKS = ("vae", "text", "teacher", "latents", "latents_mixed")
MINI_RECIPES = [stage for stage in MINI_STAGES if stage not in (*SMALL_NETWORKS, *EXTRA_STAGES)]
SD3_RECIPES = [*(f"sd3-medium-{stage}" for stage in SD3_STAGES), "sd3.5-medium-stage1"]
MASK_TOKEN_ID, EOS_TOKEN_ID = 32099, 1
DOWNSAMPLE = 8
"""Pixels a latent of SD3's autoencoder, along a side."""
MAIN_MEMORY = 12 * GIB
"""What drawing the weights of a whole model takes."""
SLOW_SHARE = 0.2
"""Of the device's peak rate; what training reaches is 0.3 to 0.5."""


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without progress bars and figures."""
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        yield


def _join(bench: Bench) -> Ranks:
    ranks = join_ranks()
    if ranks.device.type != bench.device.type:
        raise Skipped(f"training takes {ranks.device.type} where it is, not {bench.device}")
    return ranks


def _networks(bench: Bench) -> Path:
    """The folder of the small networks and latents of `tiny`, made once."""
    root = bench.folder / "runs"
    with _quiet():
        for stage in SMALL_NETWORKS:
            config = build(f"tiny-{stage}", root)
            if not (Path(config.out) / "finished.json").exists():
                run_stage(config)
    return root


def check_networks(bench: Bench) -> Outcome:
    _join(bench)
    _networks(bench)
    return Outcome("autoencoder, text encoder, teacher and latents made")


def run_quietly(config: DualRun) -> Outcome:
    """A run to its end, checkpoint and export included; what its log says of the last step."""
    report = replace(config.report, log_every=1, tensorboard=False, peak_tflops=1.0)
    with _quiet():
        run_stage(replace(config, report=report))
    last = [event for event in read_log(Path(config.out) / LOG_FILE) if "pairs_per_second" in event][-1]
    parts = ", ".join(
        f"{name.removeprefix('time_')} {1e3 * value:.0f}"
        for name, value in last.items()
        if name.startswith("time_")
    )
    peak = f"; peak {last['peak_memory_gib']:.2f} GiB" if "peak_memory_gib" in last else ""
    return Outcome(f"loss {last['total']:.3f}; ms a step: {parts}{peak}")


def check_mini_recipe(bench: Bench, stage: str) -> Outcome:
    """A stage of mini's chain in the size of `tiny`, which begins with random weights."""
    _join(bench)
    config = build(f"tiny-{stage}", _networks(bench))
    assert isinstance(config, DualRun)
    vae, text = _encoders(bench)
    return run_quietly(replace(config, init=None, vae=vae, text=text))


def _encoders(bench: Bench) -> tuple[str, str]:
    root = bench.folder / "runs"
    return str(root / "mini-vae/export/vae"), str(root / "mini-text/export")


def toy(name: str, bench: Bench) -> DualRun:
    """A recipe of the real size with a toy's width and data, uncompiled, for two steps."""
    tiny, recipe = (build(each, _networks(bench)) for each in ("tiny-stage1", name))
    assert isinstance(tiny, DualRun)
    assert isinstance(recipe, DualRun)
    lengths = {} if recipe.data.t2i_length == recipe.data.i2t_length else {"t2i_length": 24}
    vae, text = _encoders(bench)
    return replace(
        recipe, init=None, vae=vae, text=text, prompts="mini", global_batch_size=8, max_steps=2,
        out=str(bench.folder / "runs" / name),
        model=replace(
            tiny.model, hidden_size=256, num_heads=4, qk_norm=recipe.model.qk_norm,
            dual_attention_layers=recipe.model.dual_attention_layers and (0,),
        ),
        data=replace(tiny.data, held_out=(), **lengths),
        parallel=replace(recipe.parallel, compile_blocks=False),
        optimizer=replace(recipe.optimizer, warmup_steps=1),
        report=replace(tiny.report, num_held_out=0),
    )  # fmt: skip


def _need_peft(cfg: DualRun) -> None:
    if cfg.lora.rank and importlib.util.find_spec("peft") is None:
        raise Skipped("no peft: pip install 'ddit[lora]'")


def check_sd3_recipe(bench: Bench, name: str) -> Outcome:
    _join(bench)
    config = toy(name, bench)
    _need_peft(config)
    return run_quietly(config)


def check_accumulation(bench: Bench) -> Outcome:
    """FSDP2 over one rank, two micro-batches: gradients kept whole, gradients kept sharded, and one batch, agree."""
    _join(bench)
    config, losses = toy("sd3-medium-stage1", bench), []
    optimizer = replace(config.optimizer, lr=1e-3)
    config = replace(config, compute_dtype="float32", max_steps=3, optimizer=optimizer)
    for micro, how in ((8, "whole"), (4, "whole"), (4, "sharded")):
        out = f"{config.out}-{micro}-{how}"
        parallel = replace(config.parallel, accumulate=how, num_replicas=1)
        run_quietly(replace(config, out=out, micro_batch_size=micro, parallel=parallel))
        losses.append([event["total"] for event in read_log(Path(out) / LOG_FILE) if "total" in event])
    spread = max(abs(a - b) / abs(a) for other in losses[1:] for a, b in zip(losses[0], other, strict=True))
    return Outcome(f"losses of three steps differ by {spread:.1e}", "ok" if spread < 1e-3 else "failed")


def check_compiled_training(bench: Bench) -> Outcome:
    """Compiled blocks and the graphs that a run with held-out data takes."""
    _join(bench)
    plain, losses = toy("sd3-medium-stage1", bench), []
    tiny = build("tiny-stage1", _networks(bench))
    assert isinstance(tiny, DualRun)
    data = replace(plain.data, held_out=tiny.data.held_out)
    report = replace(plain.report, num_held_out=4, evaluate_every=1)
    plain = replace(plain, data=data, report=report, compute_dtype="float32")
    with counted_graphs() as made:
        for compiled in (False, True):
            config = replace(
                plain,
                out=f"{plain.out}-{compiled}",
                parallel=replace(plain.parallel, compile_blocks=compiled),
            )
            run_quietly(config)
            events = read_log(Path(config.out) / LOG_FILE)
            losses.append([event["total"] for event in events if "pairs_per_second" in event])
    spread = max(abs(a - b) / abs(a) for a, b in zip(*losses, strict=True))
    figure = f"{made[0]} graphs; losses differ by {spread:.1e} from those of plain blocks"
    return Outcome(figure, "ok" if spread < 1e-3 and made[0] else "failed")


def check_loader(bench: Bench) -> Outcome:
    """Two processes that render the images of a batch, while the device trains."""
    _join(bench)
    config = toy("sd3-medium-stage1", bench)
    sources = tuple(replace(cast(Any, source), latents=None, num_scenes=512) for source in config.data.t2i)
    data = replace(config.data, t2i=sources, i2t=sources, num_workers=2)
    config = replace(config, out=f"{config.out}-loader", data=data, max_steps=12)
    run_quietly(config)
    events = [e for e in read_log(Path(config.out) / LOG_FILE) if "pairs_per_second" in e][4:]
    wait = sum(event["data_wait"] for event in events) / len(events)
    rate = len(events) / sum(1 / event["pairs_per_second"] for event in events)
    return Outcome(f"{rate:.0f} samples/s with 2 workers; waits {wait * 1e3:.1f} ms for each batch of 8")


def check_precompute(bench: Bench) -> Outcome:
    """Latents in the type of computation, beside those in float32."""
    ranks = _join(bench)
    config, found = build("tiny-latents", _networks(bench)), []
    for dtype in ("float32", "bfloat16"):
        made: Any = replace(cast(Any, config), out=f"{config.out}-{dtype}", compute_dtype=dtype)
        with _quiet():
            found.append(_read_latents(precompute(made, ranks, num_workers=0)))
    error = ((found[0] - found[1]).norm() / found[0].norm()).item()
    return Outcome(f"in bfloat16 they differ by {error:.1e}", "ok" if 0 < error < 0.05 else "failed")


def _read_latents(folder: Path) -> torch.Tensor:
    """All latents' means, as they are stored."""
    cached = LatentFolder(folder)
    return torch.stack(
        [found.mean.float() for i in range(len(cached)) if (found := cached.get(i)) is not None]
    )


class RealStep(NamedTuple):
    """Steps at real width: seconds of the last one, bytes at the peak (CUDA alone), and bytes that were expected."""

    seconds: float
    peak: int | None
    expected: int

    def to_text(self, cfg: DualRun, device: torch.device) -> Outcome:
        peak = peak_flops(device, compute_dtype(cfg.compute_dtype, device))
        share = run_flops(cfg, DOWNSAMPLE) / self.seconds / peak
        figure = f"micro-batch {cfg.global_batch_size}: {self.seconds * 1e3:.0f} ms, {share:.0%} of the peak rate; "
        if self.peak is None:
            return Outcome(f"{figure}expected memory {self.expected / GIB:.2f} GiB")
        ratio = self.peak / self.expected
        figure += f"peak {self.peak / GIB:.2f} GiB, expected {self.expected / GIB:.2f} ({ratio:.2f} x)"
        return Outcome(figure, "ok" if share > SLOW_SHARE and 0.6 < ratio < 1.25 else "slow")


def random_batch(cfg: DualRun, device: torch.device) -> tuple[Batch, tuple[torch.Tensor, torch.Tensor]]:
    """A micro-batch of random latents and text states, half of its samples t2i; and its clean latents."""
    half, side = max(1, cfg.global_batch_size // 2), cfg.data.image_size // DOWNSAMPLE
    g, dtype = torch.Generator().manual_seed(0), compute_dtype(cfg.compute_dtype, device)
    shape = (half, cfg.model.in_channels, side, side)
    latents = [torch.randn(shape, generator=g).to(device) for _ in range(3)]
    t = torch.rand(half, generator=g).clamp_min(0.1).to(device)

    def states(length: int) -> torch.Tensor:
        return torch.randn(half, length, cfg.model.text_dim, generator=g).to(device, dtype)

    length, nothing = cfg.data.i2t_length, Images(None, None, None, None)
    ids = torch.randint(MASK_TOKEN_ID, (half, length), generator=g).to(device)
    answer = torch.ones_like(ids, dtype=torch.bool)
    noisy = torch.where(torch.arange(length, device=device) % 2 == 0, MASK_TOKEN_ID, ids)
    t2i = T2IBatch(nothing, ids[:, :0], t, latents[2], states=states(cfg.data.t2i_length))
    i2t = I2TBatch(nothing, ids, answer, noisy, t, states=states(length))
    return Batch(t2i, i2t, {}), (latents[0], latents[1])


def real_step(cfg: DualRun, bench: Bench, ranks: Ranks, *, num_steps: int = 3) -> RealStep:
    """Steps of a settled run of one micro-batch, without the frozen encoders: their states are random."""
    if bench.is_gpu:
        torch.cuda.reset_peak_memory_stats(bench.device)
    before = torch.cuda.memory_allocated(bench.device) if bench.is_gpu else 0
    codec = cast(
        TextCodec,
        SimpleNamespace(mask_token_id=MASK_TOKEN_ID, eos_token_id=EOS_TOKEN_ID, width=cfg.model.text_dim),
    )
    learner = make_learner(cfg, codec, ranks)
    trained = learner.trained()
    optimizers = build_optimizers(trained, cfg.optimizer)
    set_lr(optimizers, cfg.optimizer, 0.1)
    average = Ema(trained, cfg.optimizer.ema_decay)
    batch, latents = random_batch(cfg, bench.device)
    if bench.is_gpu:  # what the first rank draws on the CPU and sends is no part of a step
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(bench.device)
    seconds = 0.0
    for step in range(num_steps):
        bench.synchronize()
        start = time.perf_counter()
        sync_gradients(learner, True, settled(cfg.parallel.accumulate))
        total = learner(batch, latents, codec).total
        total.backward()
        gradients = [p.grad for p in trained.values() if p.grad is not None]
        scale_gradients(gradients, cfg.optimizer.max_grad_norm, total_norm(gradients))
        for optimizer in optimizers.values():
            optimizer.step()
        average.update(trained, step)
        for parameter in trained.values():
            parameter.grad = None
        free_gathered(learner)
        bench.synchronize()
        seconds = time.perf_counter() - start
        if not torch.isfinite(total).item():
            raise FloatingPointError(f"the loss of step {step} is {total.item()}")
    memory = memory_per_gpu(cfg, 1)
    kept = memory.masters + memory.gradients + memory.optimizer + memory.averages
    peak = torch.cuda.max_memory_allocated(bench.device) - before if bench.is_gpu else None
    return RealStep(seconds, peak, kept + memory.gathered + memory.activations)


def _settle(name: str, *, compiled: bool) -> DualRun:
    config = build(name, "runs")
    assert isinstance(config, DualRun)
    return replace(config, init=None, parallel=replace(config.parallel, compile_blocks=compiled))


def check_one_block(bench: Bench, name: str) -> Outcome:
    """One block of the real width with everything around it; a small micro-batch."""
    ranks = _join(bench)
    if (available_memory() or MAIN_MEMORY) < 5 * GIB:
        raise Skipped("needs 5 GiB of main memory")
    config = _settle(name, compiled=bench.is_gpu)
    _need_peft(config)
    model = config.model
    config = replace(
        config, global_batch_size=8 if bench.is_gpu else 2, micro_batch_size=None, train_mask_embedding=False,
        model=replace(model, depth=1, dual_attention_layers=model.dual_attention_layers and (0,)),
        data=replace(config.data, image_size=256, t2i_length=64, i2t_length=64),
        parallel=replace(
            config.parallel, num_replicas=1, checkpoint_activations=False, accumulate="whole", text_encoder="whole"
        ),
    )  # fmt: skip
    return real_step(config, bench, ranks, num_steps=3 if bench.is_gpu else 1).to_text(config, bench.device)


def check_whole(bench: Bench, name: str) -> Outcome:
    """The whole transformer at the micro-batch that the plan chooses for this GPU, if it finds one."""
    bench.need_gpu()
    ranks = _join(bench)
    if (available_memory() or MAIN_MEMORY) < MAIN_MEMORY:
        raise Skipped(f"needs {MAIN_MEMORY // GIB} GiB of main memory")
    config = _settle(name, compiled=False)
    _need_peft(config)
    try:
        planned = make_plan(config, Machine.here(ranks, config)).cfg
    except ValueError as error:
        raise Skipped(f"does not fit: {error}") from None
    micro = settled(planned.micro_batch_size) or planned.global_batch_size
    one = replace(planned, global_batch_size=micro, micro_batch_size=None, train_mask_embedding=False)
    outcome = real_step(one, bench, ranks).to_text(one, bench.device)
    choices = dataclasses.asdict(planned.parallel)
    chosen = ", ".join(f"{key}={choices[key]}" for key in ("text_encoder", "checkpoint_activations"))
    return outcome._replace(figure=f"{outcome.figure}; planned {chosen}")


def training_checks() -> list[Check]:
    mini = {f"tiny-{stage}": partial(check_mini_recipe, stage=stage) for stage in MINI_RECIPES}
    sd3 = {f"{name}, toy": partial(check_sd3_recipe, name=name) for name in SD3_RECIPES}
    rest = {
        "FSDP2, accumulation": check_accumulation,
        "data loader": check_loader,
        "precomputed latents": check_precompute,
        "compiled training": check_compiled_training,
    }
    return in_group("training", {"small networks": check_networks, **mini, **sd3, **rest})


def real_size_checks() -> list[Check]:
    blocks = {
        f"one block of {name}": partial(check_one_block, name=name)
        for name in ("sd3-medium-stage1", "sd3-medium-lora")
    }
    whole = {
        f"{name}, whole": partial(check_whole, name=name)
        for name in ("sd3-medium-lora", "sd3-medium-full", "sd3-medium-stage1")
    }
    return in_group("real-size", {**blocks, **whole})
