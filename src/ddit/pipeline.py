"""The trained system in one object: generate images from text, and captions, answers and missing words from images.

Everything is batched and seeded by sample: sample i draws its noise and its tokens from a generator of its
own, seeded with `seed + i` on the CPU, so that a batch gives what single calls give, on any device.
"""

from collections.abc import Sequence
from functools import cached_property, partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ddit.habits import guarded
from ddit.images import ImageSource, fit_image, read_image
from ddit.inference.batching import Samples, Seed, StepCallback, as_list, matched, one_seed, sample_seeds
from ddit.inference.best_of import generate_best
from ddit.inference.diffusers_style import DiffusersStyle
from ddit.inference.image_cache import EncodedImage, FittedImage, encode_images
from ddit.inference.image_generator import ImageGenerator
from ddit.inference.inputs import Images, fit_images, pair, verb, warn_foreign, warn_unknown
from ddit.inference.scoring import Choice, Score, Scorer
from ddit.inference.text_generator import TextGenerator
from ddit.prompts import BLANK, PromptStyle, TokenizedPrompt, answer_prompt, caption_prompt, infill_prompt
from ddit.schema import override, parse
from ddit.settings import CaptionOptions, ImageOptions, ImageSize, ScoreOptions, TextOptions


class Pipeline(DiffusersStyle):
    """The verbs: generate, inpaint and vary images; caption, answer, infill, score and choose texts about them.

    Options that are not given, or None, are the model's own (`settings`).

    The default seed is 0: **two calls without a seed give the same results.** `seed=None` draws a new seed. What a verb
    gives is a list that has the seed of every sample in `seeds`; the new seed is logged, too (level INFO).
    """

    @cached_property
    def style(self) -> PromptStyle:
        """The model's templates."""
        return parse(PromptStyle, self.settings.prompt_style, "prompt_style")

    # --- text to image ---

    @verb(ImageOptions)
    def generate(
        self,
        prompts: str | Sequence[str],
        *,
        best_of: int = 1,
        seed: Seed = 0,
        on_step: StepCallback | None = None,
        **options: Any,
    ) -> Samples[Image.Image]:
        """Generates an image a prompt; sample i from the noise of `seed + i`.

        Args:
            prompts: one or many.
            best_of: candidates for each image, of which the one is kept in which the model finds the prompt likeliest
                (`score`). The first of them is that of best_of=1; `on_step` is called for all of them, with the number
                of their sample.
            seed: of the first sample, or one a sample. The default is 0: two calls without a seed give the same images.
                None draws a new seed; the result's `seeds` say which.
            on_step: called after every step.

        Raises:
            ValueError: on an empty prompt, a size that the model cannot generate, or an option out of range.
            TypeError: for an option that there is not, or prompts that are no texts.
        """
        texts, call = as_list(prompts, "prompts"), self.settings.image_options(options)
        warn_unknown(self.text_codec, texts, stacklevel=3)
        seeds, generator = sample_seeds(seed, len(texts)), self._image_generator
        images = generate_best(generator, self._scorer, texts, best_of, call, seed=seeds, on_step=on_step)
        return Samples(images, seeds)

    @verb(ImageOptions)
    def inpaint(
        self,
        images: ImageSource | Sequence[ImageSource],
        masks: ImageSource | Sequence[ImageSource],
        prompts: str | Sequence[str],
        *,
        seed: Seed = 0,
        on_step: StepCallback | None = None,
        **options: Any,
    ) -> Samples[Image.Image]:
        """Generates the masked part of images again, each such that the whole shows what its prompt says.

        One image may go with many masks and prompts, and the reverse. Sample i takes the noise of `seed + i`.

        Args:
            images: as in `caption`; resized and centre-cropped.
            masks: as images are given, each of its image's size. What is lighter than half is generated, the rest and
                what is transparent is kept, in steps of the latents' cells (8 pixels of SD3's, 4 of mini's).
            prompts: what the whole images show.
            seed, on_step: as in `generate`.

        Raises:
            ValueError: as `generate` and `caption`, and on a mask of another size or without white.
        """
        if masks is None:
            raise TypeError("inpaint needs a mask: white is generated, black is kept")
        texts, call = as_list(prompts, "prompts"), self.settings.image_options(options)
        warn_unknown(self.text_codec, texts, stacklevel=3)
        generator = self._image_generator
        texts, originals = generator.grid(call.size).read(texts, images, masks)
        seeds = sample_seeds(seed, len(texts))
        return Samples(generator.generate(texts, call, originals, seed=seeds, on_step=on_step), seeds)

    @verb(ImageOptions)
    def vary(
        self,
        images: ImageSource | Sequence[ImageSource],
        prompts: str | Sequence[str],
        *,
        strength: float = 0.7,
        seed: Seed = 0,
        on_step: StepCallback | None = None,
        **options: Any,
    ) -> Samples[Image.Image]:
        """Generates variations of images, by their prompts: from the images with noise, not from noise alone.

        Args:
            images: as in `inpaint`.
            prompts: what the variations show.
            strength: from nearly 0, which changes nothing, to 1, which is `generate`. All `num_steps` are spent on it.
            seed, on_step: as in `generate`.

        Raises:
            ValueError: as `inpaint`, and on a strength out of range.
        """
        texts, call = as_list(prompts, "prompts"), self.settings.image_options(options)
        warn_unknown(self.text_codec, texts, stacklevel=3)
        generator = self._image_generator
        texts, originals = generator.grid(call.size).read(texts, images, strength=strength)
        seeds = sample_seeds(seed, len(texts))
        return Samples(generator.generate(texts, call, originals, seed=seeds, on_step=on_step), seeds)

    def decode(self, latents: Tensor) -> list[Image.Image]:
        """Images of latents (B, C, H, W), such as those of a step on the way (`flow.ImageState.clean`)."""
        return self._image_generator.decode(latents)

    @property
    def _image_generator(self) -> ImageGenerator:
        return ImageGenerator(self.transformer, self.image_codec, self.text_codec, self.settings, self.style)

    # --- image to text ---

    @guarded
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

    @verb(CaptionOptions)
    def caption(
        self,
        images: Images | None,
        *,
        seed: Seed = 0,
        on_step: StepCallback | None = None,
        **options: Any,
    ) -> Samples[str]:
        """Writes a caption for each image; None writes one without an image.

        Args:
            images: one or many: paths, encoded bytes, PIL images, NumPy arrays (H, W, C) or tensors (C, H, W), uint8
                from 0 to 255 or floats from 0 to 1 (`images.read_image`); resized and centre-cropped. Also what
                `encode_image` gave. One that is given several times is encoded once.
            seed: of the first sample, or one a sample. The default is 0: two calls without a seed give the same texts.
                None draws a new seed; the result's `seeds` say which.
            on_step: called after every step.

        Raises:
            ValueError: on an image that cannot be read, a size that the model cannot take, an option out of range, or a
                detailed caption of a model that writes none.
            TypeError: for an option that there is not, or what is no image.
        """
        call = self.settings.caption_options(options)
        fitted = self._fit_all(images, call.size)
        count = 1 if fitted is None else len(fitted)
        length, detailed = self.settings.text_length, call.style == "detailed"
        prompt = caption_prompt(self.text_codec, count, length, style=self.style, detailed=detailed)
        return self._answers(prompt, fitted, call, seed, on_step)

    @verb(TextOptions)
    def answer(
        self,
        images: Images | None,
        questions: str | Sequence[str],
        *,
        history: Sequence[Sequence[tuple[str, str]]] = (),
        seed: Seed = 0,
        on_step: StepCallback | None = None,
        **options: Any,
    ) -> Samples[str]:
        """Answers questions about images: one each, or one image with many questions, or the reverse.

        Args:
            images: as in `caption`; None asks without an image.
            questions: one or many.
            history: the earlier turns (question, answer) of each question's conversation, for a model that was trained
                on conversations; those that would fill more than half of its text are left out, the oldest first.
            seed, on_step: as in `caption`.

        Raises:
            ValueError: as `caption`, and on an empty question or numbers that do not match.
        """
        call = self.settings.text_options("answer", options)
        texts, fitted = pair(questions, self._fit_all(images, call.size), "questions")
        warn_unknown(self.text_codec, texts, stacklevel=3)
        if history and len(history) != len(texts):
            raise ValueError(f"{len(texts)} questions need as many histories, got {len(history)}")
        length = self.settings.text_length
        prompt = answer_prompt(self.text_codec, texts, length, style=self.style, history=history)
        return self._answers(prompt, fitted, call, seed, on_step)

    @verb(TextOptions)
    def infill(
        self,
        images: Images | None,
        texts: str | Sequence[str],
        *,
        seed: Seed = 0,
        on_step: StepCallback | None = None,
        **options: Any,
    ) -> Samples[str]:
        """Fills blanks (two or more underscores, one token each) in texts about images; gives whole texts.

        Args:
            images: as in `answer`.
            texts: one or many, with blanks.
            seed, on_step: as in `caption`.

        Raises:
            ValueError: as `answer`, and on a text without a blank.
        """
        call = self.settings.text_options("infill", options)
        given, fitted = pair(texts, self._fit_all(images, call.size), "texts")
        codec = self.text_codec
        warn_unknown(codec, [BLANK.sub(" ", text) for text in given], stacklevel=3)
        prompt = infill_prompt(codec, given, self.settings.text_length, style=self.style)
        special = codec.tokenizer.all_special_ids  # a blank is a word, never the end of the text
        seeds = sample_seeds(seed, len(given))
        filled = self._text_generator.generate(
            prompt, fitted, call, seed=seeds, banned_ids=special, on_step=on_step
        )
        prefix = codec.token_ids(self.style.caption_prefix)
        rows = filled.input_ids.tolist()
        texts = [codec.decode(row[len(prefix) :] if row[: len(prefix)] == prefix else row) for row in rows]
        return Samples(texts, seeds)

    @property
    def _text_generator(self) -> TextGenerator:
        return TextGenerator(self.transformer, self.image_codec, self.text_codec)

    def _answers(
        self,
        prompt: TokenizedPrompt,
        images: list[FittedImage] | None,
        options: TextOptions,
        seed: Seed,
        on_step: StepCallback | None,
    ) -> Samples[str]:
        """The texts at a prompt's answer positions."""
        seeds = sample_seeds(seed, len(prompt.input_ids))
        filled = self._text_generator.generate(prompt, images, options, seed=seeds, on_step=on_step)
        texts = [self.text_codec.decode(row[mask]) for row, mask in zip(*filled, strict=True)]
        return Samples(texts, seeds)

    # --- how likely texts are ---

    @verb(ScoreOptions)
    def score(
        self,
        images: Images | None,
        texts: str | Sequence[str],
        *,
        questions: str | Sequence[str] | None = None,
        seed: int | None = 0,
        on_step: StepCallback | None = None,
        **options: Any,
    ) -> list[Score]:
        """How likely each text is as the caption of its image, or as the answer to its question about it.

        Bounds of the log-likelihood in nats, exact for short texts (see `likelihood`). Images, texts and questions are
        equal in number, or a single one goes with all of the others.

        Args:
            images: as in `caption`; None scores without an image.
            texts: one or many captions or answers.
            questions: what the texts answer, one or many; by default they are captions.
            seed: of the draw of masks, one for all; None draws a new one, which is logged.
            on_step: called after every batch.

        Raises:
            ValueError: as `answer`, and on a text that is empty or does not fit.
        """
        call = override(ScoreOptions(), options)
        given, asked, fitted = self._scored(texts, questions, images, call)
        count = max(len(given), len(asked), len(fitted))
        matches = [(given, "texts"), (asked, "questions"), (fitted, "images")]
        given, asked, fitted = (matched(items, count, what, "samples") for items, what in matches)
        return self._scorer.score(given, asked, fitted, call, seed=one_seed(seed), on_step=on_step)

    @verb(ScoreOptions)
    def choose(
        self,
        images: Images | None,
        candidates: Sequence[str],
        *,
        questions: str | Sequence[str] | None = None,
        per_token: bool = False,
        seed: int | None = 0,
        on_step: StepCallback | None = None,
        **options: Any,
    ) -> list[Choice]:
        """Which of the candidates fits each image best: as its caption, or as the answer to its question.

        Each image is tried with all candidates.

        Args:
            images: as in `score`.
            candidates: captions or answers.
            questions: as in `score`, one an image.
            per_token: compares nats a token, where lengths differ.
            seed, on_step: as in `score`.

        Raises:
            ValueError: as `score`.
        """
        call = override(ScoreOptions(), options)
        texts, asked, fitted = self._scored(candidates, questions, images, call, "candidates")
        count = max(len(asked), len(fitted))
        asked = matched(asked, count, "questions", "images")
        fitted = matched(fitted, count, "images", "questions")
        scores = self._scorer.score(
            texts * count,
            [question for question in asked for _ in texts],
            [image for image in fitted for _ in texts],
            call,
            seed=one_seed(seed),
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
        what: str = "texts",
    ) -> tuple[list[str], list[str | None], list[FittedImage | None]]:
        """What is to be scored, as lists: one None stands for no question and for no image."""
        fitted = self._fit_all(images, options.size)
        given, asked = as_list(texts, what), [] if questions is None else as_list(questions, "questions")
        warn_unknown(self.text_codec, [*dict.fromkeys(asked), *dict.fromkeys(given)], stacklevel=4)
        return given, [*asked] or [None], [None] if fitted is None else [*fitted]

    @property
    def _scorer(self) -> Scorer:
        return Scorer(self.transformer, self.image_codec, self.text_codec, self.settings, self.style)

    def _fit_all(self, images: Images | None, size: ImageSize) -> list[FittedImage] | None:
        """Images at the size that the model reads."""
        rows, columns = self._image_generator.latent_size(size)
        cell = self.image_codec.downsample
        if images is None:
            return None
        fitted = fit_images(images, rows * cell, columns * cell)
        if self.familiarity is not None and rows * cell == columns * cell == self.settings.image_size:
            are_foreign = partial(self.familiarity.are_foreign, self.transformer, self.image_codec)
            warn_foreign(images, fitted, are_foreign, stacklevel=4)
        return fitted
