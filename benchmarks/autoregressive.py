"""Detailed descriptions by blocks beside an autoregressive decoder that was trained on the same pairs.

    python -m benchmarks.autoregressive BLOCKS --hours 1 [--plain PLAIN] [--without-t5 EMBEDDINGS]

BLOCKS is the folder of a model that writes in blocks, PLAIN the one that it was converted from, EMBEDDINGS one whose
text stream is fed embeddings. The decoder, transformers' Llama, has the transformer's width, depth, vocabulary and
latents, and is trained here for so many hours on the same world's detailed descriptions, in the same rows of request
and answer; it is kept in OUT and not trained again. All describe the same scenes, asked in the same words, in turns in
one run, and the exact scorer judges them. Writes autoregressive.md.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.long_text import score_all
from benchmarks.sampling.measure import Arm, Clock, Result, measure
from ddit.config.data import WideData
from ddit.data.sources.wide import WideSource
from ddit.devices import compute_dtype
from ddit.eval.report import code_version
from ddit.eval.wide_world import WORDINGS, Asking, WideSplit, make_requests
from ddit.images import fit_image, to_tensor
from ddit.pipeline import Pipeline
from ddit.prompts import caption_prompt, training_question
from ddit.world.wide import WIDE_PRESETS, WideConfig

HERE = Path(__file__).parent
HASTE = 3.0
"""Entropy that a pass may write at once, in nats, of the arm that is about as right as a token a step."""


class Pairs(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """Images (3, H, W) in uint8, and requests with their descriptions as ids and answer mask: a pair an index."""

    def __init__(self, pipeline: Pipeline, world: WideConfig, length: int) -> None:
        descriptions = WideData(
            world,
            question_fraction=0.0,
            detailed_fraction=1.0,
            plain_descriptions=True,
            conversation_fraction=0.0,
            small_talk_fraction=0.0,
        )
        self.codec, self.style = pipeline.text_codec.without_encoder(), pipeline.style
        self.source, self.length, self.side = WideSource(descriptions), length, pipeline.settings.image_size

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        sample = self.source.sample(index, random.Random(index), i2t=True)
        turn = sample.turns[0]
        assert turn.question is not None
        assert isinstance(sample.image, Image.Image)
        text = training_question(self.codec, [turn.question], [turn.answer], self.length, style=self.style)
        image = fit_image(sample.image, self.side, self.side)
        return to_tensor([image])[0], text.input_ids[0], text.answer_mask[0]


class Decoder(nn.Module):
    """A decoder of the transformer's width and depth: the image's patches of latents, the request, the description.

    Its layers have as many weights as one stream: the gated feed-forward is of 8/3 of the width, the plain one of 4.
    """

    def __init__(self, pipeline: Pipeline, length: int) -> None:
        super().__init__()
        self.ours, self.length, config = pipeline, length, pipeline.transformer.config
        width = config.hidden_size
        num_image = (config.sample_size // config.patch_size) ** 2
        self.model: Any = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=config.vocab_size, hidden_size=width, num_hidden_layers=config.depth,
                num_attention_heads=config.num_heads, intermediate_size=round(width * 8 / 3 / 64) * 64,
                max_position_embeddings=num_image + 2 * length, pad_token_id=pipeline.text_codec.eos_token_id,
                bos_token_id=None, eos_token_id=pipeline.text_codec.eos_token_id,
            )
        )  # fmt: skip
        self.embed_image = nn.Linear(config.in_channels * config.patch_size**2, width)

    def embedded(self, pixels: Tensor, ids: Tensor) -> Tensor:
        """(B, N + L, D), of images (B, 3, H, W) in [-1, 1] and the ids that are given."""
        latents = self.ours.image_codec.encode(pixels)
        patches = F.pixel_unshuffle(latents, self.ours.transformer.config.patch_size).flatten(2).mT
        tokens = self.model.get_input_embeddings()(ids)
        return torch.cat([self.embed_image(patches.to(tokens.dtype)), tokens], dim=1)

    def loss(self, pixels: Tensor, ids: Tensor, answer_mask: Tensor) -> Tensor:
        """Mean of -log p of the answers' tokens and of the first end-of-text token after them."""
        eos = self.ours.text_codec.eos_token_id
        longest = int((ids != eos).any(0).nonzero().max()) + 2  # with the end
        ids, answer_mask = ids[:, :longest], answer_mask[:, :longest]
        is_padding = ((ids == eos) & answer_mask).cumsum(1) > 1
        hidden = self.model.model(inputs_embeds=self.embedded(pixels, ids[:, :-1])).last_hidden_state
        predicted = self.model.lm_head(hidden[:, -ids.shape[1] :])  # from the last image token on
        is_scored = answer_mask & ~is_padding
        return F.cross_entropy(predicted[is_scored].float(), ids[is_scored])

    @torch.inference_mode()
    def describe(self, images: Sequence[Image.Image], batch_size: int, *, static: bool) -> list[str]:
        """The likeliest token each time, up to the end of text. static: a cache of keys and values of fixed size."""
        side, codec, texts = self.ours.settings.image_size, self.ours.text_codec, list[str]()
        for start in range(0, len(images), batch_size):
            some = [fit_image(image, side, side) for image in images[start : start + batch_size]]
            prompt = caption_prompt(codec, len(some), self.length, style=self.ours.style, detailed=True)
            given = prompt.input_ids[:, : int((~prompt.answer_mask[0]).sum())]
            x = self.embedded(to_tensor(some), given.to(self.embed_image.weight.device))
            found = self.model.generate(
                inputs_embeds=x, attention_mask=torch.ones(x.shape[:2], dtype=torch.long, device=x.device),
                max_new_tokens=self.length - given.shape[1], do_sample=False,
                cache_implementation="static" if static else None,
            )  # fmt: skip
            texts += [codec.decode(row) for row in found]
        return texts


def train(
    decoder: Decoder,
    world: WideConfig,
    *,
    hours: float,
    batch_size: int,
    lr: float,
    workers: int,
    dtype: torch.dtype,
) -> int:
    """AdamW, whose rate falls to 0 over the time; the steps taken."""
    device = decoder.embed_image.weight.device
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=0.01)
    loader = DataLoader(
        Pairs(decoder.ours, world, decoder.length),
        batch_size,
        shuffle=True,
        num_workers=workers,
        drop_last=True,
    )
    batches, start, step = _endless(loader), time.perf_counter(), 0
    while (share := (time.perf_counter() - start) / hours / 3600) < 1:
        batch = [part.to(device) for part in next(batches)]
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, (step + 1) / 100) * (1 - share)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            loss = decoder.loss(*batch)
        loss.backward()
        nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 100 == 0:
            print(f"{share:6.1%}  step {step:,}  {loss.item():.4f} nats a token", flush=True)
        step += 1
    return step


def _endless(loader: DataLoader[Any]) -> Iterator[Any]:
    for _ in count():
        yield from loader


def trained_decoder(pipeline: Pipeline, args: argparse.Namespace) -> Decoder:
    """The decoder in OUT, trained if it is not there."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(args.seed)
        decoder = Decoder(pipeline, args.length)
    device = pipeline.transformer.null_image_embd.device
    path, dtype = args.out / "decoder.safetensors", compute_dtype("auto", device)
    decoder.to(device)
    if path.is_file():
        decoder.load_state_dict(load_file(path, device=str(device)))
    else:
        num_steps = train(
            decoder, WIDE_PRESETS[args.world], hours=args.hours, batch_size=args.train_batch, lr=args.lr,
            workers=args.workers, dtype=dtype,
        )  # fmt: skip
        print(f"trained for {num_steps:,} steps of {args.train_batch} pairs", flush=True)
        args.out.mkdir(parents=True, exist_ok=True)
        save_file({name: tensor.contiguous() for name, tensor in decoder.state_dict().items()}, path)
    return decoder.eval().requires_grad_(False).to(pipeline.transformer.null_image_embd.dtype)


# --- the arms ---


def our_arm(
    label: str, part: str, after: str, pipeline: Pipeline, images: Sequence[Image.Image], batch: int, chunk: int,
    **options: Any,
) -> Arm:  # fmt: skip
    def run(numbers: range) -> list[str]:
        some = [images[n % len(images)] for n in numbers]
        return pipeline.caption(some, style="detailed", batch_size=batch, seed=numbers.start, **options)

    return Arm(
        label=f"{label}, batch {batch}", part=part, after=after and f"{after}, batch {batch}", batch=batch,
        count=chunk, run=run, counted=pipeline.transformer.context_embedder,
        dtype=pipeline.transformer.null_image_embd.dtype,
    )  # fmt: skip


def decoder_arm(
    decoder: Decoder, images: Sequence[Image.Image], batch: int, chunk: int, *, static: bool
) -> Arm:
    def run(numbers: range) -> list[str]:
        return decoder.describe([images[n % len(images)] for n in numbers], batch, static=static)

    return Arm(
        label=f"autoregressive, {'static' if static else 'dynamic'} cache, batch {batch}", part="", after="",
        batch=batch, count=chunk, run=run, counted=decoder.model.model.embed_tokens,
        dtype=decoder.embed_image.weight.dtype,
    )  # fmt: skip


def make_arms(
    models: dict[str, Pipeline], decoder: Decoder, images: Sequence[Image.Image], batch: int, chunk: int
) -> list[Arm]:
    """The rivals, then ours, each of which adds one thing to the one before."""
    blocks = models["blocks"]
    size, length = blocks.transformer.config.text_block_size, decoder.length
    arms = [decoder_arm(decoder, images, batch, chunk, static=static) for static in (False, True)]
    ours: list[tuple[str, str, Pipeline, dict[str, Any]]] = []
    if "plain" in models:
        published = {"order": "random", "temperature": 1.0, "num_steps": 2 * length}
        ours.append(("published rule", "", models["plain"], published))
        ours.append(("best rule", "fewer steps", models["plain"], {"num_steps": length}))
    one_by_one = {"order": "confidence", "temperature": 0.0, "num_steps": size}
    ours.append(("blocks, a token a step", "blocks, kept", blocks, one_by_one))
    ours.append(("blocks", "fewer steps", blocks, {"num_steps": size}))
    ours.append(
        (f"blocks, {HASTE:g} nats", "fewer still", blocks, {"num_steps": size, "entropy_bound": HASTE})
    )
    if "without T5" in models:
        ours.append(("blocks without T5", "T5 out", models["without T5"], {"num_steps": size}))
    after = ""
    for label, part, pipeline, options in ours:
        arms.append(our_arm(label, part, after, pipeline, images, batch, chunk, **options))
        after = label
    return arms


# --- the table ---


def table(results: dict[str, Result], asked: Sequence[Asking], clock: Clock, batch: int) -> list[str]:
    decoders = [result for label, result in results.items() if label.startswith("autoregressive")]
    rival = min(decoders, key=lambda result: result.second)
    heads = (
        "arm", "adds", "passes a text", "GFLOP", "ms a text (all rounds)", "texts a second", "against the decoder",
        "share of the rate", "objects", "attributes", "false",
    )  # fmt: skip
    lines = [f"\n## Batch {batch}\n", f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for label, result in results.items():
        scenes = [asked[n % len(asked)] for n in range(len(result.outputs))]
        score = score_all(scenes, result.outputs)
        ms = [1e3 * seconds for seconds in result.seconds]
        rate = result.flops / result.second / 1e9 / clock.rate(result.arm.dtype)
        lines.append(
            f"| {label} | {result.arm.part} | {result.evaluations:.1f} | {result.flops / 1e9:.2f} |"
            f" {1e3 * result.second:.1f} ({min(ms):.1f}-{max(ms):.1f}) | {1 / result.second:.2f} |"
            f" {rival.second / result.second:.2f}x | {rate:.0%} | {score.objects:.4f} | {score.attributes:.4f} |"
            f" {score.false:.4f} |"
        )  # fmt: skip
        print(lines[-1], flush=True)
    return lines


def heading(args: argparse.Namespace, blocks: Pipeline, decoder: Decoder) -> str:
    sizes = [sum(p.numel() for p in module.parameters()) / 1e6 for module in (decoder, blocks.transformer)]
    device, threads = blocks.transformer.null_image_embd.device, torch.get_num_threads()
    return f"""# Detailed descriptions by blocks, and by an autoregressive decoder

`python -m benchmarks.autoregressive {args.blocks} --world {args.world} --hours {args.hours:g} --num {args.num}`,
{code_version()}; torch {torch.__version__}, {device}, {args.dtype}, {threads} threads. The decoder has {sizes[0]:.1f} M
parameters, the transformer {sizes[1]:.1f} M. {args.num} scenes of the preset's test split, texts of at most
{args.length} tokens with their request. Times are medians of the rounds, in which the arms take turns."""


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("blocks", help="folder of a model that writes in blocks")
    parser.add_argument("--plain", help="folder of the model that it was converted from")
    parser.add_argument("--without-t5", help="folder of a model with text_input=embeddings")
    parser.add_argument("--world", choices=WIDE_PRESETS, default="wide", help="preset of the scenes")
    parser.add_argument("--hours", type=float, default=1.0, help="of the decoder's training")
    parser.add_argument("--length", type=int, help="tokens of request and description [default: the model's]")
    parser.add_argument("--num", type=int, default=256, help="scenes, at each batch size")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--train-batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--workers", type=int, default=1, help="processes that render pairs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", default="float32", help="of sampling")
    parser.add_argument(
        "--cpu-time", action="store_true", help="processor time: for a busy machine, one thread"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/autoregressive"), help="keeps the decoder")
    parser.add_argument("--report", type=Path, default=HERE / "autoregressive.md")
    return parser.parse_args()


def main() -> None:
    args = parse()
    folders = {"blocks": args.blocks, "plain": args.plain, "without T5": args.without_t5}
    models = {
        name: Pipeline.from_pretrained(folder, dtype=args.dtype) for name, folder in folders.items() if folder
    }
    blocks = models["blocks"]
    if not blocks.transformer.config.text_block_size:
        raise SystemExit(f"the model in '{args.blocks}' does not write in blocks: name it as --plain")
    args.length = args.length or blocks.settings.text_length
    for pipeline in models.values():
        pipeline.settings = replace(pipeline.settings, text_length=args.length)
    decoder = trained_decoder(blocks, args)
    asked = list(make_requests(WideSplit(WIDE_PRESETS[args.world], num=args.num), WORDINGS[0]))
    images, clock = [asking.image() for asking in asked], Clock.start(cpu_time=args.cpu_time)
    lines = [heading(args, blocks, decoder)]
    for batch in args.batches:
        chunk = min(args.num, max(args.batches) if batch > 1 else 4)
        rounds = max(1, args.num // chunk) if batch > 1 else max(2, args.num // 32)
        arms = make_arms(models, decoder, images, batch, chunk)
        results = measure(arms, clock, rounds=rounds, fresh=True, arm_seconds=0, memory=False)
        lines += table(results, asked, clock, batch)
    args.report.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
