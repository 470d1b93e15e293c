"""Sample sheets: a PNG of pictures drawn by the model, each with its prompt beneath."""

from __future__ import annotations

import textwrap
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ddit import flow, prompts
from ddit.config import ReportConfig
from ddit.encoders import ImageCodec, TextCodec
from ddit.model import DualDiT
from ddit.prompts import PromptStyle

_SCALE, _COLUMNS, _CAPTION_HEIGHT = 2, 8, 40


@torch.no_grad()
def draw_pictures(
    model: DualDiT, images: ImageCodec, codec: TextCodec, texts: list[str], cfg: ReportConfig, *,
    style: PromptStyle, length: int, latent_size: int, seed: int = 0,
) -> Tensor:  # fmt: skip
    """Pixels (B, 3, H, W) in [-1, 1] drawn for `texts`, by Euler steps with guidance as the report's settings say."""
    dtype = next(model.parameters()).dtype
    prompt_ids = prompts.training_prompt(codec, texts, length, style=style)
    empty_ids = prompts.empty_prompt(codec, len(texts), length, style=style)
    conditional = codec.states(prompt_ids).to(dtype)
    both = torch.cat([codec.states(empty_ids).to(dtype), conditional])

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        states = both if len(x) == len(both) else conditional
        return model(x.to(dtype), t, states, num_drawn=len(x)).velocity

    shape = (len(texts), images.channels, latent_size, latent_size)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    latents = flow.sample_latents(
        velocity, noise, num_steps=cfg.sheet_steps, guidance_scale=cfg.sheet_guidance, shift=cfg.sheet_shift
    )
    return images.decode(latents).float()


def save_sheet(path: Path, pixels: Tensor, texts: list[str]) -> None:
    """Writes the pictures in rows of eight, enlarged, each above its text."""
    pictures = ((pixels.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    side = pictures.shape[1] * _SCALE
    rows = -(-len(texts) // _COLUMNS)
    sheet = Image.new("RGB", (_COLUMNS * (side + 4), rows * (side + _CAPTION_HEIGHT)), "white")
    draw = ImageDraw.Draw(sheet)
    for index, (picture, text) in enumerate(zip(pictures, texts, strict=True)):
        left, top = index % _COLUMNS * (side + 4), index // _COLUMNS * (side + _CAPTION_HEIGHT)
        sheet.paste(
            Image.fromarray(np.ascontiguousarray(picture)).resize((side, side), Image.Resampling.NEAREST),
            (left, top),
        )
        draw.multiline_text(
            (left + 1, top + side), "\n".join(textwrap.wrap(text, side // 6)[:3]), fill="black", spacing=1
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)
