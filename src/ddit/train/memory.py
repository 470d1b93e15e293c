"""Memory a GPU of a run, computed on the meta device: nothing is allocated, no GPU is needed.

Counted are weights, gradients, optimiser, averages, gathered blocks, activations and the frozen encoders with what they
hold while they encode. Not counted are the allocator's slack, kernels' workspace and communication buffers.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from transformers import T5Config, T5EncoderModel

from ddit.config.runs import DualRun, LoraConfig, settled
from ddit.devices import compute_dtype
from ddit.model import DualDiT, DualDiTConfig
from ddit.model import block as model_module
from ddit.model.adapters import add_adapters
from ddit.model.encoders import PIXELS_AT_ONCE
from ddit.train.optim import is_for_muon

GIB = 2**30
GPU = torch.device("cuda")
T5_XXL: dict[str, Any] = {
    "vocab_size": 32128, "d_model": 4096, "d_kv": 64, "num_heads": 64, "d_ff": 10240, "num_layers": 24,
    "feed_forward_proj": "gated-gelu", "is_encoder_decoder": False, "use_cache": False, "dropout_rate": 0.0,
}  # fmt: skip


class ImageEncoder(NamedTuple):
    """The frozen autoencoder: its parameters, channels of its first level, pixels a latent along a side.

    The default is Stable Diffusion 3's.
    """

    parameters: int = 83_819_683
    width: int = 128
    downsample: int = 8


@dataclass(frozen=True)
class Encoders:
    """What is frozen beside the transformer; the default is Stable Diffusion 3's."""

    t5: Mapping[str, Any] = field(default_factory=lambda: T5_XXL)
    image: ImageEncoder = field(default_factory=ImageEncoder)

    @cached_property
    def text_model(self) -> T5EncoderModel:
        """T5 in bfloat16, without storage."""
        with torch.device("meta"):
            encoder = T5EncoderModel(T5Config(**self.t5)).requires_grad_(False)
            nn.Module.to(encoder, torch.bfloat16)
        return encoder


@dataclass(frozen=True)
class MemoryReport:
    """Bytes a GPU, by their purpose; without what allocators, kernels and communication add.

    activations: with the gathered weights, what a forward pass keeps. encoding: what the autoencoder holds on top while
    it encodes images. The two are not there at the same time, so that the total has the larger one.
    """

    masters: int
    gradients: int
    optimizer: int
    averages: int
    gathered: int
    activations: int
    text_encoder: int
    autoencoder: int
    encoding: int

    @property
    def total(self) -> int:
        kept = self.masters + self.gradients + self.optimizer + self.averages
        passing = max(self.gathered + self.activations, self.encoding)
        return kept + self.text_encoder + self.autoencoder + passing


class _FusedAttention(torch.autograd.Function):
    """Keeps for its backward pass what a fused attention kernel does: its inputs, its output, one number a row."""

    @staticmethod
    def forward(ctx: FunctionCtx, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = torch.empty_like(q)
        ctx.save_for_backward(q, k, v, out, q.new_empty(q.shape[:3], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Tensor) -> tuple[Tensor, ...]:
        raise NotImplementedError("only counted")


def _attend(q: Tensor, k: Tensor, v: Tensor, *rest: object, **options: object) -> Tensor:
    out: Tensor = _FusedAttention.apply(q, k, v)  # type: ignore[assignment]
    return out.transpose(1, 2).flatten(2)


@cache
def build_on_meta(config: DualDiTConfig, lora: LoraConfig | None = None) -> DualDiT:
    """A run's transformer without storage, adapters included; only what is trained requires gradients."""
    with torch.device("meta"):
        model = DualDiT(config)
    if lora is not None and lora.rank > 0:
        add_adapters(model, rank=lora.rank, alpha=lora.alpha)
    return model


def saved_bytes(cfg: DualRun, micro_batch_size: int, downsample: int = 8) -> tuple[int, int]:
    """Bytes kept for the backward pass of one joint block, and of its two inputs, at a micro-batch's shapes."""
    tokens = (cfg.data.image_size // (downsample * cfg.model.patch_size)) ** 2
    length = max(cfg.data.t2i_length, cfg.i2t_tokens)
    return _saved_bytes(cfg.model, compute_dtype(cfg.compute_dtype, GPU), micro_batch_size, tokens, length)


@cache
def _saved_bytes(
    config: DualDiTConfig, dtype: torch.dtype, micro_batch_size: int, tokens: int, length: int
) -> tuple[int, int]:
    with torch.device("meta"):
        width = config.hidden_size
        block = model_module.JointBlock(config, 0).to(dtype)
        image = torch.empty(micro_batch_size, tokens, width, dtype=dtype, requires_grad=True)
        text = torch.empty(micro_batch_size, length, width, dtype=dtype, requires_grad=True)
        cond = torch.empty(micro_batch_size, width, dtype=dtype, requires_grad=True)
    with mock.patch.object(model_module, "attend", _attend):
        tokens_of_both = model_module.Tokens(image, text, cond, micro_batch_size // 2)
        saved = _saved_for_backward(block, lambda: block([tokens_of_both]))
    return saved, _bytes(image) + _bytes(text)


def _saved_for_backward(module: nn.Module, run: Callable[[], object]) -> int:
    """Bytes that `run` keeps for its backward pass, the module's own parameters left out."""
    kept: dict[int, Tensor] = {}

    def note(tensor: Tensor) -> Tensor:
        kept[id(tensor.untyped_storage())] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        run()
    weights = {id(parameter.untyped_storage()) for parameter in module.parameters()}
    return sum(tensor.untyped_storage().nbytes() for key, tensor in kept.items() if key not in weights)


def text_encoder_bytes(cfg: DualRun, encoders: Encoders, shards: int, micro_batch_size: int) -> int:
    """T5 in bfloat16 (or 8 bit), the layers that are gathered or brought where it is sharded or offloaded, and, where
    the mask token's embedding is trained through it, what its layers keep for the backward pass."""
    encoder = encoders.text_model
    layer = encoder.encoder.block[0]
    depth = len(encoder.encoder.block)
    kept = 0
    if cfg.train_mask_embedding:
        num_i2t = max(1, round(micro_batch_size * cfg.objective.i2t_fraction))
        with torch.device("meta"):
            shape = (num_i2t, cfg.i2t_tokens, encoders.t5["d_model"])
            states = torch.empty(shape, dtype=torch.bfloat16, requires_grad=True)
        of_layer = _saved_for_backward(encoder, lambda: layer(states))
        recomputed = settled(cfg.parallel.checkpoint_activations)
        kept = depth * _bytes(states) + of_layer if recomputed else depth * of_layer
    total, two_layers = _bytes_of(encoder), 2 * _bytes_of(layer)
    held = {
        "whole": total,
        "int8": total // 2,
        "sharded": total // shards + two_layers,
        "offloaded": two_layers,
    }
    return held[settled(cfg.parallel.text_encoder)] + kept


def num_replicas_of(cfg: DualRun, num_gpus: int) -> int:
    """`parallel.num_replicas`; raises ValueError if it does not divide the GPUs."""
    replicas = settled(cfg.parallel.num_replicas)
    if num_gpus % replicas:
        raise ValueError(f"{num_gpus} GPUs cannot make {replicas} equal replicas")
    return replicas


def memory_per_gpu(cfg: DualRun, num_gpus: int, encoders: Encoders | None = None) -> MemoryReport:
    """What one of `num_gpus` holds at the peak of a step. The run's settings are settled, see `ddit.train.plan`.

    Weights, gradients, moments and the average are sharded; with LoRA all this is of the trained part alone, and each
    GPU keeps the frozen rest whole in the compute type. Over several micro-batches FSDP2 keeps the gradients whole and
    in float32 until the last one, unless `accumulate` is "sharded". Gathered are the weights of two blocks (one in use,
    one under way), or of all with `reshard_after_forward` off, and in both cases those outside the blocks, with the
    gradients of two blocks on their way to the shards.

    Raises:
        ValueError: if the GPUs cannot be split into the replicas.
    """
    encoders = encoders or Encoders()
    parallel, optimizer = cfg.parallel, cfg.optimizer
    shards = num_gpus // num_replicas_of(cfg, num_gpus)
    model = build_on_meta(cfg.model, cfg.lora)
    width = compute_dtype(cfg.compute_dtype, GPU).itemsize
    total = _numel(model)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    num_trained = sum(p.numel() for p in trained.values())
    a_block = _numel(model.transformer_blocks[0])
    outside = total - _numel(model.transformer_blocks)
    in_flight = cfg.model.depth if not parallel.reshard_after_forward else min(2, cfg.model.depth)
    part = cfg.global_batch_size // num_gpus
    micro = settled(cfg.micro_batch_size) or part
    block, inputs = saved_bytes(cfg, micro, encoders.image.downsample)
    recomputes = settled(parallel.checkpoint_activations)
    stored = 2 if optimizer.weights == "bfloat16" else 4
    is_whole = micro < part and settled(parallel.accumulate) == "whole"
    reduced = 0 if is_whole or cfg.lora.rank else 4 * (min(2, cfg.model.depth) * a_block + outside)
    pixels = min(micro * cfg.data.image_size**2, max(PIXELS_AT_ONCE, cfg.data.image_size**2))
    return MemoryReport(
        masters=stored * num_trained // shards + (width * (total - num_trained) if cfg.lora.rank else 0),
        gradients=4 * num_trained if is_whole else stored * num_trained // shards + reduced,
        optimizer=round(sum(p.numel() * _moment_bytes(cfg, n, p) for n, p in trained.items())) // shards,
        averages=stored * num_trained // shards,
        gathered=0 if cfg.lora.rank else width * (in_flight * a_block + outside),
        activations=cfg.model.depth * inputs + block if recomputes else cfg.model.depth * block,
        text_encoder=text_encoder_bytes(cfg, encoders, shards, micro),
        autoencoder=4 * encoders.image.parameters,
        # five maps of its first level, in float32
        encoding=0 if has_latents(cfg) else 5 * 4 * encoders.image.width * pixels,
    )


def _moment_bytes(cfg: DualRun, name: str, parameter: Tensor) -> float:
    """Bytes of the optimiser's state for each number of a parameter."""
    if cfg.optimizer.name == "adamw8bit" and parameter.ndim == 2:
        return 2.03
    return 4 if cfg.optimizer.name == "muon" and is_for_muon(name, parameter) else 8


def has_latents(cfg: DualRun) -> bool:
    """Whether all sources have cached latents, so that training encodes no image."""
    return all(getattr(source, "latents", None) for source in (*cfg.data.t2i, *cfg.data.i2t))


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _bytes_of(module: nn.Module) -> int:
    return sum(_bytes(parameter) for parameter in module.parameters())


def _numel(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def sharding_of(cfg: DualRun, num_gpus: int) -> str:
    """How the model lies on the GPUs: none, LoRA, FSDP2, or HSDP with its replicas."""
    if cfg.lora.rank:
        return "LoRA"
    if num_gpus == 1:
        return "none"
    replicas = num_replicas_of(cfg, num_gpus)
    return "FSDP2" if replicas == 1 else f"HSDP {replicas} x {num_gpus // replicas}"
