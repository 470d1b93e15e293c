"""Recipe stage: the small patch autoencoder, from PCA to a few minutes of training on rendered scenes."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor

from ddit.config.data import WorldData
from ddit.config.runs import AutoencoderRun, OptimizerConfig, save_config
from ddit.data.sampler import batch_indices
from ddit.data.sources import WorldSource
from ddit.model.autoencoder import PatchAutoencoder, autoencoder_loss
from ddit.model.encoders import ImageCodec
from ddit.train.log import RunLog
from ddit.train.optim import lr_factor


def psnr(pixels: Tensor, restored: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of pictures in [-1, 1], over their mean squared error."""
    return 10 * math.log10(4 / (pixels - restored).square().mean().item())


def train_autoencoder(cfg: AutoencoderRun) -> Path:
    """Trains from the linear solution, sets the latents' normalisation, and leaves `export/vae`."""
    out = Path(cfg.out)
    save_config(cfg, out)
    pixels = WorldSource(WorldData(cfg.world)).pixels(0, cfg.num_scenes)
    held_out = WorldSource(WorldData(cfg.world, split="val")).pixels(0, cfg.num_held_out)
    torch.manual_seed(cfg.seed)  # the module's own initialisation takes no generator
    model = PatchAutoencoder()
    model.init_from_pca(pixels[: cfg.num_pca_scenes])
    optimizer = torch.optim.AdamW(model.parameters(), lr=cfg.lr, weight_decay=0.0)
    schedule = OptimizerConfig(warmup_steps=cfg.warmup_steps, schedule="cosine")
    with RunLog(out, cfg.max_steps, unit="step") as log:
        log.event(step=0, psnr=_held_out_psnr(model, held_out))
        for step in range(cfg.max_steps):
            optimizer.param_groups[0]["lr"] = cfg.lr * lr_factor(step, cfg.max_steps, schedule)
            indices = batch_indices(cfg.num_scenes, cfg.batch_size, seed=cfg.seed, step=step)
            generator = torch.Generator().manual_seed(step)
            loss = autoencoder_loss(model, pixels[indices], generator=generator).mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            log.advance()
            if (step + 1) % 200 == 0 or step + 1 == cfg.max_steps:
                log.event(step=step + 1, loss=loss.item(), psnr=_held_out_psnr(model, held_out))
    model.fit_normalization(pixels[:2000])
    codec = ImageCodec(model)
    std = codec.encode(held_out).std(dim=(0, 2, 3))
    print(
        f"held-out PSNR {_held_out_psnr(model, held_out):.2f} dB, latent std {[round(s, 3) for s in std.tolist()]}"
    )
    codec.save_pretrained(out / "export" / "vae")
    return out


@torch.no_grad()
def _held_out_psnr(model: PatchAutoencoder, pixels: Tensor) -> float:
    return psnr(pixels, model.decode(model.encode(pixels).latent_dist.mode()).sample.clamp(-1, 1))
