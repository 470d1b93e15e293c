"""Memory a GPU of the two-billion model's recipes, computed on the meta device: nothing is allocated, no GPU is needed.

    python benchmarks/memory_per_gpu.py

Prints the table of memory_per_gpu.md. Counted are weights, gradients, optimiser, averages, gathered blocks, activations
and the frozen encoders; not counted are the allocator's slack, kernels' workspace and communication buffers.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from transformers import T5Config, T5EncoderModel

from ddit.config.runs import DualRun
from ddit.devices import compute_dtype
from ddit.model import DualDiT
from ddit.model import dual_dit as model_module
from ddit.recipes import build

GIB = 2**30
T5_XXL: dict[str, Any] = {
    "vocab_size": 32128, "d_model": 4096, "d_kv": 64, "num_heads": 64, "d_ff": 10240, "num_layers": 24,
    "feed_forward_proj": "gated-gelu", "is_encoder_decoder": False, "use_cache": False, "dropout_rate": 0.0,
}  # fmt: skip
VAE_BYTES = 83_819_683 * 2
"""SD3's autoencoder in bfloat16."""

ROWS = [
    ("sd3-medium-stage1", 1, 1),
    ("sd3-medium-stage1", 8, 1),
    ("sd3-medium-stage1", 32, 1),
    ("sd3-medium-stage1", 32, 4),
    ("sd3-medium-stage2", 32, 4),
    ("sd3-medium-stage2_512", 32, 4),
    ("sd3-medium-stage3", 8, 1),
    ("sd3-medium-stage3", 16, 2),
    ("sd3-medium-lora", 1, 1),
    ("sd3.5-medium-stage1", 8, 1),
]
"""Recipe, GPUs, replicas (1: FSDP2 over all; more: HSDP)."""


@dataclass(frozen=True)
class MemoryReport:
    """Bytes a GPU, by their purpose; without what allocators, kernels and communication add."""

    masters: int
    gradients: int
    optimizer: int
    averages: int
    gathered: int
    activations: int
    text_encoder: int
    autoencoder: int

    @property
    def total(self) -> int:
        return sum(vars(self).values())


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


def build_on_meta(cfg: DualRun) -> DualDiT:
    """The run's transformer without storage."""
    with torch.device("meta"):
        return DualDiT(cfg.model)


def saved_bytes(cfg: DualRun, micro_batch_size: int) -> tuple[int, int]:
    """Bytes kept for the backward pass of one joint block, and of its two inputs, at a micro-batch's shapes."""
    with torch.device("meta"):
        width, dtype = cfg.model.hidden_size, compute_dtype(cfg.compute_dtype, torch.device("cuda"))
        block = model_module.JointBlock(cfg.model, 0).to(dtype)
        image = torch.empty(micro_batch_size, num_image_tokens(cfg), width, dtype=dtype, requires_grad=True)
        length = max(cfg.data.t2i_length, cfg.data.i2t_length)
        text = torch.empty(micro_batch_size, length, width, dtype=dtype, requires_grad=True)
        cond = torch.empty(micro_batch_size, width, dtype=dtype, requires_grad=True)
    with mock.patch.object(model_module, "attend", _attend):
        saved = _saved_for_backward(block, lambda: block(image, text, cond, micro_batch_size // 2))
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


def text_encoder_bytes(cfg: DualRun, shards: int, micro_batch_size: int) -> int:
    """T5-XXL in bfloat16 (or 8 bit), its gathered layers where it is sharded, and, where the mask token's embedding is
    trained through it, what its layers keep for the backward pass."""
    with torch.device("meta"):
        encoder = T5EncoderModel(T5Config(**T5_XXL)).requires_grad_(False)
        nn.Module.to(encoder, torch.bfloat16)
        layer = encoder.encoder.block[0]
        num_i2t = round(micro_batch_size * cfg.objective.i2t_fraction)
        states = torch.empty(num_i2t, cfg.data.i2t_length, 4096, dtype=torch.bfloat16, requires_grad=True)
    total, depth = _bytes_of(encoder), T5_XXL["num_layers"]
    kept = 0
    if cfg.train_mask_embedding:
        of_layer = _saved_for_backward(encoder, lambda: layer(states))
        recomputed = cfg.parallel.checkpoint_activations
        kept = depth * _bytes(states) + of_layer if recomputed else depth * of_layer
    held = {
        "whole": total,
        "int8": total // 2,
        "sharded": total // shards + 2 * _bytes_of(layer),
    }[cfg.parallel.text_encoder]
    return held + kept


def num_image_tokens(cfg: DualRun, downsample: int = 8) -> int:
    """Tokens of one image; SD3's autoencoder reduces each side by 8."""
    return (cfg.data.image_size // (downsample * cfg.model.patch_size)) ** 2


def memory_per_gpu(cfg: DualRun, num_gpus: int) -> MemoryReport:
    """What one of `num_gpus` holds at the peak of a step; raises ValueError if they cannot be split into replicas.

    Parameters, gradients, Adam's two moments and the average are float32 and sharded; with LoRA all this is of the
    trained part alone, and each GPU keeps the frozen rest whole in the compute type. Gathered are the weights of two
    blocks (one in use, one under way), or of all with `reshard_after_forward` off, and in both cases those outside the
    blocks.
    """
    parallel = cfg.parallel
    if num_gpus % parallel.num_replicas:
        raise ValueError(f"{num_gpus} GPUs cannot make {parallel.num_replicas} equal replicas")
    shards = num_gpus // parallel.num_replicas
    model = build_on_meta(cfg)
    width = compute_dtype(cfg.compute_dtype, torch.device("cuda")).itemsize
    total = sum(parameter.numel() for parameter in model.parameters())
    a_block = sum(parameter.numel() for parameter in model.transformer_blocks[0].parameters())
    outside = total - sum(parameter.numel() for parameter in model.transformer_blocks.parameters())
    trained = total if cfg.lora.rank == 0 else _lora_parameters(cfg, model)
    in_flight = cfg.model.depth if not parallel.reshard_after_forward else min(2, cfg.model.depth)
    micro = cfg.micro_batch_size or cfg.global_batch_size // num_gpus
    block, inputs = saved_bytes(cfg, micro)
    depth = cfg.model.depth
    activations = depth * inputs + block if parallel.checkpoint_activations else depth * block
    return MemoryReport(
        masters=4 * trained // shards + (width * total if cfg.lora.rank else 0),
        gradients=4 * trained // shards,
        optimizer=8 * trained // shards,
        averages=4 * trained // shards,
        gathered=0 if cfg.lora.rank else width * (in_flight * a_block + outside),
        activations=activations,
        text_encoder=text_encoder_bytes(cfg, shards, micro),
        autoencoder=VAE_BYTES,
    )


def _lora_parameters(cfg: DualRun, model: DualDiT) -> int:
    """Adapters on attention and MLP of both streams, and the parts that are trained whole."""
    adapted = [
        module
        for name, module in model.transformer_blocks.named_modules()
        if isinstance(module, nn.Linear) and ".norm" not in name
    ]
    adapters = sum(cfg.lora.rank * (module.in_features + module.out_features) for module in adapted)
    return adapters + sum(p.numel() for p in model.text_proj_out.parameters()) + model.null_image_embd.numel()


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _bytes_of(module: nn.Module) -> int:
    return sum(_bytes(parameter) for parameter in module.parameters())


def main() -> None:
    parts = [field.name for field in fields(MemoryReport)]
    print(
        "| recipe | GPUs | sharding | micro batch |",
        " | ".join(part.replace("_", " ") for part in parts),
        "| total |",
    )
    print("|" + "---|" * (len(parts) + 5))
    for name, num_gpus, num_replicas in ROWS:
        config = build(name, "runs")
        assert isinstance(config, DualRun)
        config = replace(config, parallel=replace(config.parallel, num_replicas=num_replicas))
        report = memory_per_gpu(config, num_gpus)
        if config.lora.rank:
            sharding = "LoRA"
        else:
            sharding = (
                "none"
                if num_gpus == 1
                else "FSDP2"
                if num_replicas == 1
                else f"HSDP {num_replicas} x {num_gpus // num_replicas}"
            )
        figures = [f"{getattr(report, part) / GIB:.2f}" for part in parts]
        print(
            f"| `{name}` | {num_gpus} | {sharding} | {config.micro_batch_size} |",
            " | ".join(figures),
            f"| **{report.total / GIB:.1f}** |",
        )


if __name__ == "__main__":
    main()
