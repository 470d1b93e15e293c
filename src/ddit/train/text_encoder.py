"""Recipe stage: masked modelling of the tiny T5 encoder, with the mask token and in the model's own text formats."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import T5EncoderModel

from ddit import prompts
from ddit.config.data import WorldData
from ddit.config.runs import OptimizerConfig, TextEncoderRun, save_config
from ddit.data.sampler import sample_rng
from ddit.data.sources import WorldSource
from ddit.model.encoders import TextCodec, build_tokenizer, tiny_t5
from ddit.prompts import MINI
from ddit.train.log import RunLog
from ddit.train.optim import lr_factor
from ddit.world import list_vocabulary

BIAS_LR_FACTOR = 10.0
"""Position biases grow from near zero to several units; at the other weights' rate that takes most of the training."""


@torch.no_grad()
def _prepare(encoder: T5EncoderModel) -> None:
    """A start from which a tiny T5 learns in minutes: small embeddings, and heads that look at single neighbours.

    T5 draws embeddings with unit variance, beside which both its layers and Adam's steps are small, and position biases
    near zero, so that at first a masked token cannot tell its neighbours from the rest.
    """
    encoder.get_input_embeddings().weight.mul_(encoder.config.d_model**-0.5)
    name = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias"
    bias = encoder.get_submodule(name).get_parameter("weight")  # (buckets, heads)
    after = encoder.config.relative_attention_num_buckets // 2  # offset -k has bucket k, +k has after + k
    for head, bucket in enumerate((1, after + 1, 2, after + 2, 3, after + 3)[: bias.shape[1] - 1]):
        bias[bucket, head] += 4.0


def text_batch(
    codec: TextCodec, source: WorldSource, length: int, *, seed: int, step: int, size: int
) -> Tensor:
    """Ids (size, length): in turn a prompt to draw, a caption to read and a question with its answer."""
    rngs = [sample_rng(seed, step, position) for position in range(size)]
    drawn = [source.caption(rng.randrange(2**31), rng) for rng in rngs[::3]]
    turns = [source.turn(rng.randrange(2**31), rng, 0.0) for rng in rngs[1::3]]
    turns += [source.turn(rng.randrange(2**31), rng, 1.0) for rng in rngs[2::3]]
    prompt_ids = prompts.training_prompt(codec, drawn, length, style=MINI)
    read = prompts.training_conversation(codec, [[turn] for turn in turns], length, style=MINI)
    return torch.cat([prompt_ids, read.input_ids])


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


def train_text_encoder(cfg: TextEncoderRun) -> Path:
    """Builds the tokenizer, trains the encoder and leaves `export/tokenizer` and `export/text_encoder`."""
    out = Path(cfg.out)
    save_config(cfg, out)
    tokenizer = build_tokenizer([*list_vocabulary(), *MINI.words])
    torch.manual_seed(cfg.seed)  # the encoder's own initialisation takes no generator
    codec = TextCodec(tokenizer, tiny_t5(len(tokenizer)))
    codec.encoder.train().requires_grad_(True)
    _prepare(codec.encoder)
    source, held_out = (WorldSource(WorldData(cfg.world, split=split)) for split in ("train", "val"))
    held_out_ids = text_batch(codec, held_out, cfg.text_length, seed=1, step=0, size=cfg.num_held_out)
    parameters = list(codec.encoder.parameters())
    biases = [p for name, p in codec.encoder.named_parameters() if "relative_attention_bias" in name]
    others = [p for name, p in codec.encoder.named_parameters() if "relative_attention_bias" not in name]
    optimizer = torch.optim.AdamW(
        [{"params": others}, {"params": biases}], weight_decay=0.0, betas=(0.9, 0.98)
    )
    schedule = OptimizerConfig(warmup_steps=cfg.warmup_steps, schedule="cosine")
    with RunLog(out, cfg.max_steps, unit="step") as log:
        for step in range(cfg.max_steps):
            lr = cfg.lr * lr_factor(step, cfg.max_steps, schedule)
            optimizer.param_groups[0]["lr"], optimizer.param_groups[1]["lr"] = lr, lr * BIAS_LR_FACTOR
            ids = text_batch(codec, source, cfg.text_length, seed=cfg.seed, step=step, size=cfg.batch_size)
            generator = torch.Generator().manual_seed(step)
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
            if (step + 1) % 100 == 0 or step + 1 == cfg.max_steps:
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
