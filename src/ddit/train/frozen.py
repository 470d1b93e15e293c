"""The frozen encoders of a run: loaded, checked, put on the ranks, and used on images."""

import functools

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ddit.config.runs import DualRun, ParallelConfig
from ddit.devices import Ranks, compute_dtype
from ddit.model import DualDiTConfig
from ddit.model.encoders import ImageCodec, TextCodec
from ddit.model.folders import resolve
from ddit.model.int8 import quantize_text_encoder
from ddit.model.loading import load_image_codec, load_text_codec
from ddit.train.batch import Images
from ddit.train.parallel import make_mesh, shard_frozen


def load_encoders(cfg: DualRun, device: torch.device) -> tuple[ImageCodec, TextCodec]:
    """The autoencoder in float32, and T5 in the type of computation.

    Raises:
        ValueError: in one line, if the run names none, if they cannot be loaded or do not fit the model.
    """
    for name in ("vae", "text"):
        if getattr(cfg, name) is None and cfg.init is None:
            raise ValueError(f"neither {name} nor init is set: the run has no encoder to take")
    vae, text = (resolve(name or cfg.init or "") for name in (cfg.vae, cfg.text))
    # A T5 that is to be sharded or quantised comes to the device in parts.
    text_device = device if cfg.parallel.text_encoder == "whole" else torch.device("cpu")
    codec = load_text_codec(text, dtype=compute_dtype(cfg.compute_dtype, device), device=text_device)
    images = load_image_codec(vae, device=device)
    _check_sizes(cfg.model, images, codec)
    return images, codec


def _check_sizes(model: DualDiTConfig, images: ImageCodec, codec: TextCodec) -> None:
    """The text head may have fewer rows than T5 has embeddings, but not fewer than there are tokens."""
    for key, wanted, found in (
        ("model.in_channels", images.channels, model.in_channels),
        ("model.text_dim", codec.width, model.text_dim),
    ):
        if wanted != found:
            raise ValueError(f"{key} is {found}, but the encoders need {wanted}")
    least, most = codec.vocab_size, codec.encoder.config.vocab_size
    if not least <= model.vocab_size <= most:
        raise ValueError(f"model.vocab_size is {model.vocab_size}, but the encoders need {least} to {most}")


def shard_text_encoder(codec: TextCodec, cfg: ParallelConfig, ranks: Ranks, *, has_gradients: bool) -> None:
    """Puts the frozen T5 on the ranks as `cfg.text_encoder` has it.

    has_gradients: gradients pass through it to the mask token's embedding; with `checkpoint_activations` its blocks are
        then recomputed in the backward pass as well.
    """
    blocks = list(codec.encoder.encoder.block)
    if has_gradients and cfg.checkpoint_activations:
        for block in blocks:
            block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)
    if cfg.text_encoder == "int8":
        quantize_text_encoder(codec)
        codec.to(device=ranks.device)
    elif cfg.text_encoder == "sharded":
        shard_frozen(codec.encoder, blocks, make_mesh(ranks, cfg.num_replicas))


def clean_latents(images: Images, codec: ImageCodec) -> Tensor:
    """Clean latents (n, C, h, w) in float32: cached, or encoded here; a sample of their distribution, or its mode."""
    if images.mean is not None:
        mean, std = images.mean, images.std
    else:
        assert images.pixels is not None
        mean, std = codec.encode_distribution(images.pixels)
    mean = mean.to(codec.device, torch.float32)
    if images.sampling_noise is None or std is None:
        return mean
    return mean + std.to(mean) * images.sampling_noise.to(mean)
