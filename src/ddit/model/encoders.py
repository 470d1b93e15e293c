"""The frozen encoders: images <-> latents and texts <-> ids -> states.

The only file that knows the latents' shift and scale, the tokenizer and the mask token.
"""

import contextlib
import copy
import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, T5EncoderModel
from transformers.utils import logging as transformers_logging

from ddit.model import vocabulary
from ddit.model.autoencoder import DiagonalGaussian, PatchAutoencoder, downsample_of
from ddit.model.config import TextInput
from ddit.model.embeddings import position_sinusoids
from ddit.model.offload import offload_blocks, visiting
from ddit.model.t5 import load_encoder, load_tokenizer, save_encoder
from ddit.model.t5_blocks import T5Blocks
from ddit.model.text_blocks import BlockText

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny

TILE_SIZE = 1024
"""Pixels along a side above which the autoencoder works tile by tile, overlapping and blended at the seams."""
PIXELS_AT_ONCE = 2 * 512**2
"""Pixels of a batch that the autoencoder encodes at a time: SD3's holds 1.3 GB in float32 meanwhile."""
NO_VARIANCE = -60.0
"""Log-variance of the latents of an autoencoder that has no distribution."""
MASK_TOKEN = "<extra_id_0>"


class ImageCodec:
    """Pixels (B, 3, H, W) in [-1, 1] <-> latents (B, channels, H/downsample, W/downsample), about N(0, 1).

    Wraps an `AutoencoderKL`, an `AutoencoderTiny`, whose latents have no variance, or a `PatchAutoencoder`.
    `offload_device` is where the weights are while they are used, if they are to stay elsewhere.
    `(z - shift_factor) * scaling_factor` is applied here, as Stable Diffusion 3 does; a configuration without a shift
    means 0.
    """

    def __init__(self, autoencoder: "AutoencoderKL | AutoencoderTiny | PatchAutoencoder"):
        self.autoencoder: Any = autoencoder.eval().requires_grad_(False)
        self.offload_device: torch.device | None = None
        config = autoencoder.config
        self.channels: int = config["latent_channels"]
        self.scale: float = config["scaling_factor"]
        self.shift: float = config.get("shift_factor") or 0.0
        self.downsample: int = downsample_of(config)
        if "mid_block_add_attention" in config:  # AutoencoderKL alone: attention's memory grows fastest
            self.autoencoder.enable_tiling()  # of images above this size alone
            self.autoencoder.tile_sample_min_size = TILE_SIZE
            self.autoencoder.tile_latent_min_size = TILE_SIZE // self.downsample

    @classmethod
    def from_pretrained(
        cls, path: str | Path, dtype: torch.dtype = torch.float32, *, variant: str | None = None
    ) -> "ImageCodec":
        """Loads a folder of safetensors with a `config.json`, which names the class.

        Raises ValueError if that class is none of the three.
        """
        name = json.loads((Path(path) / "config.json").read_text()).get("_class_name")
        if name == "PatchAutoencoder":
            return cls(PatchAutoencoder.from_pretrained(path, dtype, variant=variant))
        # each takes seconds to import
        if name == "AutoencoderKL":
            from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL as Class
        elif name == "AutoencoderTiny":
            from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny as Class
        else:
            raise ValueError(
                f"{path}: the autoencoder class {name!r} is none of AutoencoderKL, AutoencoderTiny and PatchAutoencoder"
            )
        autoencoder = Class.from_pretrained(
            path, torch_dtype=dtype, variant=variant, use_safetensors=True, low_cpu_mem_usage=False
        )
        return cls(autoencoder)

    def save_pretrained(self, path: str | Path) -> None:
        self.autoencoder.save_pretrained(path)

    def to(self, *args, **kwargs) -> "ImageCodec":
        """Moves the autoencoder, with the arguments of `nn.Module.to`."""
        nn.Module.to(self.autoencoder, *args, **kwargs)  # diffusers' own `to` prints a warning for any dtype
        return self

    @property
    def device(self) -> torch.device:
        return next(self.autoencoder.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.autoencoder.parameters()).dtype

    def on_device(self) -> AbstractContextManager[None]:
        """Within this context the autoencoder is on `offload_device`, if there is one, else where it is."""
        return (
            nullcontext() if self.offload_device is None else visiting(self.autoencoder, self.offload_device)
        )

    def _posterior(self, pixels: Tensor) -> Any:
        height, width = pixels.shape[-2:]
        if height % self.downsample or width % self.downsample:
            raise ValueError(
                f"height and width must be multiples of {self.downsample}, got {height} x {width}"
            )
        with self.on_device():
            parts = pixels.split(max(1, PIXELS_AT_ONCE // (height * width)))
            found = [self._posterior_of(part.to(self.device)) for part in parts]
        if len(found) == 1:
            return found[0]
        return DiagonalGaussian(
            *(torch.cat([getattr(f, name) for f in found]) for name in ("mean", "logvar"))
        )

    def _posterior_of(self, pixels: Tensor) -> Any:
        if pixels.dtype == torch.uint8:
            pixels = pixels.float() / 127.5 - 1
        encoded = self.autoencoder.encode(pixels.to(self.dtype))
        if hasattr(encoded, "latent_dist"):
            return encoded.latent_dist
        return DiagonalGaussian(encoded.latents, torch.full_like(encoded.latents, NO_VARIANCE))

    @torch.no_grad()
    def encode(self, pixels: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Latents of pixels (B, 3, H, W): the distribution's mode, or a sample of it if a generator is given.

        Pixels are floats in [-1, 1], or uint8. Raises ValueError if `downsample` does not divide height and width.
        """
        posterior = self._posterior(pixels)
        latents = posterior.mode() if generator is None else posterior.sample(generator)
        return (latents - self.shift) * self.scale

    @torch.no_grad()
    def encode_distribution(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the latents of pixels as in `encode`: mean + std * normal is a sample."""
        posterior = self._posterior(pixels)
        return (posterior.mean - self.shift) * self.scale, (0.5 * posterior.logvar).exp() * self.scale

    def fingerprint(self) -> str:
        """16 hex digits of the weights, the same whether they were loaded in float32 or in bfloat16."""
        digest = hashlib.sha256(f"{self.scale} {self.shift}".encode())
        for name, tensor in sorted(self.autoencoder.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.to("cpu", torch.bfloat16).contiguous().view(torch.int16).numpy().tobytes())
        return digest.hexdigest()[:16]

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Pixels (B, 3, H, W), clamped to [-1, 1], of latents (B, channels, H/downsample, W/downsample)."""
        with self.on_device():
            latents = latents.to(self.device, self.dtype) / self.scale + self.shift
            return self.autoencoder.decode(latents).sample.clamp(-1.0, 1.0)


class TextCodec:
    """Texts <-> token ids, and token ids -> hidden states (B, L, D) of a frozen T5 encoder.

    `vocab_size` is one more than the tokenizer's largest id, `offload_device` is as in `ImageCodec`. Raises
    ValueError if the tokenizer lacks `<extra_id_0>` (which serves as the mask token) or the end-of-text token, or if
    the encoder has
    fewer embeddings than the tokenizer has tokens.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, encoder: T5EncoderModel):
        self.tokenizer = tokenizer
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()
        self.encoder = encoder.eval().requires_grad_(False)
        self.offload_device: torch.device | None = None
        self._trains_mask = False
        ids = tokenizer.get_vocab()
        if MASK_TOKEN not in ids:
            raise ValueError(f"the tokenizer has no token {MASK_TOKEN}, which serves as the mask")
        if tokenizer.eos_token is None:
            raise ValueError("the tokenizer has no end-of-text token")
        self.mask_token_id: int = ids[MASK_TOKEN]
        self.eos_token_id: int = ids[str(tokenizer.eos_token)]
        self.vocab_size: int = max(ids.values()) + 1
        if self.vocab_size > encoder.config.vocab_size:
            raise ValueError(
                f"the tokenizer has {self.vocab_size} tokens, "
                f"the encoder only {encoder.config.vocab_size} embeddings"
            )

    @classmethod
    def from_pretrained(
        cls,
        tokenizer_path: str | Path,
        encoder_path: str | Path,
        dtype: torch.dtype = torch.float32,
        *,
        device: torch.device | str = "cpu",
        int8: bool = False,
    ) -> "TextCodec":
        """Loads both folders (`t5.load_tokenizer`, `t5.load_encoder`)."""
        with quiet_transformers():
            tokenizer = load_tokenizer(Path(tokenizer_path))
            return cls(tokenizer, load_encoder(Path(encoder_path), dtype, device, int8=int8))

    def save_pretrained(
        self, tokenizer_path: str | Path, encoder_path: str | Path, *, dtype: torch.dtype | None = None
    ) -> None:
        """Writes both folders; dtype: of the encoder's weights but those in 8 bit, None keeps each as it is."""
        for path in (tokenizer_path, encoder_path):
            Path(path).mkdir(parents=True, exist_ok=True)
        with quiet_transformers():
            self.tokenizer.save_pretrained(tokenizer_path)
            save_encoder(Path(encoder_path), self.encoder, dtype)

    def to(self, *args, **kwargs) -> "TextCodec":
        """Moves the encoder, with the arguments of `nn.Module.to`."""
        self.encoder.to(*args, **kwargs)
        return self

    def offload_blocks(self, device: torch.device) -> None:
        """Has the encoder's blocks on `device` one at a time, and the rest of it while it is used; see `offload`."""
        offload_blocks(list(self.encoder.encoder.block), device)
        self.offload_device = device

    def compile(self) -> None:
        """Has the encoder's blocks compiled when they first run."""
        for block in self.encoder.encoder.block:
            block.forward = torch.compile(block.forward)

    @property
    def device(self) -> torch.device:
        return self.encoder.device

    @property
    def dtype(self) -> torch.dtype:
        return self.encoder.dtype

    @property
    def width(self) -> int:
        """Width of the hidden states, D."""
        return self.encoder.config.d_model

    def on_device(self) -> AbstractContextManager[None]:
        """Within this context the encoder is on the device that it `offload_device`, if any, else where it is."""
        return nullcontext() if self.offload_device is None else visiting(self.encoder, self.offload_device)

    def token_ids(self, text: str) -> list[int]:
        """The ids of a text, without an end-of-text token.

        Raises ValueError if the text spells the mask token or the end-of-text token, or holds a lone surrogate.
        """
        _check_characters(text)
        # The backend's own method: quicker than the tokenizer's, and it starts no threads, beside which a loader could
        # not fork its workers without a warning.
        ids = self.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
        for reserved in (self.mask_token_id, self.eos_token_id):
            if reserved in ids:
                token = self.tokenizer.convert_ids_to_tokens(reserved)
                raise ValueError(f"a text may not contain the reserved token {token}: {text!r}")
        return ids

    def without_encoder(self) -> "TextCodec":
        """The same tokenizer alone, for the processes that load data: it has no states and weighs nothing."""
        light = copy.copy(self)
        del light.encoder
        return light

    def tokenize(self, texts: Sequence[str], length: int, *, add_eos: bool = True) -> Tensor:
        """Ids (B, length): each text cut to `length` and padded with the end-of-text token.

        With `add_eos` a text that is cut ends with an end-of-text token all the same, as from T5's tokenizer.
        """
        keep = length - 1 if add_eos else length
        return torch.tensor(
            [self.pad(self.token_ids(text)[:keep], length, self.eos_token_id) for text in texts]
        )

    @staticmethod
    def pad(ids: Sequence[int], length: int, filler: int) -> list[int]:
        """`ids`, filled up with `filler` to `length`."""
        return [*ids, *[filler] * (length - len(ids))]

    def decode(self, ids: Tensor | Sequence[int]) -> str:
        """The text of ids (L,) up to the first end-of-text token, without special tokens."""
        ids = ids.tolist() if isinstance(ids, Tensor) else list(ids)
        if self.eos_token_id in ids:
            ids = ids[: ids.index(self.eos_token_id)]
        text = self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text.strip()

    def unknown_words(self, text: str) -> list[str]:
        """The words of a text that the model cannot know, in order, each once; see `vocabulary.unknown_words`."""
        _check_characters(text)
        return vocabulary.unknown_words(self.tokenizer, text)

    def similar_words(self, word: str) -> list[str]:
        """Known words that are spelt like it, where a list of whole words is known; at most two."""
        return vocabulary.similar_words(self.tokenizer, word)

    def states(self, input_ids: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Hidden states (B, L, D) of ids (B, L); every position attends to every other, padding included.

        lengths: (B,), where rows were filled up to be of one length: the fillers are attended to by none, and their
            own states mean nothing.

        Without gradients, unless within `embed_mask_as` a vector that has them.
        """
        with self.on_device(), torch.set_grad_enabled(self._trains_mask and torch.is_grad_enabled()):
            seen = None
            if lengths is not None:
                seen = torch.arange(input_ids.shape[1], device=self.device) < lengths.to(self.device)[:, None]
            encoded = self.encoder(input_ids=input_ids.to(self.device), attention_mask=seen)
            return encoded.last_hidden_state

    def i2t_states(
        self, ids: Tensor, text: BlockText | None = None, text_input: TextInput = "encoder"
    ) -> Tensor:
        """What a model's text stream is fed of i2t texts, ids (B, S) -> (B, S, D).

        text: how the tokens of texts in blocks lie and see each other.
        text_input: "encoder": states. "embeddings": a token's embedding, brought to a mean square of 1 as states about
            have it, and the sinusoids of its position.
        """
        if text is None and text_input == "encoder":
            return self.states(ids)
        with self.on_device(), torch.set_grad_enabled(self._trains_mask and torch.is_grad_enabled()):
            ids = ids.to(self.device)
            if text_input == "encoder":
                assert text is not None
                return T5Blocks(self.encoder).states(ids, text.to(self.device))
            embedded = F.rms_norm(self.encoder.encoder.embed_tokens(ids), (self.width,), eps=1e-6)
            positions = torch.arange(ids.shape[1])[None] if text is None else text.positions
            return embedded + position_sinusoids(positions.to(self.device), self.width).to(embedded.dtype)

    @contextlib.contextmanager
    def embed_mask_as(self, vector: Tensor) -> Iterator[None]:
        """Within this context the mask token is embedded as `vector` (D,), through which gradients flow."""

        def put_in(module: nn.Module, arguments: tuple[Tensor], embedded: Tensor) -> Tensor:
            is_mask = (arguments[0] == self.mask_token_id)[..., None]
            return torch.where(is_mask, vector.to(embedded.dtype), embedded)

        handle = self.encoder.encoder.embed_tokens.register_forward_hook(put_in)
        self._trains_mask = vector.requires_grad
        try:
            yield
        finally:
            self._trains_mask = False
            handle.remove()

    @torch.no_grad()
    def set_mask_embedding(self, vector: Tensor) -> None:
        """Replaces the mask token's embedding by `vector` (D,). Raises ValueError for another shape."""
        if vector.shape != (self.width,):
            raise ValueError(f"a mask embedding has shape ({self.width},), got {tuple(vector.shape)}")
        row = self.encoder.get_input_embeddings().weight[self.mask_token_id]
        row.copy_(vector.to(row))


def _check_characters(text: str) -> None:
    """Raises ValueError for half of a surrogate pair, which JSON and Python can hold, but no file and no tokenizer."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        origin = (
            f"the byte 0x{code - 0xDC00:02x}, not UTF-8"
            if 0xDC80 <= code <= 0xDCFF
            else "half of a character"
        )
        raise ValueError(
            f"the text holds a lone surrogate (\\u{code:04x}), which is no character ({origin}): {text!r}"
        ) from None


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silences transformers' progress bars and remarks on tokenizer classes while a folder is used."""
    verbosity = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
