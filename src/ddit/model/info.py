"""What a model is and what it needs, by its configurations and the headers of its files: no weight is read."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from ddit.files import find_weights, read_json
from ddit.model import DualDiT, DualDiTConfig
from ddit.model.autoencoder import downsample_of
from ddit.model.folders import SETTINGS_FILE, check_t5, is_sd3_folder, settings_for
from ddit.model.weights import TRANSFORMER_STEM, config_from_dict
from ddit.settings import ModelSettings

DTYPE_BYTES = {"float32": 4, "bfloat16": 2}
STORED_AS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I8": "int8"}
INT8_LAYERS = re.compile(r"\.(SelfAttention\.[qkvo]|DenseReluDense\.\w+)\.weight$")
TIED = ("shared.weight", "encoder.embed_tokens.weight")
"""T5 keeps one matrix under two names."""


@dataclass(frozen=True)
class Part:
    """One network of a model as it is stored.

    parameters: those that are used; of a whole T5 the encoder's alone, of SD3's transformer those of the D-DiT that is
        made of it. dtype: of most of them. bytes_on_disk: of all files.
    """

    name: str
    parameters: int
    dtype: str
    bytes_on_disk: int


@dataclass(frozen=True)
class Memory:
    """Bytes that a way of loading needs on the device that computes, for one image of the model's own size.

    weights are exact. t2i, i2t: the estimated peak of what is computed on top, for a guided image and for a text.
    host: weights that stay on the CPU beside it. offload_blocks: of transformer and text encoder two blocks are on the
        device at a time.
    """

    dtype: str
    text_encoder: str
    offload: bool
    offload_blocks: bool
    weights: int
    host: int
    t2i: int
    i2t: int

    @property
    def peak(self) -> int:
        return self.weights + max(self.t2i, self.i2t)


@dataclass(frozen=True)
class Sizes:
    """What decides the cost of a model: its transformer's and encoders' configurations.

    downsample: pixels a latent along a side. unit, largest: every side of an image is a multiple of the one up to the
    other. decoder_width: channels of the autoencoder's decoder at its costliest, at `decoder_scale` pixels a place.
    """

    transformer: DualDiTConfig
    downsample: int
    decoder_width: int
    decoder_scale: int
    text_width: int
    text_inner: int
    vocabulary: int

    @property
    def unit(self) -> int:
        return self.downsample * self.transformer.patch_size

    @property
    def largest(self) -> int:
        return self.unit * self.transformer.pos_embed_max_size


@dataclass(frozen=True)
class ModelInfo:
    """All of it."""

    folder: Path
    kind: str
    parts: tuple[Part, ...]
    sizes: Sizes
    settings: ModelSettings
    memory: tuple[Memory, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "folder": str(self.folder),
            "sizes": {**asdict(self.sizes), "unit": self.sizes.unit, "largest": self.sizes.largest},
            "memory": [{**asdict(row), "peak": row.peak} for row in self.memory],
        }


@dataclass(frozen=True)
class _Header:
    """Names, shapes and types of a part's tensors."""

    shapes: dict[str, tuple[int, ...]]
    dtypes: Counter[str]
    bytes_on_disk: int

    @classmethod
    def of(cls, folder: Path, stem: str) -> _Header:
        shapes, dtypes, size = {}, Counter(), 0
        for path in find_weights(folder, stem):
            size += path.stat().st_size
            try:
                with safe_open(path, framework="pt") as file:
                    for name in file.keys():  # noqa: SIM118 (not a dict)
                        tensor = file.get_slice(name)
                        shapes[name] = tuple(tensor.get_shape())
                        dtypes[tensor.get_dtype()] += prod(shapes[name])
            except (SafetensorError, OSError) as error:
                raise ValueError(f"'{path}' cannot be read as safetensors: {error}") from None
        return cls(shapes, dtypes, size)

    def part(self, name: str, parameters: int) -> Part:
        stored = self.dtypes.most_common(1)[0][0]
        return Part(name, parameters, STORED_AS.get(stored, stored), self.bytes_on_disk)


def inspect_model(folder: Path) -> ModelInfo:
    """Describes a model folder: ours, a published checkpoint's, or SD3's.

    Raises:
        ValueError: in one line, if a part is missing or its header is broken.
    """
    if not (folder / "transformer").is_dir():
        raise ValueError(f"'{folder}' is not a model folder: it has no transformer/")
    check_t5(folder)
    is_sd3 = is_sd3_folder(folder)
    suffix = "_3" if is_sd3 else ""
    vae, t5 = (read_json(folder / name / "config.json") for name in ("vae", f"text_encoder{suffix}"))
    vocabulary = _vocabulary(folder / f"tokenizer{suffix}") or t5["vocab_size"]
    source = folder / "transformer" / "config.json"
    own = {"vocab_size": vocabulary} if is_sd3 else {}
    config = config_from_dict(read_json(source), f"'{source}'", **own)
    with torch.device("meta"):
        transformer = DualDiT(config)
    headers = {
        "transformer": _Header.of(folder / "transformer", TRANSFORMER_STEM),
        "text encoder": _Header.of(folder / f"text_encoder{suffix}", "model"),
        "autoencoder": _Header.of(folder / "vae", TRANSFORMER_STEM),
    }
    encoder = _encoder_shapes(headers["text encoder"].shapes)
    counts = {
        "transformer": sum(parameter.numel() for parameter in transformer.parameters()),
        "text encoder": _numel(encoder.values()),
        "autoencoder": _numel(headers["autoencoder"].shapes.values()),
    }
    width, scale = _decoder(vae)
    sizes = Sizes(config, downsample_of(vae), width, scale, t5["d_model"], t5["d_ff"], vocabulary)
    settings = settings_for(folder, config.sample_size * sizes.downsample)
    return ModelInfo(
        folder,
        "SD3, to be trained"
        if is_sd3
        else "D-DiT"
        if (folder / SETTINGS_FILE).is_file()
        else "published D-DiT",
        tuple(header.part(name, counts[name]) for name, header in headers.items()),
        sizes,
        settings,
        tuple(
            _memory(
                counts, transformer, encoder, sizes, settings, is_int8="I8" in headers["text encoder"].dtypes
            )
        ),
    )


def _vocabulary(folder: Path) -> int | None:
    """One more than the largest id of a `tokenizer.json`; None without one."""
    if not folder.is_dir():
        raise ValueError(f"'{folder.parent}' is incomplete: it has no folder {folder.name}/")
    if not (folder / "tokenizer.json").is_file():
        return None
    values = read_json(folder / "tokenizer.json")
    vocab = values["model"]["vocab"]  # a list of pieces, or ids by word
    largest = max(vocab.values()) if isinstance(vocab, dict) else len(vocab) - 1
    return max([largest, *(token["id"] for token in values.get("added_tokens", []))]) + 1


def _encoder_shapes(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """The tensors that T5's encoder is made of, the embeddings once, without the scales of 8 bit."""
    used = {
        name: shape
        for name, shape in shapes.items()
        if (name.startswith("encoder.") and not name.endswith(".scale")) or name in TIED
    }
    if all(name in used for name in TIED):
        del used[TIED[1]]
    return used


def _decoder(vae: Mapping[str, Any]) -> tuple[int, int]:
    """The autoencoder's decoder where it is costliest: channels, and pixels a place along a side."""
    if "decoder_width" in vae:
        return max(vae["decoder_width"], 3 * downsample_of(vae) ** 2), downsample_of(vae)
    widths = vae.get("decoder_block_out_channels") or vae["block_out_channels"]
    return widths[min(1, len(widths) - 1)], 1  # the last enlargement keeps the second width


def _numel(shapes: Iterable[tuple[int, ...]]) -> int:
    return sum(prod(shape) for shape in shapes)


# --- memory ---


def _memory(
    counts: Mapping[str, int],
    transformer: DualDiT,
    encoder: Mapping[str, tuple[int, ...]],
    sizes: Sizes,
    settings: ModelSettings,
    *,
    is_int8: bool,
) -> Iterable[Memory]:
    """is_int8: the text encoder is stored in 8 bit."""
    matrices = [shape for name, shape in encoder.items() if INT8_LAYERS.search(name)]
    in_8_bit = _numel(matrices)
    scales = 4 * sum(shape[0] for shape in matrices)
    tables = sum(buffer.numel() for buffer in transformer.buffers())
    blocks = sum(parameter.numel() for parameter in transformer.transformer_blocks.parameters())
    layers = {name: shape for name, shape in encoder.items() if ".block." in name}
    depth = len({name.split(".block.")[1].split(".")[0] for name in layers})
    for dtype, width in DTYPE_BYTES.items():
        t2i, i2t = (width * number for number in _activations(sizes, settings))
        text = {
            "whole": width * counts["text encoder"],
            "int8": width * (counts["text encoder"] - in_8_bit) + in_8_bit + scales,
        }
        if is_int8:
            del text["whole"]
        image = width * counts["autoencoder"]
        all_of_it = width * (counts["transformer"] + tables)
        for how, of_text in text.items():
            for offload in (False, True):
                on_device = max(of_text, image) if offload else of_text + image
                host = of_text + image if offload else 0
                yield Memory(dtype, how, offload, False, all_of_it + on_device, host, t2i, i2t)
            if how == "whole":  # two blocks of each: one at work, one on its way
                at_work = 2 * width * blocks // len(transformer.transformer_blocks)
                of_layers = width * _numel(layers.values())
                text_at_work = of_text - of_layers + 2 * of_layers // max(1, depth)
                on_device = all_of_it - width * blocks + at_work + max(text_at_work, image)
                yield Memory(dtype, how, True, True, on_device, of_text + image + width * blocks, t2i, i2t)


def _activations(sizes: Sizes, settings: ModelSettings) -> tuple[int, int]:
    """Numbers held at once at the peak of generating one image with guidance, and one text.

    Counted by hand for one block, as in inference nothing else is kept: the stream, its queries, keys, values and
    output, or the MLP's four times wider layer before and after its nonlinearity. Attention is taken as fused. The
    decoder holds about five maps of its costliest level, the text encoder three of its gated layer's. In blocks, one
    block of text is at work, and all layers' keys and values of the finished ones are kept.
    """
    config, side = sizes.transformer, settings.image_size
    tokens = (side // sizes.unit) ** 2
    a_block = 12 * config.hidden_size
    text = 3 * sizes.text_inner + 4 * sizes.text_width
    decoder = 5 * sizes.decoder_width * (side // sizes.decoder_scale) ** 2
    is_guided = 1 + (settings.image_sampling.guidance_scale > 1)
    draw = is_guided * max(a_block * (tokens + settings.prompt_length), text * settings.prompt_length)
    at_work = config.text_block_size or settings.text_length
    heads = at_work * config.vocab_size * 3  # logits, their probabilities, a copy in float32
    write = max(a_block * (tokens + at_work), text * at_work) + heads
    if config.text_block_size:
        write += 2 * config.depth * config.hidden_size * (tokens + settings.text_length)
    return max(draw, decoder), max(write, decoder)  # the encoder is about as wide as the decoder


# --- as text ---


def to_text(info: ModelInfo) -> str:
    """Tables for a person."""
    config, settings, sizes = info.sizes.transformer, info.settings, info.sizes
    side, latent = settings.image_size, settings.image_size // sizes.downsample
    image, rule = settings.image_sampling, settings.text_sampling.rule
    steps = f"at most {settings.caption_steps} steps a caption, {settings.answer_steps} an answer"
    cached = (
        "computed in every step: it sees the text" if config.image_attends_text else "computed once, exactly"
    )
    facts = {
        "folder": info.folder,
        "kind": info.kind,
        "transformer": f"width {config.hidden_size}, depth {config.depth}, {config.num_heads} heads"
        + (f", {config.qk_norm}" if config.qk_norm else ""),
        "latents": f"{config.in_channels} channels, {latent} x {latent} at {side} pixels, patch {config.patch_size}",
        "images": f"{side} pixels; sides are multiples of {sizes.unit} up to {sizes.largest}",
        "texts": f"{settings.prompt_length} tokens a prompt, {settings.text_length} a caption or question and answer",
        "vocabulary": f"{sizes.vocabulary:,} tokens, {config.vocab_size:,} rows in the text head",
        "t2i": f"{image.sampler}, {image.num_steps} steps, guidance {image.guidance_scale:g}, shift {image.shift:g}",
        "i2t": f"order {rule.order}, temperature {rule.temperature:g}, {steps}",
        "image side": cached,
        "written": f"in blocks of {size} tokens, finished ones kept"
        if (size := config.text_block_size)
        else "as a whole",
    }
    lines = [f"{name:<13} {value}" for name, value in facts.items()]
    lines += ["", f"{'part':<13} {'parameters':>14} {'stored as':>10} {'on disk':>10}"]
    lines += [
        f"{part.name:<13} {part.parameters:>14,} {part.dtype:>10} {_size(part.bytes_on_disk):>10}"
        for part in info.parts
    ]
    total = sum(part.parameters for part in info.parts)
    lines.append(f"{'all':<13} {total:>14,} {'':>10} {_size(sum(p.bytes_on_disk for p in info.parts)):>10}")
    lines += ["", "memory on the device: weights, and estimates of what one image takes on top"]
    lines.append(f"{'':<26} {'weights':>9} {'t2i':>9} {'i2t':>9} {'peak':>9} {'on the CPU':>11}")
    for row in info.memory:
        flags = [
            row.dtype,
            *(["--int8"] if row.text_encoder == "int8" else []),
            *(["--offload-blocks"] if row.offload_blocks else ["--offload"] * row.offload),
        ]
        numbers = (_size(n) for n in (row.weights, row.t2i, row.i2t, row.peak))
        host = _size(row.host) if row.offload else "-"
        lines.append(f"{' '.join(flags):<26} " + " ".join(f"{n:>9}" for n in numbers) + f" {host:>11}")
    return "\n".join(lines)


def to_json_line(info: ModelInfo) -> str:
    return json.dumps(info.to_json(), ensure_ascii=False)


def _size(count: int) -> str:
    """Bytes in MB or GB."""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
