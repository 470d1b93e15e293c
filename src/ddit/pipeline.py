"""The trained system in one object: generate images from text, and captions, answers and missing words from images.

Everything is batched and seeded by sample: sample i draws its noise and its tokens from a generator of its
own, seeded with `seed + i` on the CPU, so that a batch gives what single calls give, on any device.
"""

import os
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ddit.errors import is_collecting, warn_user
from ddit.images import ImageSource, fit_image, read_image
from ddit.inference.batching import StepCallback, as_list, matched
from ddit.inference.best_of import generate_best
from ddit.inference.image_cache import EncodedImage, FittedImage, ImageInput, encode_images
from ddit.inference.image_generator import ImageGenerator
from ddit.inference.scoring import Choice, Score, Scorer
from ddit.inference.text_generator import TextGenerator
from ddit.model.bundle import ModelBundle
from ddit.prompts import BLANK, PromptStyle, TokenizedPrompt, answer_prompt, caption_prompt, infill_prompt
from ddit.schema import override, parse, takes
from ddit.settings import ImageOptions, ImageSize, ScoreOptions, TextOptions

Images = ImageInput | Sequence[ImageInput]


class Pipeline(ModelBundle):
    """The verbs: generate, inpaint and vary images; caption, answer, infill, score and choose texts about them.

    Options that are not given, or None, are the model's own (`settings`).
    """

    @cached_property
    def style(self) -> PromptStyle:
        """The model's templates."""
        return parse(PromptStyle, self.settings.prompt_style, "prompt_style")

    # --- text to image ---

    @takes(ImageOptions)
    def generate(
        self,
        prompts: str | Sequence[str],
        *,
        best_of: int = 1,
        seed: int | Sequence[int] = 0,
        on_step: StepCallback | None = None,
        **options: Any,
    ) -> list[Image.Image]:
        """Generates an image a prompt; sample i from the noise of `seed + i`.

        Args:
            best_of: candidates for each image, of which the one is kept in which the model finds the prompt likeliest
                (`score`). The first of them is that of best_of=1; `on_step` is called for all of them, with the number
                of their sample.
            seed: of the first sample, or one a sample.
            on_step: called after every step.

        Raises:
            ValueError: on an empty prompt, a size that the model cannot generate, or an option out of range.
            TypeError: for an option that there is not.
        """
        texts = as_list(prompts)
        self._warn_unknown(texts)
        call = self.settings.image_options(options)
        return generate_best(
            self._image_generator, self._scorer, texts, best_of, call, seed=seed, on_step=on_step
        )

    @takes(ImageOptions)
    def inpaint(
        self,
        images: ImageSource | Sequence[ImageSource],
        masks: ImageSource | Sequence[ImageSource],
        prompts: str | Sequence[str],
        *,
        seed: int | Sequence[int] = 0,
        on_step: StepCallback | None = None,
        **options: Any,
    ) -> list[Image.Image]:
        """Generates the masked part of images again, each such that the whole shows what its prompt says.

        One image may go with many masks and prompts, and the reverse. Sample i takes the noise of `seed + i`.

        Args:
            images: as in `caption`; resized and centre-cropped.
            masks: each of its image's size. What is lighter than half is generated, the rest and what is transparent is
                kept, in steps of the latents' cells (8 pixels of SD3's, 4 of mini's).
            seed, on_step: as in `generate`.

        Raises:
            ValueError: as `generate` and `caption`, and on a mask of another size or without white.
        """
        texts, call = as_list(prompts), self.settings.image_options(options)
        self._warn_unknown(texts)
        generator = self._image_generator
        texts, originals = generator.grid(call.size).read(texts, images, masks)
        return generator.generate(texts, call, originals, seed=seed, on_step=on_step)

    @takes(ImageOptions)
    def vary(
        self,
        images: ImageSource | Sequence[ImageSource],
        prompts: str | Sequence[str],
        *,
        strength: float = 0.7,
        seed: int | Sequence[int] = 0,
        on_step: StepCallback | None = None,
        **options: Any,
    ) -> list[Image.Image]:
        """Generates variations of images, by their prompts: from the images with noise, not from noise alone.

        Args:
            images: as in `inpaint`.
            strength: from nearly 0, which changes nothing, to 1, which is `generate`. All `num_steps` are spent on it.
            seed, on_step: as in `generate`.

        Raises:
            ValueError: as `inpaint`, and on a strength out of range.
        """
        texts, call = as_list(prompts), self.settings.image_options(options)
        self._warn_unknown(texts)
        generator = self._image_generator
        texts, originals = generator.grid(call.size).read(texts, images, strength=strength)
        return generator.generate(texts, call, originals, seed=seed, on_step=on_step)

    def decode(self, latents: Tensor) -> list[Image.Image]:
        """Images of latents (B, C, H, W), such as those of a step on the way (`flow.ImageState.clean`)."""
        return self._image_generator.decode(latents)

    @property
    def _image_generator(self) -> ImageGenerator:
        return ImageGenerator(self.transformer, self.image_codec, self.text_codec, self.settings, self.style)

    # --- image to text ---

    @torch.inference_mode()
    def encode_image(
        self, image: ImageSource, *, height: int | None = None, width: int | None = None
    ) -> EncodedImage:
        """Encodes an image once for any number of calls: `caption`, `answer` and `infill` take it as an image.

        It holds as long as the weights stay as they are, on their device.

        Args:
            height, width: at which it is read, by default the model's; the calls must be given the same.

        Raises:
            ValueError: on an image that cannot be read, or a size that the model cannot take.
        """
        rows, columns = self._image_generator.latent_size(ImageSize(height=height, width=width))
        downsample = self.image_codec.downsample
        fitted = fit_image(read_image(image), rows * downsample, columns * downsample)
        return EncodedImage(fitted, *encode_images(self.transformer, self.image_codec, [fitted]))

    @takes(TextOptions)
    def caption(
        self,
        images: Images | None,
        *,
        seed: int | Sequence[int] = 0,
        on_step: StepCallback | None = None,
        **options: Any,
    ) -> list[str]:
        """Writes a caption for each image; None writes one without an image.

        Args:
            images: paths, encoded bytes or PIL images (`images.read_image`), resized and centre-cropped, or what
                `encode_image` gave. One that is given several times is encoded once.
            seed: of the first sample, or one a sample.
            on_step: called after every step.

        Raises:
            ValueError: on an image that cannot be read, a size that the model cannot take, or an option out of range.
            TypeError: for an option that there is not.
        """
        call = self.settings.text_options("caption", options)
        fitted = self._fit_all(images, call.size)
        count = 1 if fitted is None else len(fitted)
        prompt = caption_prompt(self.text_codec, count, self.settings.text_length, style=self.style)
        return self._answers(prompt, fitted, call, seed, on_step)

    @takes(TextOptions)
    def answer(
        self,
        images: Images | None,
        questions: str | Sequence[str],
        *,
        seed: int | Sequence[int] = 0,
        on_step: StepCallback | None = None,
        **options: Any,
    ) -> list[str]:
        """Answers questions about images: one each, or one image with many questions, or the reverse.

        Arguments as in `caption`; images None asks without an image.

        Raises:
            ValueError: as `caption`, and on an empty question or numbers that do not match.
        """
        call = self.settings.text_options("answer", options)
        texts, fitted = self._paired(questions, self._fit_all(images, call.size), "questions")
        self._warn_unknown(texts)
        prompt = answer_prompt(self.text_codec, texts, self.settings.text_length, style=self.style)
        return self._answers(prompt, fitted, call, seed, on_step)

    @takes(TextOptions)
    def infill(
        self,
        images: Images | None,
        texts: str | Sequence[str],
        *,
        seed: int | Sequence[int] = 0,
        on_step: StepCallback | None = None,
        **options: Any,
    ) -> list[str]:
        """Fills blanks (two or more underscores, one token each) in texts about images; gives whole texts.

        Arguments as in `answer`.

        Raises:
            ValueError: as `answer`, and on a text without a blank.
        """
        call = self.settings.text_options("infill", options)
        given, fitted = self._paired(texts, self._fit_all(images, call.size), "texts")
        self._warn_unknown([BLANK.sub(" ", text) for text in given])
        codec = self.text_codec
        prompt = infill_prompt(codec, given, self.settings.text_length, style=self.style)
        special = codec.tokenizer.all_special_ids  # a blank is a word, never the end of the text
        filled = self._text_generator.generate(
            prompt, fitted, call, seed=seed, banned_ids=special, on_step=on_step
        )
        prefix = codec.token_ids(self.style.caption_prefix)
        rows = filled.input_ids.tolist()
        return [codec.decode(row[len(prefix) :] if row[: len(prefix)] == prefix else row) for row in rows]

    @property
    def _text_generator(self) -> TextGenerator:
        return TextGenerator(self.transformer, self.image_codec, self.text_codec)

    def _answers(
        self,
        prompt: TokenizedPrompt,
        images: list[FittedImage] | None,
        options: TextOptions,
        seed: int | Sequence[int],
        on_step: StepCallback | None,
    ) -> list[str]:
        """The texts at a prompt's answer positions."""
        filled = self._text_generator.generate(prompt, images, options, seed=seed, on_step=on_step)
        return [self.text_codec.decode(row[mask]) for row, mask in zip(*filled, strict=True)]

    # --- how likely texts are ---

    @takes(ScoreOptions)
    def score(
        self,
        images: Images | None,
        texts: str | Sequence[str],
        *,
        questions: str | Sequence[str] | None = None,
        seed: int = 0,
        on_step: StepCallback | None = None,
        **options: Any,
    ) -> list[Score]:
        """How likely each text is as the caption of its image, or as the answer to its question about it.

        Bounds of the log-likelihood in nats, exact for short texts (see `likelihood`). Images, texts and questions are
        equal in number, or a single one goes with all of the others; images None scores without an image.

        Args:
            images: as in `caption`.
            seed: of the draw of masks.
            on_step: called after every batch.

        Raises:
            ValueError: as `answer`, and on a text that is empty or does not fit.
        """
        call = override(ScoreOptions(), options)
        given, asked, fitted = self._scored(texts, questions, images, call)
        count = max(len(given), len(asked), len(fitted))
        matches = [(given, "texts"), (asked, "questions"), (fitted, "images")]
        given, asked, fitted = (matched(items, count, what, "samples") for items, what in matches)
        return self._scorer.score(given, asked, fitted, call, seed=seed, on_step=on_step)

    @takes(ScoreOptions)
    def choose(
        self,
        images: Images | None,
        candidates: Sequence[str],
        *,
        questions: str | Sequence[str] | None = None,
        per_token: bool = False,
        seed: int = 0,
        on_step: StepCallback | None = None,
        **options: Any,
    ) -> list[Choice]:
        """Which of the candidates fits each image best: as its caption, or as the answer to its question.

        Each image is tried with all candidates; arguments else as in `score`.

        Args:
            per_token: compares nats a token, where lengths differ.

        Raises:
            ValueError: as `score`.
        """
        call = override(ScoreOptions(), options)
        texts, asked, fitted = self._scored(candidates, questions, images, call)
        count = max(len(asked), len(fitted))
        asked = matched(asked, count, "questions", "images")
        fitted = matched(fitted, count, "images", "questions")
        scores = self._scorer.score(
            texts * count,
            [question for question in asked for _ in texts],
            [image for image in fitted for _ in texts],
            call,
            seed=seed,
            on_step=on_step,
        )
        parts = [scores[start : start + len(texts)] for start in range(0, len(scores), len(texts))]
        return [Choice.among(texts, part, per_token=per_token) for part in parts]

    def _scored(
        self,
        texts: str | Sequence[str],
        questions: str | Sequence[str] | None,
        images: Images | None,
        options: ScoreOptions,
    ) -> tuple[list[str], list[str | None], list[FittedImage | None]]:
        """What is to be scored, as lists: one None stands for no question and for no image."""
        fitted = self._fit_all(images, options.size)
        given, asked = as_list(texts), [] if questions is None else as_list(questions)
        self._warn_unknown([*dict.fromkeys(asked), *dict.fromkeys(given)])
        return given, [*asked] or [None], [None] if fitted is None else [*fitted]

    @property
    def _scorer(self) -> Scorer:
        return Scorer(self.transformer, self.image_codec, self.text_codec, self.settings, self.style)

    # --- what the user gives ---

    def _fit_all(self, images: Images | None, size: ImageSize) -> list[FittedImage] | None:
        """Images at the size that the model reads."""
        rows, columns = self._image_generator.latent_size(size)
        if images is None:
            return None
        single = isinstance(images, str | os.PathLike | bytes | Image.Image | EncodedImage)
        sources = [images] if single else list(images)
        if not sources:
            raise ValueError("no images given")
        height, width = (side * self.image_codec.downsample for side in (rows, columns))
        return [self._fit(source, height, width) for source in sources]

    def _fit(self, source: ImageInput, height: int, width: int) -> FittedImage:
        if not isinstance(source, EncodedImage):
            return fit_image(read_image(source), height, width)
        if source.image.size != (width, height):
            raise ValueError(
                f"the image was encoded at {source.image.width}x{source.image.height}, not {width}x{height}"
            )
        return source

    def _paired(
        self, texts: str | Sequence[str], images: list[FittedImage] | None, what: str
    ) -> tuple[list[str], list[FittedImage] | None]:
        """Texts and images of equal number; a single one goes with all of the others."""
        given = as_list(texts)
        if images is None:
            return given, None
        count = max(len(given), len(images))
        return matched(given, count, what, "images"), matched(images, count, "images", what)

    def _warn_unknown(self, texts: Sequence[str]) -> None:
        """One warning for all texts or, where warnings are collected, one for each."""
        for some in [[text] for text in texts] if is_collecting() else [texts]:
            words = dict.fromkeys(word for text in some for word in self.text_codec.unknown_words(text))
            if not words:
                continue
            found = {word: " or ".join(map(repr, self.text_codec.similar_words(word))) for word in words}
            names = ", ".join(
                f"'{word}'" + (near and f" (did you mean {near}?)") for word, near in found.items()
            )
            plural = "s" if len(words) > 1 else ""
            warn_user(f"the model does not know the word{plural} {names}", text=some[0], stacklevel=3)
