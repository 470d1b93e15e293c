"""Whether models give on the device what they give on the CPU: `verify`, mini, offloading, 8 bit, compiled code."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from ddit.devices import limit_threads, multiplies_bfloat16
from ddit.doctor.report import Bench, Check, Outcome, Skipped, in_group, timed
from ddit.inference.verify import Tensors, verify, write_reference
from ddit.model import DualDiT, DualDiTConfig
from ddit.model.autoencoder import PatchAutoencoder
from ddit.model.encoders import ImageCodec, TextCodec
from ddit.model.folders import resolve
from ddit.model.small_text import build_tokenizer, tiny_t5
from ddit.pipeline import Pipeline
from ddit.prompts import MINI
from ddit.schema import to_data
from ddit.settings import ImageSampling, ModelSettings

PROMPT, NUM_STEPS = "a photo of a red car", 4
TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 0.1}
"""Of `verify`, absolute and relative."""
PIXELS = {torch.float32: 0.5, torch.bfloat16: 6.0}
"""Mean difference of two images' pixels that rounding explains, of 255."""


class Sample(NamedTuple):
    """What a model gives: an image of the prompt, and the caption of the CPU's image."""

    image: Image.Image
    caption: str


def small_pipeline(*, image_attends_text: bool = False) -> Pipeline:
    """A model of random weights with no zero-initialised path, whose heads have the width that CUDA's kernels want."""
    words = (
        "a photo of the dog cat car red blue green is there what color how many one two three yes no q: a:"
    )
    tokenizer = build_tokenizer(words.split())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = tiny_t5(len(tokenizer), d_model=64, num_layers=2, num_heads=2, d_ff=128)
        images = ImageCodec(PatchAutoencoder(latent_channels=8))
    config = DualDiTConfig(
        in_channels=8, patch_size=2, hidden_size=128, depth=2, num_heads=2, text_dim=64, vocab_size=len(tokenizer),
        sample_size=8, pos_embed_max_size=8, image_attends_text=image_attends_text,
    )  # fmt: skip
    transformer, g = DualDiT(config), torch.Generator().manual_seed(0)
    transformer.init_weights(g)
    with torch.no_grad():
        for parameter in transformer.parameters():
            parameter.add_(0.03 * torch.randn(parameter.shape, generator=g))
    settings = ModelSettings(
        prompt_style=to_data(MINI), image_size=32, prompt_length=12, text_length=12, caption_steps=4, answer_steps=3,
        image_sampling=ImageSampling(num_steps=NUM_STEPS, guidance_scale=2.0),
    )  # fmt: skip
    return Pipeline(transformer, images, TextCodec(tokenizer, encoder), settings)


def save_small(folder: Path) -> Path:
    """The small pipeline as a model folder, written once."""
    if not folder.exists():
        small_pipeline().save_pretrained(folder)
    return folder


def _reference_inputs(config: DualDiTConfig, mask_token_id: int) -> dict[str, Tensors]:
    """Random inputs of every group of `verify`."""
    g = torch.Generator().manual_seed(1)
    side, batch, length = config.sample_size, 3, 12
    latents = torch.randn(batch, config.in_channels, side, side, generator=g)
    states = torch.randn(batch, length, config.text_dim, generator=g)
    noise, times = torch.randn(latents.shape, generator=g), torch.rand(batch, generator=g)
    ids = torch.randint(3, mask_token_id, (batch, length), generator=g)
    is_masked = torch.rand(batch, length, generator=g) < 0.5
    noisy = torch.where(is_masked, mask_token_id, ids)
    return {
        "forward.0": {"latents": latents, "text_states": states, "timestep": 1000 * times},
        "null_image": {"ids": noisy},
        "masked": {
            "latents": latents, "x0": ids, "xt": noisy, "t": times.clamp_min(0.1),
            "label_mask": torch.ones_like(ids),
        },
        "flow": {"latents": latents, "text_states": states, "noise": noise, "timestep": 1000 * times},
        "t2i": {"noise": noise, "text_states": states, "negative_text_states": states.flip(1)},
        "i2t": {"latents": latents, "xt": noisy, "t": torch.tensor([0.7]), "s": torch.tensor([0.4])},
    }  # fmt: skip


def check_verify(bench: Bench, dtype: torch.dtype) -> Outcome:
    """`ddit verify` on the device, of what a model of random weights gives on the CPU in float32."""
    _need_bfloat16(bench, dtype)
    folder = bench.folder / "reference"
    if not (folder / "reference.safetensors").exists():
        pipeline = small_pipeline(image_attends_text=True)
        pipeline.save_pretrained(folder)
        mask = pipeline.text_codec.mask_token_id
        inputs = _reference_inputs(pipeline.transformer.config, mask)
        write_reference(
            folder, inputs, mask_token_id=mask, t2i={"steps": 4, "guidance_scale": 3.0, "shift": 3.0}
        )
    tolerance = TOLERANCES[dtype]
    found = list(verify(folder, atol=tolerance, rtol=tolerance, dtype=dtype, device=bench.device))
    # the likeliest of near equals may be another in bfloat16
    found = [f for f in found if dtype == torch.float32 or not f.name.endswith("argmax")]
    worst = max(found, key=lambda f: f.max_error)
    outside = [f.name for f in found if not f.within]
    figure = f"{len(found)} tensors, largest error {worst.max_error:.1e} ({worst.name})"
    if outside:
        return Outcome(f"{figure}; not within {tolerance}: {', '.join(outside)}", "failed")
    return Outcome(figure)


@functools.cache
def _mini_on_cpu() -> Sample:
    """What mini gives on the CPU in float32."""
    pipeline = Pipeline.from_pretrained("mini", device="cpu", dtype="float32")
    return _sample(pipeline)


def _sample(pipeline: Pipeline, image: Image.Image | None = None) -> Sample:
    made = pipeline.generate(PROMPT, num_steps=NUM_STEPS)[0]
    return Sample(made, pipeline.caption(image or made)[0])


def _difference(one: Image.Image, other: Image.Image) -> float:
    """Mean absolute difference of pixels, of 255."""
    a, b = (np.asarray(image, dtype=np.float32) for image in (one, other))
    return float(np.abs(a - b).mean())


def check_mini(bench: Bench, dtype: torch.dtype) -> Outcome:
    """An image and a caption of mini's, beside those of the CPU in float32."""
    _need_bfloat16(bench, dtype)
    if not bench.is_gpu:
        limit_threads(resolve("mini"))
    expected = _mini_on_cpu()
    pipeline = Pipeline.from_pretrained("mini", device=bench.device, dtype=dtype)
    found = _sample(pipeline, expected.image)
    seconds = timed(lambda: pipeline.generate(PROMPT, num_steps=NUM_STEPS), bench, seconds=0)
    difference = _difference(found.image, expected.image)
    figure = f"pixels differ by {difference:.3f} of 255, {NUM_STEPS} steps in {seconds * 1e3:.0f} ms, '{found.caption}'"
    same = difference <= PIXELS[dtype] and (found.caption == expected.caption or dtype != torch.float32)
    return Outcome(
        figure if same else f"{figure}; on the CPU '{expected.caption}'", "ok" if same else "failed"
    )


def check_loading(bench: Bench, **options: Any) -> Outcome:
    """A way of loading the small model gives what the plain one gives; on a GPU with less memory between uses."""
    folder = save_small(bench.folder / "small")
    results, held = [], []
    ways: list[dict[str, Any]] = [{}, options]
    for chosen in ways:
        before = _allocated(bench)
        pipeline = Pipeline.from_pretrained(folder, device=bench.device, dtype="float32", **chosen)
        sample = _sample(pipeline)
        held.append(_allocated(bench) - before)
        results.append(sample)
        del pipeline
    difference = _difference(results[0].image, results[1].image)
    bound = 6.0 if "int8" in options else 1.0
    figure = f"pixels differ by {difference:.3f} of 255"
    if bench.is_gpu:
        figure += f"; holds {held[1] / 2**20:.2f} instead of {held[0] / 2**20:.2f} MiB"
        if held[1] >= held[0]:
            return Outcome(figure, "failed")
    return Outcome(figure, "ok" if difference <= bound else "failed")


def _allocated(bench: Bench) -> int:
    return torch.cuda.memory_allocated(bench.device) if bench.is_gpu else 0


@contextmanager
def counted_graphs() -> Iterator[list[int]]:
    """Within this context a function that needs more graphs than its limit raises; afterwards the list has how many
    graphs were made in all."""
    import torch._dynamo.config as dynamo  # the compiler, which takes seconds to import
    from torch._dynamo.utils import counters

    before, made = counters["stats"]["unique_graphs"], []
    with dynamo.patch(fail_on_recompile_limit_hit=True):
        yield made
    made.append(counters["stats"]["unique_graphs"] - before)


def check_compiled(bench: Bench, *, name: str | None = None) -> Outcome:
    """A model with an isolated image side, compiled (on CUDA replayed as graphs), gives the same, call after call.

    name: of a model; None: the small one.
    """
    folder = name or save_small(bench.folder / "small")
    pipeline = Pipeline.from_pretrained(folder, device=bench.device, dtype="float32")
    plain = _sample(pipeline)
    questions = ["what color is the car?"] * 2
    texts = [plain.caption, *pipeline.answer(plain.image, questions)]
    before = timed(lambda: pipeline.caption(plain.image), bench, seconds=0)
    pipeline.compile()
    found, answers = plain, texts
    with counted_graphs() as made:
        for _ in range(3):  # a graph is recorded in the second call and replayed in the third
            found = _sample(pipeline, plain.image)
            answers = [found.caption, *pipeline.answer(plain.image, questions)]
    after = timed(lambda: pipeline.caption(plain.image), bench, seconds=0)
    difference = _difference(found.image, plain.image)
    figure = (
        f"{made[0]} graphs; pixels differ by {difference:.3f} of 255; "
        f"a caption takes {after * 1e3:.0f} instead of {before * 1e3:.0f} ms"
    )
    if answers != texts:
        return Outcome(f"{figure}; texts {answers} instead of {texts}", "failed")
    return Outcome(figure, "ok" if difference <= 1.0 and made[0] else "failed")


def check_compiled_mini(bench: Bench) -> Outcome:
    bench.need_gpu()
    return check_compiled(bench, name="mini")


def _need_bfloat16(bench: Bench, dtype: torch.dtype) -> None:
    if dtype == torch.bfloat16 and not multiplies_bfloat16(bench.device):
        raise Skipped("this CPU has no quick bfloat16 products")


def model_checks() -> list[Check]:
    types: dict[str, Any] = {}
    for dtype in TOLERANCES:
        short = str(dtype).removeprefix("torch.")
        types[f"verify in {short}"] = partial(check_verify, dtype=dtype)
        types[f"mini in {short}"] = partial(check_mini, dtype=dtype)
    loading = {
        "offload": partial(check_loading, offload=True),
        "offload by blocks": partial(check_loading, offload_blocks=True),
        "int8": partial(check_loading, int8=True),
    }
    compiled = {
        "compiled, with graphs on CUDA": check_compiled,
        "mini, compiled, with graphs on CUDA": check_compiled_mini,
    }
    return in_group("model", {**dict(sorted(types.items(), reverse=True)), **loading, **compiled})
