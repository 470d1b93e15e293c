"""What shows a run's progress to the eye: a grid of generated images, and a table of texts about held-out images.

Sampling and saving are apart: all ranks of a sharded model take part in the first, and only one in the second.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ddit import prompts
from ddit.data.samples import Turn
from ddit.diffusion.flow import sample_latents
from ddit.diffusion.text_sampler import sample_text
from ddit.images import to_images
from ddit.inference.callables import ImageContext, TextStates, logits_fn, velocity_fn
from ddit.inference.image_grid import comfortable, image_grid
from ddit.model import DualDiT
from ddit.model.encoders import ImageCodec, TextCodec
from ddit.prompts import PromptStyle, TokenizedPrompt
from ddit.settings import ImageSampling, ModelSettings

_COLUMNS = 8


@torch.no_grad()
def generate_images(
    model: DualDiT,
    images: ImageCodec,
    codec: TextCodec,
    texts: Sequence[str],
    *,
    sampling: ImageSampling,
    style: PromptStyle,
    length: int,
    latent_size: int | tuple[int, int],
    seed: int = 0,
    batch_size: int = 32,
) -> Tensor:
    """Pixels (B, 3, H, W) in [-1, 1], on the CPU, of images generated for `texts`.

    Args:
        length: tokens of a prompt.
        latent_size: a side of the latents, or height and width.
        seed: of the noise, all of it.
    """
    size = (latent_size, latent_size) if isinstance(latent_size, int) else latent_size
    noise = torch.randn((len(texts), images.channels, *size), generator=torch.Generator().manual_seed(seed))
    pixels = []
    for start in range(0, len(texts), batch_size):
        part = texts[start : start + batch_size]
        states = codec.states(prompts.training_prompt(codec, part, length, style=style))
        empty = codec.states(prompts.empty_prompt(codec, len(part), length, style=style))
        velocity = velocity_fn(model, torch.cat([empty, states]))
        start_noise = noise[start : start + batch_size].to(states.device)
        pixels.append(images.decode(sample_latents(velocity, start_noise, cfg=sampling)).float().cpu())
    return torch.cat(pixels)


def save_grid(path: Path, pixels: Tensor, texts: Sequence[str]) -> None:
    """Writes images (B, 3, H, W) in rows of eight, at a comfortable size, each above its text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image_grid(to_images(pixels), texts, columns=_COLUMNS).save(path)


# --- the table ---


@dataclass(frozen=True)
class TableRow:
    """The model's text about held-out image number `image`; a caption has no question."""

    image: int
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
def sample_texts(
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
) -> list[TableRow]:
    """The model's captions and answers about images, sampled by its settings.

    Args:
        latents: (B, C, h, w), clean.
        texts: training texts (B, L); what comes before a row's first answer is its prompt.
        turns: the first turn of each text; without a question it is a caption.
        null_rows: (B,) bool, those without an image.
        numbers: of the images, by default 0, 1, ...; also the seeds of random choices.
    """
    numbers = range(len(turns)) if numbers is None else numbers
    mask = texts.answer_mask.cumsum(1) > 0  # later turns are not shown
    is_caption = [turn.question is None for turn in turns]
    found: dict[int, TableRow] = {}
    for kind, num_steps in ((True, settings.caption_steps), (False, settings.answer_steps)):
        rows = [row for row, own in enumerate(is_caption) if own == kind]
        for start in range(0, len(rows), batch_size):
            part = torch.tensor(rows[start : start + batch_size])
            index = torch.arange(len(part), device=latents.device)
            nulls = None if null_rows is None else null_rows[part].to(latents.device)
            sample = sample_text(
                logits_fn(model, TextStates(codec), ImageContext(latents[part], None, index, nulls)),
                texts.input_ids[part].to(latents.device),
                mask[part].to(latents.device),
                num_steps=num_steps,
                mask_token_id=codec.mask_token_id,
                eos_token_id=codec.eos_token_id,
                banned_ids=range(codec.vocab_size, model.config.vocab_size),
                rule=settings.text_sampling.rule,
                generators=[torch.Generator().manual_seed(numbers[row]) for row in part.tolist()],
            )
            for row, ids in zip(part.tolist(), sample.ids.cpu(), strict=True):
                question, truth = turns[row]
                found[row] = TableRow(numbers[row], question, codec.decode(ids[mask[row]]), truth)
    return [found[row] for row in sorted(found)]


def save_table(path: Path, rows: Sequence[TableRow], *, pixels: Mapping[int, Tensor] | None = None) -> None:
    """Writes `path` (Markdown) and, beside it, the same as JSON lines.

    pixels: (3, H, W) of the images by number; they become thumbnails in `images/`, written once.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    answers = [row for row in rows if row.question is not None]
    captions = [row for row in rows if row.question is None]
    lines = [f"# Texts about held-out images, step {path.stem.lstrip('0') or '0'}", ""]
    if answers:
        lines.append(f"{sum(r.is_right for r in answers)} of {len(answers)} answers are right. ")
    if captions:
        lines.append(
            f"Captions have {sum(r.shared for r in captions) / len(captions):.0%} of the truth's words."
        )
    lines += ["", "| image | question | answer | truth | right |", "|---|---|---|---|---|"]
    shown = _save_thumbnails(path.parent / "images", pixels or {})
    for r in rows:
        verdict = "yes" if r.is_right else "no" if r.question is not None else f"{r.shared:.0%}"
        image = f"![{r.image}](images/{r.image}.png)" if r.image in shown else str(r.image)
        cells = [r.question or "*caption*", r.answer, r.truth]
        lines.append("| " + " | ".join([image, *(_cell(text) for text in cells), verdict]) + " |")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    values = ({**vars(r), "right": r.is_right, "shared": round(r.shared, 4)} for r in rows)
    path.with_suffix(".jsonl").write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in values), encoding="utf-8"
    )


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _save_thumbnails(folder: Path, pixels: Mapping[int, Tensor]) -> set[int]:
    for number, image in pixels.items():
        folder.mkdir(exist_ok=True)
        if not (folder / f"{number}.png").exists():
            comfortable(to_images(image[None])[0]).save(folder / f"{number}.png")
    return set(pixels)
