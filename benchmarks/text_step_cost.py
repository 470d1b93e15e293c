"""FLOPs of a step of text sampling at the published size, by a formula that is checked against torch's counter.

    python benchmarks/text_step_cost.py

Prints the tables of text_step_cost.md. Everything is on the meta device: no weights, no GPU, a minute. One image, one
text, all of its positions masked; two FLOPs a multiply-add, matrix products only.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import T5Config, T5EncoderModel

from ddit.model import DualDiT, DualDiTConfig
from ddit.model.dual_dit import ImageKV
from ddit.model.t5_blocks import T5Blocks
from ddit.model.t5_cache import T5Cache
from ddit.model.text_blocks import BlockText

MODEL = DualDiTConfig()
T5_XXL = T5Config(
    vocab_size=32128, d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64, feed_forward_proj="gated-gelu"
)  # fmt: skip
DOWNSAMPLE, TOLERANCE = 8, 1e-3
NUM_NEW = 4
"""Tokens filled since the last step, where the text encoder runs at these alone."""
BLOCK, TOKENS_A_STEP = 16, 4
"""Of texts in blocks."""

PLANS = (
    ("answer, published", 17, 128, False, False),
    ("four steps", 4, 128, False, False),
    ("image reused", 4, 128, True, False),
    ("a window of 16 after a question of 32", 4, 48, True, False),
    (f"T5 at {NUM_NEW} new tokens a step", 4, 48, True, True),
    ("caption, published", 257, 256, False, False),
    ("64 steps", 64, 256, False, False),
    ("image reused", 64, 256, True, False),
    (f"T5 at {NUM_NEW} new tokens a step", 64, 256, True, True),
)
"""What is done, steps, text tokens, image side reused, text encoder reused; each line adds to the one above."""


def text_stream(config: DualDiTConfig, num_image: int, length: int) -> float:
    """A step of the text stream against reused keys and values, with the logits of every position."""
    dim = config.hidden_size
    blocks = config.depth * (length * 12 * dim**2 + 2 * dim * length * (num_image + length))
    return 2.0 * (blocks + length * dim * (config.text_dim + config.vocab_size))


def image_stream(config: DualDiTConfig, num_image: int, length: int) -> float:
    """The image side of a step, which sees `length` text tokens (0: it is isolated), and the modulation of both."""
    dim, inner = config.hidden_size, config.depth - 1
    blocks = config.depth * num_image * 3 * dim**2
    blocks += inner * (num_image * 9 * dim**2 + 2 * dim * num_image * (num_image + length))
    modulation = config.depth * 12 * dim**2 + (256 + dim) * dim
    return 2.0 * (blocks + modulation + num_image * config.patch_size**2 * config.in_channels * dim)


def text_encoder(config: T5Config, length: int, num_new: int | None = None) -> float:
    """The T5 encoder at all positions, or at `num_new` of them."""
    num_new = length if num_new is None else num_new
    inner = config.num_heads * config.d_kv
    layer = (
        num_new * (4 * config.d_model * inner + 3 * config.d_model * config.d_ff)
        + 2 * inner * num_new * length
    )
    return 2.0 * config.num_layers * layer


def counted(work) -> float:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        work()
    return float(counter.get_total_flops())


def check(name: str, formula: float, count: float) -> None:
    if abs(formula - count) > TOLERANCE * count:
        raise SystemExit(f"{name}: the formula says {formula:.4e}, torch counts {count:.4e}")


def check_formulas(
    model: DualDiT, isolated: DualDiT, encoder: T5EncoderModel, side: int, length: int
) -> None:
    """Raises SystemExit if a formula is further than a tenth of a percent from torch's count."""
    num_image = (side // MODEL.patch_size) ** 2
    latents, t = torch.empty(1, MODEL.in_channels, side, side, device="meta"), torch.empty(1, device="meta")
    states = torch.empty(1, length, MODEL.text_dim, device="meta")
    ids = torch.empty(1, length, dtype=torch.long, device="meta")
    size = f"{num_image} image and {length} text tokens"
    whole = image_stream(MODEL, num_image, length) + text_stream(MODEL, num_image, length)
    check(f"whole step, {size}", whole, counted(lambda: model(latents, t, states, num_t2i=0)))
    kv = isolated.image_kv(latents)
    check(
        f"image side once, {size}",
        image_stream(MODEL, num_image, 0),
        counted(lambda: isolated.image_kv(latents)),
    )
    cached = counted(lambda: isolated.text_logits(states, kv))
    check(f"cached step, {size}", text_stream(MODEL, num_image, length), cached)
    check(f"T5, {length} tokens", text_encoder(T5_XXL, length), counted(lambda: encoder(input_ids=ids)))
    check_block(isolated, encoder, kv, num_image, length)
    kept = T5Cache(encoder, 1)
    kept._make_room(length, ids)
    new, row = (
        torch.empty(1, NUM_NEW, dtype=torch.long, device="meta"),
        torch.empty(1, dtype=torch.long, device="meta"),
    )
    some = counted(lambda: kept._run(ids, row, new))
    check(f"T5 at {NUM_NEW} of {length} tokens", text_encoder(T5_XXL, length, NUM_NEW), some)


def check_block(isolated: DualDiT, encoder: T5EncoderModel, kv: ImageKV, num_image: int, length: int) -> None:
    """The last block of a text of `length` tokens, the others being kept: its first step, and one after it."""
    before, texts = length - 2 * BLOCK, T5Blocks(encoder)

    def tokens(count: int) -> tuple[torch.Tensor, BlockText]:
        ids = torch.empty(1, count, dtype=torch.long, device="meta")
        return ids, BlockText(ids, torch.empty(1, count, count, dtype=torch.bool, device="meta"))

    def step(count: int, keep: int) -> None:
        ids, text = tokens(count)
        states = texts.states(ids, text, keep=keep)
        isolated.text_logits(states, kv, keep=keep)

    counted(lambda: step(before, before))
    first, later = counted(lambda: step(2 * BLOCK, BLOCK)), counted(lambda: step(BLOCK, 0))
    expected = [block_step(num_image, before, 2 * BLOCK), block_step(num_image, before + BLOCK, BLOCK)]
    check(f"first step of a block after {before} tokens", expected[0], first)
    check(f"step of a block after {before + BLOCK} tokens", expected[1], later)


def block_step(num_image: int, num_kept: int, num_new: int, *, with_encoder: bool = True) -> float:
    """A step at `num_new` tokens behind `num_kept` of the text, whose keys and values are kept."""
    encoder = text_encoder(T5_XXL, num_kept + num_new, num_new) if with_encoder else 0.0
    return text_stream(MODEL, num_image + num_kept, num_new) + encoder


def block_text(num_image: int, length: int, steps: int, *, with_encoder: bool = True) -> float:
    """A text of `length` tokens in blocks, each in so many steps; its image."""
    cost = image_stream(MODEL, num_image, 0)
    for start in range(0, length, BLOCK):
        finished = min(BLOCK, start)
        cost += block_step(num_image, start - finished, finished + BLOCK, with_encoder=with_encoder)
        cost += (steps - 1) * block_step(num_image, start, BLOCK, with_encoder=with_encoder)
    return cost


def main() -> None:
    with torch.device("meta"):
        model = DualDiT(MODEL).eval()
        isolated = DualDiT(replace(MODEL, image_attends_text=False)).eval()
        encoder = T5EncoderModel(T5_XXL).eval()
    print(
        "| pixels | text tokens | image stream | text stream | T5 | whole step | image reused | T5 reused |"
        " both reused | image reused, T5 whole | both reused |"
    )
    print("|" + "---|" * 11)
    for pixels in (256, 512, 1024):
        for length in (64, 128, 256):
            side = pixels // DOWNSAMPLE
            check_formulas(model, isolated, encoder, side, length)
            num_image = (side // MODEL.patch_size) ** 2
            image, text = image_stream(MODEL, num_image, length), text_stream(MODEL, num_image, length)
            t5, some = text_encoder(T5_XXL, length), text_encoder(T5_XXL, length, NUM_NEW)
            whole = image + text + t5
            figures = (image, text, t5, whole, text + t5, image + text + some, text + some)
            gains = (whole / (text + t5), whole / (text + some))
            print(
                f"| {pixels} | {length} | " + " | ".join(f"{x / 1e12:.2f}" for x in figures) + " | "
                + " | ".join(f"{x:.1f}x" for x in gains) + " |"
            )  # fmt: skip
    print_plans()
    print_blocks()


def print_plans() -> None:
    num_image = (512 // DOWNSAMPLE // MODEL.patch_size) ** 2
    print("\n| at 512 px | steps | text tokens | TFLOP | gain |\n|---|---|---|---|---|")
    published = 0.0
    for what, steps, length, reuses_image, reuses_text in PLANS:
        image_steps = 1 if reuses_image else steps
        cost = image_steps * image_stream(MODEL, num_image, 0 if reuses_image else length)
        cost += steps * text_stream(MODEL, num_image, length)
        later = text_encoder(T5_XXL, length, NUM_NEW if reuses_text else length)
        cost += text_encoder(T5_XXL, length) + (steps - 1) * later
        published = cost if "published" in what else published
        print(f"| {what} | {steps} | {length} | {cost / 1e12:.1f} | {published / cost:.1f}x |")


def print_blocks() -> None:
    print(
        "\n| pixels | text tokens | how | steps | TFLOP a step | TFLOP a text | gain |\n|---|---|---|---|---|---|---|"
    )
    for pixels in (256, 512):
        num_image = (pixels // DOWNSAMPLE // MODEL.patch_size) ** 2
        for length in (128, 256):
            whole = image_stream(MODEL, num_image, length) + text_stream(MODEL, num_image, length)
            whole += text_encoder(T5_XXL, length)
            cached = text_stream(MODEL, num_image, length) + text_encoder(T5_XXL, length)
            image, steps = image_stream(MODEL, num_image, 0), length // TOKENS_A_STEP
            ways = [
                ("published", length + 1, (length + 1) * whole),
                (f"{TOKENS_A_STEP} tokens a step", steps, steps * whole),
                ("image kept", steps, image + steps * cached),
                (
                    f"blocks of {BLOCK}, all kept",
                    steps,
                    block_text(num_image, length, BLOCK // TOKENS_A_STEP),
                ),
                (
                    "without T5",
                    steps,
                    block_text(num_image, length, BLOCK // TOKENS_A_STEP, with_encoder=False),
                ),
            ]
            for how, count, cost in ways:
                gain = ways[0][2] / cost
                print(
                    f"| {pixels} | {length} | {how} | {count} | {cost / count / 1e12:.3f} | {cost / 1e12:.1f} |"
                    f" {gain:.0f}x |"
                )


if __name__ == "__main__":
    main()
