"""The plan of a fit: sizes by the data, the machine and the time, and what is too little for what is asked."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ddit.config.data import SourceConfig, TextData
from ddit.config.runs import AutoencoderRun, DualRun, LatentsRun, RunConfig, TextEncoderRun
from ddit.devices import compute_dtype, find_device
from ddit.fit.base import Base, prepare_base
from ddit.fit.plan import Findings, FitOptions, FitPlan, Request, Stage
from ddit.fit.sources import Named
from ddit.model.autoencoder import choose_channels, choose_downsample
from ddit.model.folders import resolve, text_folders
from ddit.model.small_text import train_tokenizer
from ddit.model.t5 import load_tokenizer
from ddit.prompts import MINI
from ddit.recipes.small import (
    SHARES,
    SMALL_SIZES,
    TRANSFORMER_SHARE,
    expected_rate,
    has_captions,
    sizes_of_vae,
    small,
)
from ddit.recipes.tuned import tuned
from ddit.train.flops import peak_flops
from ddit.train.small_data import Texts, open_parts, read_pixels

UTILISATION = 0.3
"""Of a device's peak rate, that training of a small model is expected to keep up."""
REPORT_SHARE, MOST_REPORT_SECONDS = 0.08, 1200.0
SMALL_NET_SHARE = 0.07
"""Of the whole time, that autoencoder and text encoder each may take."""
FEW_IMAGES, FEW_HELD_OUT = 1000, 100
LONGEST_ASPECT = 1.5
"""Of images of which a square has what matters."""
MOST_VIEWS, MOST_ENTRIES = 16, 200_000
PASSES_A_VIEW = 5
"""Over the data, that training is to make for each view of the images: with fewer they slow it (LOG.md)."""
VIEWS_SHARE, _VIEWS_A_SECOND = 0.05, 1000
"""Of the whole time, for making views, and how many a second are expected."""
SHORT_HOURS = 1.0
"""On a CPU, below which the number of steps counts more than the width."""
EVALUATION_SHARE, NUM_JUDGED = 0.04, 512
"""Of a run's time, for its held-out figures, and the samples of each evaluation."""
PASSES = 18
"""Passes over a sample of one evaluation."""
_TARGET_PSNR = 30.0
_NUM_SHOWN, _NUM_TEXTS = 500, 5000
_LEAST_LENGTH, _MOST_LENGTH = 12, 128
_ROOM = 8
"""Steps beyond those expected: a quicker machine is to end with its time, not with its steps."""


def make_plan(
    request: Request, trained: Sequence[Named], judged: Sequence[Named], findings: Findings
) -> tuple[FitPlan, Findings]:
    """The plan, and the findings with what it has measured of the texts.

    Raises:
        ValueError: in one line, for sizes that do not fit.
    """
    options = request.options
    device = find_device()
    flops = UTILISATION * peak_flops(device, compute_dtype("auto", device))
    sources, held_out = ([source.config for source in some] for some in (trained, judged))
    base = None
    if request.base is not None:
        base = prepare_base(request.base, _texts(sources), Path(request.out) / "base")
        _check_base(options, base)
    preset = options.preset or (base.preset if base else _choose_preset(options, findings, device))
    hours = options.hours or SMALL_SIZES[preset].hours
    findings = replace(findings, text_length=_text_length(options, sources, preset, base))
    if base is None:
        size = options.size or _choose_size(findings, SMALL_SIZES[preset].image_size)
        runs = _small_runs(request, sources, held_out, findings, preset, hours, size, flops)
    else:
        size = options.size or base.image_size
        runs = tuned(
            Path(request.out) / "runs", sources, base.start, hours, held_out=held_out, preset=preset, image_size=size,
            text_length=findings.text_length, flops=flops,
        )  # fmt: skip
    num_views = _choose_views(findings, hours, _pairs(runs))
    runs = [_fitted(run, request, findings, num_views, hours, flops) for run in runs]
    report = min(REPORT_SHARE * hours * 3600, MOST_REPORT_SECONDS)
    plan = FitPlan(
        out=request.out,
        preset=preset,
        image_size=size,
        num_views=num_views,
        hours=hours,
        report_seconds=report,
        device=_describe(device),
        flops=flops,
        seed=options.seed,
        train=tuple(duals(runs)[-1].data.i2t),
        held_out=tuple(held_out),
        runs=tuple(runs),
        stages=_stages(runs, findings, hours * 3600 - report, flops),
        base=request.base,
    )
    return replace(plan, warnings=tuple(_warnings(plan, findings))), findings


def _small_runs(
    request: Request,
    sources: Sequence[SourceConfig],
    held_out: Sequence[SourceConfig],
    findings: Findings,
    preset: str,
    hours: float,
    size: int,
    flops: float,
) -> list[RunConfig]:
    """Those of a model from nothing."""
    options = request.options
    autoencoder = _sizes_of_autoencoder(options, sources, size)
    unit = sizes_of_vae(options.vae)[1] if options.vae is not None else autoencoder["downsample"]
    patch, is_drawn = _choose_patch(size, unit, preset), any(map(has_captions, sources))
    return small(
        Path(request.out) / "runs",
        sources,
        preset,
        hours,
        held_out=held_out,
        image_size=size,
        patch_size=patch,
        stem=_choose_stem(patch) if is_drawn else (),
        text_length=findings.text_length,
        vae=options.vae,
        text=options.text,
        flops=flops,
        **autoencoder,
    )


def _check_base(options: FitOptions, base: Base) -> None:
    """Raises `ValueError` for options that the base model has settled."""
    for name in ("vae", "text"):
        if getattr(options, name) is not None:
            raise ValueError(f"--{name} and --from do not go together: the model has its own")
    unit = base.downsample * base.start.model.patch_size
    most = unit * base.start.model.pos_embed_max_size
    if options.size is not None and (options.size % unit or options.size > most):
        raise ValueError(
            f"--size must be a multiple of {unit} up to {most} for this model, got {options.size}"
        )


def duals(runs: Sequence[RunConfig]) -> list[DualRun]:
    """The transformer's runs."""
    return [run for run in runs if isinstance(run, DualRun)]


def stage_name(run: RunConfig) -> str:
    """Of a run by its folder: `s-joint` is joint."""
    return Path(run.out).name.partition("-")[2]


def _describe(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    count = torch.get_num_threads()
    return f"{count} thread{'s' * (count > 1)} of a CPU"


# --- choices ---


def _choose_preset(options: FitOptions, findings: Findings, device: torch.device) -> str:
    if device.type == "cuda":
        return "l" if findings.num_images >= 10 * FEW_IMAGES else "s"
    if options.hours is None:
        return "s" if findings.num_images >= FEW_IMAGES else "xs"
    if options.hours < SHORT_HOURS:
        return "xs"
    return "m" if options.hours >= 12 and findings.num_images >= 10 * FEW_IMAGES else "s"


def _choose_size(findings: Findings, most: int) -> int:
    """The multiple of 16 nearest the images' median side, from 32 to the preset's size."""
    sides = [
        min(source.width[1], source.height[1])
        for source in findings.sources
        if source.width and source.height
    ]
    side = sorted(sides)[len(sides) // 2] if sides else most
    return max(32, min(most, round(side / 16) * 16))


def _sizes_of_autoencoder(options: FitOptions, sources: Sequence[SourceConfig], size: int) -> dict[str, Any]:
    downsample = choose_downsample(size)
    if options.vae is not None:
        return {"downsample": downsample}
    with_images = [source for source in sources if not isinstance(source, TextData)]
    opened, _ = open_parts(with_images, with_images)
    pixels = read_pixels(opened, _NUM_SHOWN, image_size=size).float() / 127.5 - 1
    channels = choose_channels(pixels, downsample, _TARGET_PSNR)
    return {"downsample": downsample, "latent_channels": channels, "target_psnr": _TARGET_PSNR}


def _choose_patch(size: int, downsample: int, preset: str) -> int:
    """Latents a side of a token, for about as many tokens as the preset has at its own size."""
    own = SMALL_SIZES[preset]
    tokens = max(4, own.image_size // (4 * own.patch_size))  # a side
    fitting = [p for p in range(1, size // downsample + 1) if size % (p * downsample) == 0]
    return min(fitting, key=lambda p: (abs(size // (p * downsample) - tokens), p))


def _choose_stem(patch: int) -> tuple[int, ...]:
    """Widths of a stem that halves its side down to the patches; none for patches of 1, or no power of 2."""
    stages = patch.bit_length() - 1
    return tuple(64 * 2**stage for stage in range(stages + 1)) if patch == 2**stages > 1 else ()


def _texts(sources: Sequence[SourceConfig]) -> list[str]:
    """Some texts of the sources, in the words of their templates."""
    opened, _ = open_parts(sources, sources)
    return list(Texts(opened, MINI).iterate(_NUM_TEXTS))


def _text_length(options: FitOptions, sources: Sequence[SourceConfig], preset: str, base: Base | None) -> int:
    """Tokens that 99 of 100 texts need, with the room for an answer, by a tokenizer like the one to be."""
    texts = _texts(sources)
    given = base.start.folder if base is not None else options.text
    if given is not None:
        tokenizer = load_tokenizer(text_folders(resolve(given))[1])
    else:
        tokenizer = train_tokenizer(texts, SMALL_SIZES[preset].num_pieces)
    lengths = sorted(len(tokenizer.backend_tokenizer.encode(text).ids) for text in texts)
    needed = lengths[min(len(lengths) - 1, int(0.99 * len(lengths)))] + MINI.min_answer_tokens
    return min(max(-(-needed // 4) * 4, _LEAST_LENGTH), _MOST_LENGTH)


def _pairs(runs: Sequence[RunConfig]) -> float:
    """Of image and text, that the transformer's runs are expected to see."""
    return sum(run.max_steps * run.global_batch_size for run in duals(runs))


def _choose_views(findings: Findings, hours: float, pairs: float) -> int:
    """An even number that the time has room for; 1 where there is so much data that none is seen often."""
    entries = min(MOST_ENTRIES, VIEWS_SHARE * hours * 3600 * _VIEWS_A_SECOND)
    passes = pairs / max(sum(source.num_samples for source in findings.sources), 1)
    views = min(MOST_VIEWS, int(entries / max(findings.num_images, 1)), int(passes / PASSES_A_VIEW))
    return views - views % 2 if views > 1 else 1


# --- the runs ---


def _fitted(
    run: RunConfig, request: Request, findings: Findings, num_views: int, hours: float, flops: float
) -> RunConfig:
    seed = request.options.seed
    if isinstance(run, AutoencoderRun | TextEncoderRun):
        return replace(run, max_seconds=SMALL_NET_SHARE * hours * 3600, seed=seed)
    if isinstance(run, LatentsRun):
        return replace(run, num_views=num_views, mirror=not request.options.keep_sides, by_image=True)
    assert isinstance(run, DualRun)
    num_held_out = min(NUM_JUDGED, sum(source.num_held_out for source in findings.sources))
    num_held_out = num_held_out or NUM_JUDGED  # of sources named for it
    per_evaluation = num_held_out * PASSES / 3 / run.global_batch_size  # in steps
    every = max(run.max_steps // 10, round(per_evaluation / EVALUATION_SHARE), 1)
    corrupt = [source.num_corrupt / max(source.num_read, 1) for source in findings.sources]
    return replace(
        run,
        seed=run.seed + 10 * seed,
        max_steps=_ROOM * run.max_steps,
        data=replace(run.data, max_corrupt_share=min(1.0, 0.02 + 2 * max(corrupt))),
        report=replace(
            run.report,
            evaluate_every=every,
            grid_every=max(run.max_steps // 2, 4 * every),
            num_grid=8 if run.objective.i2t_fraction == 0 else 16,
            checkpoint_minutes=min(5.0, 3.0 * hours),
            num_held_out=num_held_out,
            grid_sampling=replace(run.report.grid_sampling, guidance_scale=_GUIDANCE_SCALE),
            keep_best=run.objective.i2t_fraction > 0,
        ),
    )


_GUIDANCE_SCALE = 4.0
"""Of a model for which none can be chosen, for want of classes or time (`guidance.choose_guidance`)."""
_WHAT = {
    "vae": "autoencoder of the images",
    "text": "tokenizer and text encoder",
    "image": "images from texts",
    "joint": "images from texts, and texts about images",
    "final": "both, while the learning rate falls to 0",
}


def _stages(runs: Sequence[RunConfig], findings: Findings, seconds: float, flops: float) -> tuple[Stage, ...]:
    before = (1 - TRANSFORMER_SHARE) * seconds / max(1, sum(not isinstance(run, DualRun) for run in runs))
    of_duals = seconds - before * sum(not isinstance(run, DualRun) for run in runs)
    shares = share_time(runs)
    stages = []
    for run in runs:
        name, what = stage_name(run), _WHAT.get(stage_name(run), "images as latents")
        if isinstance(run, TextEncoderRun) and run.init is not None:
            what = "new words of the text encoder"
        if isinstance(run, DualRun):
            time = shares[name] * of_duals
            steps = int(time * expected_rate(run, flops) / run.global_batch_size)
        elif isinstance(run, LatentsRun):
            time, steps = before, 0
        else:
            assert isinstance(run, AutoencoderRun | TextEncoderRun)
            time, steps = min(before, run.max_seconds or before), run.max_steps
        stages.append(Stage(name, what, steps, time))
    return tuple(stages)


def share_time(runs: Sequence[RunConfig], done: Collection[str] = ()) -> dict[str, float]:
    """The shares of the transformer's runs that are still to come in the time that is left for them."""
    names = [stage_name(run) for run in duals(runs)]
    shares = {name: SHARES[name] for name in names}
    if "image" not in names and "joint" in names:
        shares["joint"] += SHARES["image"]
    total = sum(share for name, share in shares.items() if name not in done)
    return {name: share / total for name, share in shares.items() if name not in done}


# --- warnings ---


def _warnings(plan: FitPlan, findings: Findings) -> list[str]:
    found = []
    num = findings.num_images - findings.num_held_out_images
    pairs = (
        sum(stage.steps for stage in plan.stages if stage.name in SHARES)
        * duals(plan.runs)[-1].global_batch_size
    )
    if num < FEW_IMAGES:
        found.append(
            f"{num} images to train on are few: each is seen about {pairs / max(num, 1):,.0f} times, and the model "
            "will repeat them rather than learn what they share (thousands are usual)"
            + ("" if plan.base else "; --from MODEL starts from a trained one")
        )
    if pairs < 20 * FEW_IMAGES:
        found.append(
            f"the time is short: about {pairs:,.0f} pairs of image and text can be trained on; raise --hours"
        )
    small_classes = {name: count for name, count in findings.classes.items() if count < 20}
    if small_classes:
        name, count = min(small_classes.items(), key=lambda item: item[1])
        found.append(f"{len(small_classes)} classes have less than 20 images, {name} the fewest ({count})")
    if findings.num_held_out_images < FEW_HELD_OUT:
        found.append(
            f"figures on {findings.num_held_out_images} held-out images say little: give more images, or sources with "
            "--held-out"
        )
    longest = max((max(1 / s.aspect[0], s.aspect[2]) for s in findings.sources if s.aspect), default=1.0)
    if longest > LONGEST_ASPECT:
        found.append(
            f"images are cut to squares from their middle, and the longest is {longest:.1f} times as long as wide: "
            "what is outside the square is not seen"
        )
    across = sum(source.num_across for source in findings.sources)
    if across:
        found.append(
            f"{across} held-out samples look like one that is trained on: figures on them are too good"
        )
    if findings.num_corrupt:
        found.append(f"{findings.num_corrupt} samples cannot be used, and are skipped")
    return found
