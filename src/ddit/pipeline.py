"""The trained system in one object: draw pictures from text, and write captions, answers and missing words.

Everything is batched and seeded by sample: sample i draws its noise and its tokens from a generator of its
own, seeded with `seed + i` on the CPU, so that a batch gives what single calls give, on any device.
"""

import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import torch
from PIL import Image
from torch import Tensor, nn

from ddit import folders
from ddit.batching import StepCallback, as_list, matched, parts
from ddit.devices import find_device, find_dtype
from ddit.flow import sample_latents
from ddit.folders import ModelSettings
from ddit.images import ImageSource, fit_image, read_image, to_images, to_tensor
from ddit.lora import load_adapters, merge_adapters
from ddit.masked import Order, sample_text
from ddit.model import DualDiT, ImageCache
from ddit.weights import load_mask_embedding

if TYPE_CHECKING:  # transformers and diffusers take seconds to import
    from ddit.encoders import ImageCodec, TextCodec
    from ddit.prompts import TokenizedPrompt


@dataclass(eq=False)
class Pipeline:
    """A D-DiT with its frozen encoders and its settings.

    Attributes:
        transformer: the two-headed model.
        image_codec, text_codec: pictures <-> latents, text <-> tokens and states.
        settings: defaults of sampling, lengths, the prompts' templates.
    """

    transformer: DualDiT
    image_codec: "ImageCodec"
    text_codec: "TextCodec"
    settings: ModelSettings

    def __post_init__(self) -> None:
        from ddit.prompts import PromptStyle

        self.style = PromptStyle.from_dict(self.settings.prompt_style)
        self.transformer.eval().requires_grad_(False)
        config, images, text = self.transformer.config, self.image_codec, self.text_codec
        if config.text_dim != text.width:
            raise ValueError(
                f"the transformer wants text states of {config.text_dim}, the encoder has {text.width}"
            )
        if config.in_channels != images.channels:
            raise ValueError(
                f"the transformer wants {config.in_channels} latent channels, not {images.channels}"
            )
        if config.vocab_size < text.vocab_size:
            raise ValueError(f"the text head has {config.vocab_size} rows for {text.vocab_size} tokens")

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | os.PathLike[str] = "mini",
        *,
        dtype: str | torch.dtype | None = None,
        device: str | torch.device | None = None,
        mask_embedding: str | os.PathLike[str] | None = None,
        adapter: str | os.PathLike[str] | None = None,
    ) -> Self:
        """Loads "mini", a folder in the diffusers layout, or a repository of the hub.

        A folder of SD3 or SD3.5 gives a model to train: its pictures are SD3's without CLIP, its text is
        noise (`weights.from_sd3`; the new weights are those of seed 0).

        Args:
            dtype: of all parts; by default bfloat16 on CUDA and float32 elsewhere.
            device: by default CUDA where there is one.
            mask_embedding: file of a trained embedding of T5's mask token (`weights.load_mask_embedding`).
            adapter: folder of LoRA adapters, merged into the transformer (`lora.load_adapters`).

        Raises:
            ValueError: in one line; unknown model, dtype or device, or a folder that is incomplete or broken.
        """
        device = find_device(device)
        dtype = find_dtype(dtype, device)
        embedding = None if mask_embedding is None else load_mask_embedding(mask_embedding)
        loaded = folders.load_parts(folders.resolve(name_or_path), dtype=dtype, device=device)
        if embedding is not None:
            loaded.text_codec.set_mask_embedding(embedding)
        if adapter is not None:
            load_adapters(loaded.transformer, adapter)
            merge_adapters(loaded.transformer)
        return cls(*loaded)

    def save_pretrained(
        self, folder: str | os.PathLike[str], *, dtype: str | torch.dtype | None = None
    ) -> None:
        """Writes a folder that `from_pretrained` loads (`folders.save_pipeline`); None keeps the dtype."""
        folders.save_pipeline(
            folder,
            transformer=self.transformer,
            image_codec=self.image_codec,
            text_codec=self.text_codec,
            settings=self.settings,
            dtype=None if dtype is None else find_dtype(dtype),
        )

    def to(self, device: str | torch.device | None = None, dtype: str | torch.dtype | None = None) -> Self:
        """Moves all parts to a device and a dtype; None leaves that one as it is."""
        device = self.device if device is None else find_device(device)
        dtype = self.dtype if dtype is None else find_dtype(dtype)
        for module in (self.transformer, self.image_codec.autoencoder, self.text_codec.encoder):
            nn.Module.to(module, device=device, dtype=dtype)  # past diffusers' own `to`, which prints
        return self

    @property
    def device(self) -> torch.device:
        return self.transformer.context_embedder.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.transformer.context_embedder.weight.dtype

    # --- text to image ---

    @torch.inference_mode()
    def generate(
        self,
        prompts: str | Sequence[str],
        *,
        seed: int = 0,
        num_steps: int | None = None,
        guidance_scale: float | None = None,
        height: int | None = None,
        width: int | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        batch_size: int = 16,
        on_step: StepCallback | None = None,
    ) -> list[Image.Image]:
        """Draws a picture a prompt; sample i from the noise of `seed + i`.

        Args:
            num_steps, guidance_scale: by default the model's; a scale of at most 1 is no guidance.
            height, width: in pixels, by default the model's.
            negative_prompt: what guidance leads away from, one for all or one a prompt; by default nothing.
            batch_size: pictures drawn at a time.

        Raises:
            ValueError: on an empty prompt, or a size that the model cannot draw.
        """
        from ddit.prompts import draw_prompt, empty_prompt

        texts = as_list(prompts)
        settings, length = self.settings, self.settings.prompt_length
        scale = settings.guidance_scale if guidance_scale is None else guidance_scale
        num_steps = settings.num_steps if num_steps is None else num_steps
        rows, columns = self._latent_size(height, width)
        self._warn_unknown(texts)
        ids = draw_prompt(self.text_codec, texts, length, style=self.style)
        if negative_prompt is None:
            negative_ids = empty_prompt(self.text_codec, len(texts), length, style=self.style)
        else:
            negatives = matched(as_list(negative_prompt), len(texts), "negative prompts", "prompts")
            negative_ids = draw_prompt(self.text_codec, negatives, length, style=self.style)

        shape = (self.image_codec.channels, rows, columns)
        images: list[Image.Image] = []
        for part, step in parts(len(texts), batch_size, num_steps, on_step):
            states = self.text_codec.states(ids[part].to(self.device))
            if scale > 1:
                states = torch.cat([self.text_codec.states(negative_ids[part].to(self.device)), states])
            generators = self._generators(seed, part)
            noise = torch.stack([torch.randn(shape, generator=generator) for generator in generators])
            latents = sample_latents(
                self._velocity_fn(states),
                noise.to(self.device),
                num_steps=num_steps,
                guidance_scale=scale,
                shift=settings.shift,
                on_step=step,
            )
            images += to_images(self.image_codec.decode(latents))
        return images

    def _velocity_fn(self, states: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        def velocity(latents: Tensor, t: Tensor) -> Tensor:
            drawn = self.transformer(latents.to(self.dtype), t, states, num_drawn=len(latents)).velocity
            assert drawn is not None
            return drawn

        return velocity

    def _latent_size(self, height: int | None, width: int | None) -> tuple[int, int]:
        """Height and width of the latents for a picture's, after checking that the model can take them."""
        config, downsample = self.transformer.config, self.image_codec.downsample
        unit, largest = (
            downsample * config.patch_size,
            downsample * config.patch_size * config.pos_embed_max_size,
        )
        sizes = []
        for name, given in (("height", height), ("width", width)):
            pixels = self.settings.image_size if given is None else given
            if pixels < unit or pixels % unit or pixels > largest:
                below = min(max(pixels // unit, 1) * unit, largest)
                near = below if below == largest else f"{below} or {below + unit}"
                raise ValueError(
                    f"{name} {pixels} is not a multiple of {unit} between {unit} and {largest}: try {near}"
                )
            sizes.append(pixels // downsample)
        return sizes[0], sizes[1]

    # --- image to text ---

    @torch.inference_mode()
    def caption(
        self,
        images: ImageSource | Sequence[ImageSource] | None,
        *,
        seed: int = 0,
        num_steps: int | None = None,
        height: int | None = None,
        width: int | None = None,
        order: Order | None = None,
        temperature: float | None = None,
        batch_size: int = 16,
        on_step: StepCallback | None = None,
    ) -> list[str]:
        """Writes a caption for each picture; None writes one without a picture.

        Args:
            images: paths, encoded bytes or PIL images (`images.read_image`); resized and centre-cropped.
            num_steps, order, temperature: by default the model's, see `masked.sample_text`.
            height, width: of the pictures as the model reads them, by default its own.
            batch_size: captions written at a time.

        Raises:
            ValueError: on a picture that cannot be read, or a size that the model cannot take.
        """
        from ddit.prompts import caption_prompt

        pictures = self._read(images, height, width)
        count = 1 if pictures is None else len(pictures)
        prompt = caption_prompt(self.text_codec, count, self.settings.text_length, style=self.style)
        num_steps = self.settings.caption_steps if num_steps is None else num_steps
        ids = self._write(prompt, pictures, seed, num_steps, order, temperature, batch_size, on_step)
        return self._decode_answers(ids, prompt)

    @torch.inference_mode()
    def answer(
        self,
        images: ImageSource | Sequence[ImageSource] | None,
        questions: str | Sequence[str],
        *,
        seed: int = 0,
        num_steps: int | None = None,
        height: int | None = None,
        width: int | None = None,
        order: Order | None = None,
        temperature: float | None = None,
        batch_size: int = 16,
        on_step: StepCallback | None = None,
    ) -> list[str]:
        """Answers questions about pictures: one each, or one picture with many questions, or the reverse.

        Arguments as in `caption`; images None asks without a picture.

        Raises:
            ValueError: as `caption`, and on an empty question or numbers that do not match.
        """
        from ddit.prompts import answer_prompt

        texts, pictures = self._paired(questions, self._read(images, height, width), "questions")
        self._warn_unknown(texts)
        prompt = answer_prompt(self.text_codec, texts, self.settings.text_length, style=self.style)
        num_steps = self.settings.answer_steps if num_steps is None else num_steps
        ids = self._write(prompt, pictures, seed, num_steps, order, temperature, batch_size, on_step)
        return self._decode_answers(ids, prompt)

    @torch.inference_mode()
    def infill(
        self,
        images: ImageSource | Sequence[ImageSource] | None,
        texts: str | Sequence[str],
        *,
        seed: int = 0,
        num_steps: int | None = None,
        height: int | None = None,
        width: int | None = None,
        order: Order | None = None,
        temperature: float | None = None,
        batch_size: int = 16,
        on_step: StepCallback | None = None,
    ) -> list[str]:
        """Fills blanks (two or more underscores, one token each) in texts about pictures; gives whole texts.

        Arguments as in `answer`.

        Raises:
            ValueError: as `answer`, and on a text without a blank.
        """
        from ddit.prompts import BLANK, infill_prompt

        given, pictures = self._paired(texts, self._read(images, height, width), "texts")
        self._warn_unknown([BLANK.sub(" ", text) for text in given])
        prompt = infill_prompt(self.text_codec, given, self.settings.text_length, style=self.style)
        num_steps = self.settings.caption_steps if num_steps is None else num_steps
        special = self.text_codec.tokenizer.all_special_ids  # a blank is a word, never the end of the text
        ids = self._write(prompt, pictures, seed, num_steps, order, temperature, batch_size, on_step, special)
        prefix = self.text_codec.token_ids(self.style.caption_prefix)
        rows = [row[len(prefix) :] if row[: len(prefix)] == prefix else row for row in ids.tolist()]
        return [self.text_codec.decode(row) for row in rows]

    def _write(
        self,
        prompt: "TokenizedPrompt",
        pictures: list[Image.Image] | None,
        seed: int,
        num_steps: int,
        order: Order | None,
        temperature: float | None,
        batch_size: int,
        on_step: StepCallback | None,
        banned_ids: Sequence[int] = (),
    ) -> Tensor:
        """Fills a prompt's answer positions, (B, L) ids, with tokens that are not banned."""
        codec, settings = self.text_codec, self.settings
        beyond = range(
            codec.vocab_size, self.transformer.config.vocab_size
        )  # rows of the head without a token
        written = []
        for part, step in parts(len(prompt.input_ids), batch_size, num_steps, on_step):
            latents = None if pictures is None else self.image_codec.encode(to_tensor(pictures[part]))
            sample = sample_text(
                self._logits_fn(latents),
                prompt.input_ids[part].to(self.device),
                prompt.answer_mask[part].to(self.device),
                num_steps=num_steps,
                mask_token_id=codec.mask_token_id,
                eos_token_id=codec.eos_token_id,
                banned_ids=[*banned_ids, *beyond],
                order=settings.text_order if order is None else order,
                temperature=settings.temperature if temperature is None else temperature,
                generators=self._generators(seed, part),
                on_step=step,
            )
            written.append(sample.ids)
        return torch.cat(written)

    def _logits_fn(self, latents: Tensor | None) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        """Logits of noisy ids; the image side is computed once where the model allows it."""
        cache: ImageCache | None = None
        if latents is not None and not self.transformer.config.image_attends_text:
            cache = self.transformer.read_image(latents)

        def logits(noisy_ids: Tensor, at: Tensor, rows: Tensor) -> Tensor:
            states = self.text_codec.states(noisy_ids)
            if cache is not None:
                return self.transformer.text_logits(states, [(k[rows], v[rows]) for k, v in cache], at)
            t = torch.zeros(len(rows), device=states.device)
            image = None if latents is None else latents[rows]
            read = self.transformer(image, t, states, num_drawn=0, logit_mask=at).logits
            assert read is not None
            return read

        return logits

    def _decode_answers(self, ids: Tensor, prompt: "TokenizedPrompt") -> list[str]:
        return [
            self.text_codec.decode(row[mask.to(row.device)])
            for row, mask in zip(ids, prompt.answer_mask, strict=True)
        ]

    # --- what the user gives ---

    def _read(
        self, images: ImageSource | Sequence[ImageSource] | None, height: int | None, width: int | None
    ) -> list[Image.Image] | None:
        """Pictures at the size that the model reads."""
        rows, columns = self._latent_size(height, width)
        if images is None:
            return None
        sources = [images] if isinstance(images, str | os.PathLike | bytes | Image.Image) else list(images)
        if not sources:
            raise ValueError("no images given")
        downsample = self.image_codec.downsample
        return [fit_image(read_image(source), rows * downsample, columns * downsample) for source in sources]

    def _paired(
        self, texts: str | Sequence[str], pictures: list[Image.Image] | None, what: str
    ) -> tuple[list[str], list[Image.Image] | None]:
        """Texts and pictures of equal number; a single one goes with all of the others."""
        given = as_list(texts)
        if pictures is None:
            return given, None
        count = max(len(given), len(pictures))
        return matched(given, count, what, "images"), matched(pictures, count, "images", what)

    def _warn_unknown(self, texts: Sequence[str]) -> None:
        words = dict.fromkeys(word for text in texts for word in self.text_codec.unknown_words(text))
        if words:
            names = ", ".join(repr(word) for word in words)
            warnings.warn(
                f"the model does not know the word{'s' if len(words) > 1 else ''} {names}", stacklevel=3
            )

    @staticmethod
    def _generators(seed: int, part: slice) -> list[torch.Generator]:
        if not 0 <= seed < 2**62:
            raise ValueError(f"seed must be at least 0 and below 2**62, got {seed}")
        return [torch.Generator().manual_seed(seed + i) for i in range(part.start, part.stop)]
