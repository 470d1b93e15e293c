"""What the eye judges a run by: a sheet of pictures that the model draws, a table of texts that it reads off others.

Making and writing are apart, since all ranks of a sharded model must take part in the first and only one in the second.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ddit import prompts
from ddit.config.runs import ReportConfig
from ddit.data.samples import Turn
from ddit.diffusion import flow
from ddit.diffusion.masked import LogitsFn, sample_text
from ddit.images import to_images
from ddit.inference.image_grid import comfortable, image_grid
from ddit.model import DualDiT
from ddit.model.encoders import ImageCodec, TextCodec
from ddit.settings import ModelSettings
from ddit.prompts import PromptStyle, TokenizedPrompt

_COLUMNS = 8


@torch.no_grad()
def draw_images(
    model: DualDiT, images: ImageCodec, codec: TextCodec, texts: Sequence[str], cfg: ReportConfig, *,
    style: PromptStyle, length: int, latent_size: int | tuple[int, int], seed: int = 0, batch_size: int = 32,
) -> Tensor:  # fmt: skip
    """Pixels (B, 3, H, W) in [-1, 1], on the CPU, drawn for `texts` by Euler steps with guidance as the report's
    settings say.

    latent_size: a side of the latents, or height and width. The noise depends on `seed` alone.
    """
    size = (latent_size, latent_size) if isinstance(latent_size, int) else latent_size
    noise = torch.randn((len(texts), images.channels, *size), generator=torch.Generator().manual_seed(seed))
    drawn = []
    for start in range(0, len(texts), batch_size):
        part = texts[start : start + batch_size]
        states = codec.states(prompts.training_prompt(codec, part, length, style=style))
        empty = codec.states(prompts.empty_prompt(codec, len(part), length, style=style))
        latents = _draw(model, torch.cat([empty, states]), noise[start : start + batch_size], cfg)
        drawn.append(images.decode(latents).float().cpu())
    return torch.cat(drawn)


def _draw(model: DualDiT, both: Tensor, noise: Tensor, cfg: ReportConfig) -> Tensor:
    """Latents of `noise` (B, C, h, w), given states of the empty and then of the real prompts (2 B, L, D)."""
    dtype = next(model.parameters()).dtype
    both = both.to(dtype)

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        states = both if len(x) == len(both) else both[len(both) // 2 :]
        drawn = model(x.to(dtype), t, states, num_t2i=len(x)).velocity
        assert drawn is not None
        return drawn

    return flow.sample_latents(velocity, noise.to(both.device), cfg=cfg.grid_sampling)


def save_sheet(path: Path, pixels: Tensor, texts: Sequence[str]) -> None:
    """Writes the pictures (B, 3, H, W) in rows of eight, at a comfortable size, each above its text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image_grid(to_images(pixels), texts, columns=_COLUMNS).save(path)


def draw_sheet(
    path: Path, model: DualDiT, images: ImageCodec, codec: TextCodec, texts: Sequence[str], cfg: ReportConfig, *,
    style: PromptStyle, length: int, latent_size: int | tuple[int, int], seed: int = 0,
) -> None:  # fmt: skip
    """`draw_images`, then `save_sheet`."""
    pixels = draw_images(
        model, images, codec, texts, cfg, style=style, length=length, latent_size=latent_size, seed=seed
    )
    save_sheet(path, pixels, texts)


# --- the table ---


@dataclass(frozen=True)
class Reading:
    """A text that the model read off held-out picture number `picture`; a caption has no question."""

    picture: int
    question: str | None
    answer: str
    truth: str

    @property
    def is_right(self) -> bool:
        """The same words, whatever their case and punctuation."""
        return _words(self.answer) == _words(self.truth)

    @property
    def shared(self) -> float:
        """Share of the truth's words that the answer has, each counted once: a measure for captions."""
        wanted = set(_words(self.truth))
        return len(wanted & set(_words(self.answer))) / max(len(wanted), 1)


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


@torch.no_grad()
def read_images(
    model: DualDiT,
    codec: TextCodec,
    latents: Tensor,
    texts: TokenizedPrompt,
    turns: Sequence[Turn],
    settings: ModelSettings,
    *,
    null_rows: Tensor | None = None,
    numbers: Sequence[int] | None = None,
    batch_size: int = 32,
) -> list[Reading]:
    """What the model answers to the first turn of each text, written as the model's settings say.

    Args:
        latents: (B, C, h, w), clean.
        texts: training texts (B, L); what comes before a row's first answer is its prompt.
        turns: the first turn of each.
        null_rows: (B,) bool, those without a picture.
        numbers: of the pictures, by default 0, 1, ...; also the seeds of their draws, if any are random.
    """
    numbers = range(len(turns)) if numbers is None else numbers
    prompt_ids, mask = _first_prompts(texts)
    is_caption = [turn.question is None for turn in turns]
    readings: dict[int, Reading] = {}
    for kind, num_steps in ((True, settings.caption_steps), (False, settings.answer_steps)):
        rows = [row for row, found in enumerate(is_caption) if found == kind]
        for start in range(0, len(rows), batch_size):
            part = torch.tensor(rows[start : start + batch_size])
            sample = sample_text(
                _logits_fn(model, codec, latents[part], None if null_rows is None else null_rows[part]),
                prompt_ids[part].to(latents.device),
                mask[part].to(latents.device),
                num_steps=num_steps,
                mask_token_id=codec.mask_token_id,
                eos_token_id=codec.eos_token_id,
                banned_ids=range(codec.vocab_size, model.config.vocab_size),
                rule=settings.writing,
                generators=[torch.Generator().manual_seed(numbers[row]) for row in part.tolist()],
            )
            for row, ids in zip(part.tolist(), sample.ids.cpu(), strict=True):
                turn = turns[row]
                readings[row] = Reading(
                    numbers[row], turn.question, codec.decode(ids[mask[row]]), turn.answer
                )
    return [readings[row] for row in sorted(readings)]


def _first_prompts(texts: TokenizedPrompt) -> tuple[Tensor, Tensor]:
    """Ids, and a mask from the first answer position of each row on: later turns are not shown."""
    mask = texts.answer_mask.cumsum(1) > 0
    return texts.input_ids, mask


def _logits_fn(model: DualDiT, codec: TextCodec, latents: Tensor, null_rows: Tensor | None) -> LogitsFn:
    dtype = next(model.parameters()).dtype

    def logits(noisy_ids: Tensor, is_masked: Tensor, rows: Tensor) -> Tensor:
        states = codec.states(noisy_ids).to(dtype)
        t = torch.zeros(len(rows), device=latents.device)
        nulls = None if null_rows is None else null_rows.to(latents.device)[rows]
        read = model(
            latents[rows].to(dtype), t, states, num_t2i=0, logit_mask=is_masked, null_rows=nulls
        ).logits
        assert read is not None
        return read

    return logits


def save_table(
    path: Path, readings: Sequence[Reading], *, pixels: Mapping[int, Tensor] | None = None
) -> None:
    """Writes `path` (Markdown) and, beside it, the same as JSON lines.

    pixels: (3, H, W) of the pictures by number; they become thumbnails in `pictures/`, written once.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    asked = [reading for reading in readings if reading.question is not None]
    captions = [reading for reading in readings if reading.question is None]
    lines = [f"# Texts read off held-out pictures, step {path.stem.lstrip('0') or '0'}", ""]
    if asked:
        lines.append(f"{sum(r.is_right for r in asked)} of {len(asked)} answers are right. ")
    if captions:
        lines.append(
            f"Captions have {sum(r.shared for r in captions) / len(captions):.0%} of the truth's words."
        )
    lines += ["", "| picture | question | answer | truth | right |", "|---|---|---|---|---|"]
    shown = _save_thumbnails(path.parent / "pictures", pixels or {})
    for r in readings:
        verdict = "yes" if r.is_right else "no" if r.question is not None else f"{r.shared:.0%}"
        picture = f"![{r.picture}](pictures/{r.picture}.png)" if r.picture in shown else str(r.picture)
        cells = [r.question or "*caption*", r.answer, r.truth]
        lines.append("| " + " | ".join([picture, *(_cell(text) for text in cells), verdict]) + " |")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    rows = ({**vars(r), "right": r.is_right, "shared": round(r.shared, 4)} for r in readings)
    path.with_suffix(".jsonl").write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
    )


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _save_thumbnails(folder: Path, pixels: Mapping[int, Tensor]) -> set[int]:
    for number, picture in pixels.items():
        folder.mkdir(exist_ok=True)
        if not (folder / f"{number}.png").exists():
            comfortable(to_images(picture[None])[0]).save(folder / f"{number}.png")
    return set(pixels)


def write_table(
    path: Path, model: DualDiT, codec: TextCodec, latents: Tensor, texts: TokenizedPrompt, turns: Sequence[Turn],
    settings: ModelSettings, *, pixels: Mapping[int, Tensor] | None = None,
) -> list[Reading]:  # fmt: skip
    """`read_images`, then `save_table`."""
    readings = read_images(model, codec, latents, texts, turns, settings)
    save_table(path, readings, pixels=pixels)
    return readings
