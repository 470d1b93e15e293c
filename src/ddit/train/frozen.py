"""The frozen encoders of a run: loaded, checked, put on the ranks, and used on images."""

import functools
import itertools
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ddit.config.runs import DualRun, ParallelConfig, settled
from ddit.devices import Ranks, compute_dtype
from ddit.model import DualDiTConfig
from ddit.model.encoders import ImageCodec, TextCodec
from ddit.model.folders import resolve
from ddit.model.loading import load_image_codec, load_text_codec
from ddit.train.batch import Batch, Images, text_of
from ddit.train.parallel import make_mesh, shard_frozen

_TEXTS_AT_ONCE = 64


def load_encoders(cfg: DualRun, device: torch.device) -> tuple[ImageCodec, TextCodec]:
    """The autoencoder in float32, and T5 in the type of computation.

    Raises:
        ValueError: in one line, if the run names none, if they cannot be loaded or do not fit the model.
    """
    for name in ("vae", "text"):
        if getattr(cfg, name) is None and cfg.init is None:
            raise ValueError(f"neither {name} nor init is set: the run has no encoder to take")
    vae, text = (resolve(name or cfg.init or "") for name in (cfg.vae, cfg.text))
    # A T5 that is to be sharded or offloaded comes to the device in parts.
    how = settled(cfg.parallel.text_encoder)
    codec = load_text_codec(
        text,
        dtype=compute_dtype(cfg.compute_dtype, device),
        device=torch.device("cpu") if how in ("sharded", "offloaded") else device,
        int8=how == "int8",
    )
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
    if has_gradients and settled(cfg.checkpoint_activations):
        for block in blocks:
            block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)
    if cfg.text_encoder == "offloaded":
        if has_gradients:
            raise ValueError(
                "parallel.text_encoder=offloaded is for a frozen encoder, but train_mask_embedding is on"
            )
        codec.offload_blocks(ranks.device)
    elif cfg.text_encoder == "sharded":
        shard_frozen(codec.encoder, blocks, make_mesh(ranks, settled(cfg.num_replicas)))
    elif cfg.text_encoder == "whole" and cfg.compile_blocks and not has_gradients:
        codec.compile()


def encode_ahead(
    steps: Iterator[tuple[int, list[Batch]]], codec: TextCodec, num_steps: int, model: DualDiTConfig
) -> Iterator[tuple[int, list[Batch]]]:
    """The same steps with the states of their texts, computed `num_steps` steps at a time and kept in main memory.

    A batch is settled before its step, masks included, so that these are the states that the step would compute. A text
    that occurs several times is encoded once.
    """
    while group := list(itertools.islice(steps, num_steps)):
        batches = [batch for _, micro_batches in group for batch in micro_batches]
        t2i = iter(_states([batch.t2i.prompt_ids for batch in batches if batch.t2i is not None], codec))
        read = [batch.i2t for batch in batches if batch.i2t is not None]
        if model.text_block_size or model.text_input == "embeddings":
            texts = (text_of(part, model.text_block_size) for part in read)
            with codec.on_device():
                i2t = iter([codec.i2t_states(*text, model.text_input).cpu() for text in texts])
        else:
            i2t = iter(_states([part.noisy_ids for part in read], codec))
        for step, micro_batches in group:
            yield (
                step,
                [
                    batch._replace(
                        t2i=None if batch.t2i is None else batch.t2i._replace(states=next(t2i)),
                        i2t=None if batch.i2t is None else batch.i2t._replace(states=next(i2t)),
                    )
                    for batch in micro_batches
                ],
            )


def _states(ids: list[Tensor], codec: TextCodec) -> list[Tensor]:
    """States (n, L, D) on the CPU of each of several batches of ids (n, L)."""
    if not ids:
        return []
    texts, places = torch.cat(ids).unique(dim=0, return_inverse=True)
    with codec.on_device():
        states = torch.cat([codec.states(part).cpu() for part in texts.split(_TEXTS_AT_ONCE)])
    return [states[part] for part in places.split([len(part) for part in ids])]


def clean_latents(images: Images, codec: ImageCodec) -> Tensor:
    """Clean latents (n, C, h, w) in float32: cached, or encoded here; a sample of their distribution, or its mode.

    Null images are not encoded; their latents are zeros.
    """
    if images.pixels is not None and images.is_null is not None and images.is_null.any():
        return _latents_of_some(images, ~images.is_null, codec)
    if images.mean is not None:
        mean, std = images.mean, images.std
    else:
        assert images.pixels is not None
        mean, std = codec.encode_distribution(images.pixels)
    mean = mean.to(codec.device, torch.float32)
    if images.sampling_noise is None or std is None:
        return mean
    return mean + std.to(mean) * images.sampling_noise.to(mean)


def _latents_of_some(images: Images, there: Tensor, codec: ImageCodec) -> Tensor:
    assert images.pixels is not None
    height, width = (side // codec.downsample for side in images.pixels.shape[-2:])
    latents = torch.zeros(len(there), codec.channels, height, width, device=codec.device)
    if there.any():
        some = Images(*(None if part is None else part[there] for part in images[:4]))
        latents[there.to(codec.device)] = clean_latents(some, codec)
    return latents
