"""Training of the small networks: patch autoencoder, tiny text encoder, the world's teacher of the alignment loss."""

import math
import sys
import time
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import T5EncoderModel

from ddit.config.runs import (
    CHECK_FILE,
    TEACHER_FILE,
    AutoencoderRun,
    OptimizerConfig,
    TeacherRun,
    TextEncoderRun,
    save_config,
)
from ddit.data.sampler import batch_indices
from ddit.devices import compute_dtype
from ddit.model.autoencoder import PatchAutoencoder, autoencoder_loss, choose_channels
from ddit.model.encoders import ImageCodec, TextCodec
from ddit.model.folders import resolve
from ddit.model.loading import load_text_codec
from ddit.model.small_text import build_tokenizer, tiny_t5, train_tokenizer
from ddit.prompts import MINI
from ddit.train.log import RunLog
from ddit.train.optim import lr_factor
from ddit.train.small_data import Texts, open_parts, read_pixels
from ddit.world import list_vocabulary
from ddit.world.train_detector import train_detector, train_wide_detector
from ddit.world.wide.train_check import collect_proposals, train_check

BIAS_LR_FACTOR = 10.0
"""Position biases grow from near zero to several units; at the other weights' rate that takes most of the training."""


def _steps(cfg: AutoencoderRun | TextEncoderRun) -> Iterator[tuple[int, float, bool]]:
    """The steps of a run until its end: number, factor on the learning rate (a cosine), and whether it is the last."""
    schedule = OptimizerConfig(warmup_steps=cfg.warmup_steps, schedule="cosine")
    start = time.monotonic()
    for step in range(cfg.max_steps):
        share = 0.0 if cfg.max_seconds is None else (time.monotonic() - start) / cfg.max_seconds
        is_last = step + 1 == cfg.max_steps or share >= 1
        yield step, lr_factor(step, cfg.max_steps, schedule, time_share=min(share, 1.0)), is_last
        if is_last:
            return


# --- the autoencoder ---


def psnr(pixels: Tensor, restored: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of images in [-1, 1], over their mean squared error."""
    return 10 * math.log10(4 / (pixels - restored).square().mean().item())


_PSNR_FALL = 1.0
"""dB below the best from which a run goes back to it: at too high a rate the non-linear half may die in a few steps."""


def train_autoencoder(cfg: AutoencoderRun) -> Path:
    """Trains from the linear solution, sets the latents' normalisation, and leaves `export/vae`.

    The weights are those of the best held-out check. A run that falls far below its best goes back to it, at half the
    rate.
    """
    out = Path(cfg.out)
    save_config(cfg, out)
    sources, judged = open_parts(cfg.sources, cfg.held_out)
    pixels = read_pixels(
        sources, cfg.num_images, image_size=cfg.image_size, crop_size=cfg.crop_size, seed=cfg.seed
    )
    held_out = _to_floats(read_pixels(judged, cfg.num_held_out, image_size=cfg.image_size))
    torch.manual_seed(cfg.seed)  # the module's own initialisation takes no generator
    model = PatchAutoencoder(cfg.latent_channels, downsample=cfg.downsample)
    some = _to_floats(pixels[: cfg.num_pca_images])
    model.init_from_pca(some)
    optimizer, lr = _adam(model), cfg.lr
    best = reached = _held_out_psnr(model, held_out)
    kept = deepcopy(model.state_dict())
    with RunLog(out, cfg.max_steps, unit="step") as log:
        log.event(step=0, psnr=reached)
        for step, factor, is_last in _steps(cfg):
            optimizer.param_groups[0]["lr"] = lr * factor
            indices = batch_indices(len(pixels), cfg.batch_size, seed=cfg.seed, step=step)
            generator = torch.Generator().manual_seed(step)
            loss = autoencoder_loss(model, _to_floats(pixels[indices]), generator=generator).mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            log.advance()
            if (step + 1) % 200 == 0 or is_last:
                reached = _held_out_psnr(model, held_out)
                log.event(step=step + 1, loss=loss.item(), psnr=reached)
                if reached > best:
                    best, kept = reached, deepcopy(model.state_dict())
                elif not reached >= best - _PSNR_FALL:  # or NaN
                    model.load_state_dict(kept)
                    optimizer, lr = _adam(model), lr / 2
                    log.event(step=step + 1, back_to_psnr=best)
    model.load_state_dict(kept)
    model.fit_normalization(_to_floats(pixels[:2000]))
    codec = ImageCodec(model)
    std = codec.encode(held_out).std(dim=(0, 2, 3))
    print(f"held-out PSNR {best:.2f} dB, latent std {[round(s, 3) for s in std.tolist()]}", file=sys.stderr)
    if cfg.target_psnr is not None:
        print(_beside_target(best, cfg.target_psnr, some, cfg), file=sys.stderr)
    codec.save_pretrained(out / "export" / "vae")
    return out


def _adam(model: PatchAutoencoder) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), weight_decay=0.0)


def _to_floats(pixels: Tensor) -> Tensor:
    """uint8 (B, 3, H, W) to float32 in [-1, 1]."""
    return pixels.float() / 127.5 - 1


def _beside_target(reached: float, target: float, pixels: Tensor, cfg: AutoencoderRun) -> str:
    """What a run says of its target; where it missed it, how many channels would come to it."""
    if reached >= target:
        return f"the target of {target:g} dB is met with {cfg.latent_channels} channels"
    needed = choose_channels(pixels, cfg.downsample, target)
    if needed <= cfg.latent_channels:
        return f"the target of {target:g} dB is missed: train longer (max_steps)"
    return (
        f"the target of {target:g} dB is missed: even a linear code comes to it with "
        f"latent_channels={needed} at downsample={cfg.downsample}"
    )


@torch.no_grad()
def _held_out_psnr(model: PatchAutoencoder, pixels: Tensor) -> float:
    return psnr(pixels, model.decode(model.encode(pixels).latent_dist.mode()).sample.clamp(-1, 1))


# --- the text encoder ---


@torch.no_grad()
def _prepare(encoder: T5EncoderModel) -> None:
    """Initialises a tiny T5 so that it learns in minutes: small embeddings, and heads that attend to single neighbours.

    T5 draws embeddings with unit variance, beside which both its layers and Adam's steps are small, and position biases
    near zero, so that at first a masked token cannot tell its neighbours from the rest.
    """
    encoder.get_input_embeddings().weight.mul_(encoder.config.d_model**-0.5)
    name = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias"
    bias = encoder.get_submodule(name).get_parameter("weight")  # (buckets, heads)
    after = encoder.config.relative_attention_num_buckets // 2  # offset -k has bucket k, +k has after + k
    for head, bucket in enumerate((1, after + 1, 2, after + 2, 3, after + 3)[: bias.shape[1] - 1]):
        bias[bucket, head] += 4.0


def _train_rows(encoder: T5EncoderModel, first: int) -> None:
    """Lets the embeddings of the tokens from `first` on be trained, and no other weight."""
    weight = encoder.get_input_embeddings().weight.requires_grad_(True)
    is_new = (torch.arange(len(weight)) >= first)[:, None]
    weight.register_hook(lambda gradient: gradient * is_new)


def masked_modelling_loss(
    codec: TextCodec,
    ids: Tensor,
    *,
    padding_weight: float,
    visible_weight: float,
    generator: torch.Generator,
) -> Tensor:
    """Cross-entropy at masked positions, each text masked at its own rate in (0, 1]; padding counts little.

    To it comes `visible_weight` times that at visible positions: a word's own identity would else be lost from its
    state, since it explains nothing about its neighbours (any class may have any colour). The logits are
    tied to the shared embedding, and there is no other head.
    """
    rate = 1 - torch.rand(len(ids), 1, generator=generator)
    is_masked = torch.rand(ids.shape, generator=generator) < rate
    states = codec.encoder(input_ids=torch.where(is_masked, codec.mask_token_id, ids)).last_hidden_state
    logits = states @ codec.encoder.get_input_embeddings().weight.T  # (B, L, V)
    nll = F.cross_entropy(logits.transpose(1, 2), ids, reduction="none")  # (B, L)
    weight = torch.where(ids == codec.eos_token_id, padding_weight, 1.0)

    def mean(where: Tensor) -> Tensor:
        return (weight * nll)[where].sum() / weight[where].sum().clamp(min=1.0)

    return mean(is_masked) + visible_weight * mean(~is_masked)


def _make_codec(cfg: TextEncoderRun, texts: Texts) -> TextCodec:
    """The tokenizer, whole words of the world or pieces learnt from the texts, and an encoder to be trained."""
    if cfg.init is not None:
        return load_text_codec(resolve(cfg.init))
    if cfg.num_pieces is None:
        tokenizer = build_tokenizer([*list_vocabulary(), *MINI.words])
    else:
        tokenizer = train_tokenizer(texts.iterate(cfg.num_tokenizer_texts), cfg.num_pieces)
    num_rows = cfg.num_pieces or len(tokenizer)  # few texts may have fewer pieces
    sizes = {"num_layers": cfg.depth, "num_heads": cfg.num_heads, "d_ff": cfg.mlp_size}
    torch.manual_seed(cfg.seed)  # the encoder's own initialisation takes no generator
    return TextCodec(tokenizer, tiny_t5(num_rows, d_model=cfg.hidden_size, **sizes))


def train_text_encoder(cfg: TextEncoderRun) -> Path:
    """Builds the tokenizer, trains the encoder and leaves `export/tokenizer` and `export/text_encoder`."""
    out = Path(cfg.out)
    save_config(cfg, out)
    texts, held_out = (Texts(part, MINI) for part in open_parts(cfg.sources, cfg.held_out))
    codec = _make_codec(cfg, texts)
    codec.encoder.train().requires_grad_(cfg.init is None)
    codec.encoder.set_attn_implementation("eager")  # a CPU's fused attention has a slow backward pass
    if cfg.init is None:
        _prepare(codec.encoder)
    else:
        _train_rows(codec.encoder, cfg.first_trained)
    held_out_ids = held_out.batch(codec, cfg.text_length, seed=1, step=0, size=cfg.num_held_out)
    trained = {name: p for name, p in codec.encoder.named_parameters() if p.requires_grad}
    parameters = list(trained.values())
    biases = [p for name, p in trained.items() if "relative_attention_bias" in name]
    others = [p for name, p in trained.items() if "relative_attention_bias" not in name]
    optimizer = torch.optim.AdamW(
        [{"params": others}, {"params": biases}], weight_decay=0.0, betas=(0.9, 0.98)
    )
    dtype = compute_dtype(cfg.compute_dtype, codec.device)
    with RunLog(out, cfg.max_steps, unit="step") as log:
        for step, factor, is_last in _steps(cfg):
            lr = cfg.lr * factor
            optimizer.param_groups[0]["lr"], optimizer.param_groups[1]["lr"] = lr, lr * BIAS_LR_FACTOR
            ids = texts.batch(codec, cfg.text_length, seed=cfg.seed, step=step, size=cfg.batch_size)
            generator = torch.Generator().manual_seed(step)
            with torch.autocast("cpu", dtype, enabled=dtype == torch.bfloat16):
                loss = masked_modelling_loss(
                    codec,
                    ids,
                    padding_weight=cfg.padding_weight,
                    visible_weight=cfg.visible_weight,
                    generator=generator,
                )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            log.advance()
            if (step + 1) % 100 == 0 or is_last:
                with torch.no_grad():
                    generator = torch.Generator().manual_seed(0)
                    held = masked_modelling_loss(
                        codec,
                        held_out_ids,
                        padding_weight=cfg.padding_weight,
                        visible_weight=0.0,
                        generator=generator,
                    )
                log.event(step=step + 1, loss=loss.item(), held_out=held.item())
    codec.save_pretrained(out / "export" / "tokenizer", out / "export" / "text_encoder")
    return out


# --- the teacher ---


def train_teacher(cfg: TeacherRun) -> Path:
    """Trains a small net on the world's truth and leaves `export/teacher.safetensors`; a teacher sees no held-out pair.

    A judge (`cfg.decoys`) sees them all; the prompts of a reward name none.

    With `cfg.check_steps` there is also `export/check.safetensors`.

    It has the detector's architecture at another width, and its own seed, data and weights.
    """
    out = Path(cfg.out)
    save_config(cfg, out)
    if cfg.decoys:
        net = train_wide_detector(seed=cfg.seed, width=cfg.width, num_steps=cfg.max_steps)
    else:
        net = train_detector(
            cfg.world, seed=cfg.seed, width=cfg.width, num_steps=cfg.max_steps, split="train"
        )
    net.save(out / "export" / TEACHER_FILE)
    if cfg.check_steps:
        proposals = collect_proposals(net, cfg.check_images, seed=cfg.seed)
        train_check(proposals, seed=cfg.seed, num_steps=cfg.check_steps).save(out / "export" / CHECK_FILE)
    return out
