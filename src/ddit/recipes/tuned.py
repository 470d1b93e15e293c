"""A small model that is there already, tuned on other sources: its new words, latents, both directions at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

from ddit.config.data import SourceConfig, TextData
from ddit.config.runs import DualRun, RunConfig, TextEncoderRun
from ddit.model.config import DualDiTConfig
from ddit.recipes.small import (
    SHARES,
    SMALL_SIZES,
    TRANSFORMER_SHARE,
    Chain,
    expected_rate,
    final_run,
    has_captions,
    image_run,
    joint_run,
    latents_run,
)

LR, MUON_LR = 5e-4, 0.01
WIDEST_FOR_MUON = 1024
"""A wider model is a published one, and is tuned with AdamW at the published rate."""


class Start(NamedTuple):
    """The model that is tuned: its folder, sizes, templates and, if it got new words, the number of its old tokens."""

    folder: str
    model: DualDiTConfig
    prompts: Literal["published", "mini"]
    num_old_tokens: int | None = None


def tuned(
    root: str | Path,
    sources: Sequence[SourceConfig],
    start: Start,
    hours: float,
    *,
    held_out: Sequence[SourceConfig] = (),
    preset: str = "s",
    image_size: int,
    text_length: int,
    flops: float | None = None,
) -> list[RunConfig]:
    """The runs that tune `start` on `sources`; the options are those of `small`, `preset` gives batch size and rate."""
    root = Path(root)
    numbers = SMALL_SIZES[preset]
    with_images = [source for source in sources if not isinstance(source, TextData)]
    folders = [f"latents_{number}" for number in range(len(with_images))]
    cached = [
        replace(source, latents=str(root / f"{preset}-{name}"))
        for source, name in zip(with_images, folders, strict=True)
    ]
    chain = Chain(
        root=root,
        name=preset,
        model=start.model,
        t2i=tuple(source for source in cached if has_captions(source)),
        i2t=(*cached, *(source for source in sources if isinstance(source, TextData))),
        held_out=tuple(held_out),
        image_size=image_size,
        text_length=text_length,
        batch_size=numbers.batch_size,
        vae=start.folder,
        text=start.folder if start.num_old_tokens is None else f"{root / preset}-text/export",
    )
    runs: list[RunConfig] = []
    if start.num_old_tokens is not None:
        runs.append(_words_run(chain, sources, start.folder, start.num_old_tokens, hours))
    runs += [latents_run(chain, s, name=name) for s, name in zip(with_images, folders, strict=True)]
    joint = joint_run(chain, image_run(chain, max_steps=1), name="joint", max_steps=1)
    optimizer = replace(joint.optimizer, lr=LR, muon_lr=MUON_LR)
    if start.model.hidden_size > WIDEST_FOR_MUON:
        optimizer = replace(optimizer, name="adamw", lr=3e-5)
    fraction = joint.objective.i2t_fraction if chain.t2i else 1.0
    joint = replace(
        joint,
        init=start.folder,
        prompts=start.prompts,
        optimizer=optimizer,
        objective=replace(joint.objective, i2t_fraction=fraction),
        compute_dtype="auto",
    )
    final = final_run(chain, joint, name="final", max_steps=1, seed=joint.seed + 1)
    both = {"joint": joint, "final": final}
    total = sum(SHARES[name] for name in both)
    return [
        *runs,
        *(_fitted(run, hours * SHARES[name] / total, flops or numbers.flops) for name, run in both.items()),
    ]


def _words_run(
    chain: Chain, sources: Sequence[SourceConfig], folder: str, num_old: int, hours: float
) -> TextEncoderRun:
    """The embeddings of the new words, and nothing else of the text encoder."""
    return TextEncoderRun(
        out=chain.out("text"),
        sources=tuple(sources),
        held_out=chain.held_out,
        init=folder,
        first_trained=num_old,
        text_length=chain.text_length,
        max_steps=max(200, min(2000, int(1000 * hours))),
    )


def _fitted(run: DualRun, hours: float, flops: float) -> DualRun:
    seconds = hours * 3600 * TRANSFORMER_SHARE
    steps = max(20, int(seconds * expected_rate(run, flops) / run.global_batch_size))
    warmup = min(run.optimizer.warmup_steps, steps // 10)
    return replace(run, max_steps=steps, optimizer=replace(run.optimizer, warmup_steps=warmup))
