"""The trained system in one object: draw pictures from text, and write captions, answers and missing words.

Everything is batched and seeded by sample: sample i draws its noise and its tokens from a generator of its
own, seeded with `seed + i` on the CPU, so that a batch gives what single calls give, on any device.
"""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, Unpack

import torch
from PIL import Image
from torch import Tensor

from ddit.errors import is_collecting, warn_user
from ddit.images import ImageSource, fit_image, read_image
from ddit.inference.batching import as_list, matched
from ddit.inference.best_of import draw_best
from ddit.inference.callables import ApproximationError
from ddit.inference.image_cache import EncodedImage, ImageInput, encode_images
from ddit.inference.image_generator import DrawCall, DrawOptions, ImageGenerator
from ddit.inference.scoring import Choice, Score, ScoreCall, ScoreOptions, Scorer
from ddit.inference.text_generator import ReadCall, ReadOptions, TextGenerator
from ddit.model.bundle import ModelBundle

if TYPE_CHECKING:  # transformers and diffusers take seconds to import
    from ddit.prompts import TokenizedPrompt


class Pipeline(ModelBundle):
    """The verbs: generate, inpaint and vary pictures; caption, answer, infill, score and choose texts about them."""

    # --- text to image ---

    def generate(
        self, prompts: str | Sequence[str], *, best_of: int = 1, **options: Unpack[DrawOptions]
    ) -> list[Image.Image]:
        """Draws a picture a prompt; sample i from the noise of `seed + i`.

        Args:
            best_of: so many are drawn for each, read, and the one kept in which the model finds the prompt likeliest
                (`score`). The first of them is that of best_of=1; `on_step` is told of all, by their sample's number.
            options: see `drawing.DrawOptions`.

        Raises:
            ValueError: on an empty prompt, a size that the model cannot draw, or an option out of range.
        """
        texts = as_list(prompts)
        self._warn_unknown(texts)
        return draw_best(self._drawer, self._scorer, texts, best_of, DrawCall(**options))

    def inpaint(
        self,
        images: ImageSource | Sequence[ImageSource],
        masks: ImageSource | Sequence[ImageSource],
        prompts: str | Sequence[str],
        **options: Unpack[DrawOptions],
    ) -> list[Image.Image]:
        """Draws the masked part of pictures anew, each such that the whole shows what its prompt says.

        One picture may go with many masks and prompts, and the reverse. Sample i takes the noise of `seed + i`.

        Args:
            images: as in `caption`; resized and centre-cropped.
            masks: each of its picture's size. What is lighter than half is redrawn, the rest and what is transparent is
                kept, in steps of the latents' cells (8 pixels of SD3's, 4 of mini's): one that is touched is redrawn.
            options: see `drawing.DrawOptions`.

        Raises:
            ValueError: as `generate` and `caption`, and on a mask of another size or with nothing to redraw.
        """
        texts, call = as_list(prompts), DrawCall(**options)
        self._warn_unknown(texts)
        texts, originals = self._drawer.grid(call).read(texts, images, masks)
        return self._drawer.draw(texts, call, originals)

    def vary(
        self,
        images: ImageSource | Sequence[ImageSource],
        prompts: str | Sequence[str],
        *,
        strength: float = 0.7,
        **options: Unpack[DrawOptions],
    ) -> list[Image.Image]:
        """Draws variations of pictures, by their prompts: from the pictures with noise, not from noise alone.

        Args:
            images: as in `inpaint`.
            strength: from nearly 0, which changes nothing, to 1, which is `generate`. All `num_steps` are spent on it.
            options: see `drawing.DrawOptions`.

        Raises:
            ValueError: as `inpaint`, and on a strength out of range.
        """
        texts, call = as_list(prompts), DrawCall(**options)
        self._warn_unknown(texts)
        texts, originals = self._drawer.grid(call).read(texts, images, strength=strength)
        return self._drawer.draw(texts, call, originals)

    def decode(self, latents: Tensor) -> list[Image.Image]:
        """Pictures of latents (B, C, H, W), such as those of a step on the way (`flow.ImageState.clean`)."""
        return self._drawer.decode(latents)

    @property
    def _drawer(self) -> ImageGenerator:
        return ImageGenerator(self.transformer, self.image_codec, self.text_codec, self.settings, self.style)

    # --- image to text ---

    @torch.inference_mode()
    def look(
        self, image: ImageSource, *, height: int | None = None, width: int | None = None
    ) -> EncodedImage:
        """Encodes a picture once for any number of calls: `caption`, `answer` and `infill` take it as an image.

        It holds as long as the weights stay as they are, on their device.

        Args:
            height, width: at which it is read, by default the model's; the calls must be told the same.

        Raises:
            ValueError: on a picture that cannot be read, or a size that the model cannot take.
        """
        rows, columns = self._drawer.latent_size(height, width)
        downsample = self.image_codec.downsample
        fitted = fit_image(read_image(image), rows * downsample, columns * downsample)
        return EncodedImage(fitted, *encode_images(self.transformer, self.image_codec, [fitted]))

    def caption(
        self, images: ImageInput | Sequence[ImageInput] | None, **options: Unpack[ReadOptions]
    ) -> list[str]:
        """Writes a caption for each picture; None writes one without a picture.

        Args:
            images: paths, encoded bytes or PIL images (`images.read_image`), resized and centre-cropped, or what `look`
                gave. One that is given several times is read once.
            options: see `writing.ReadOptions`.

        Raises:
            ValueError: on a picture that cannot be read, a size that the model cannot take, or an option out of range.
        """
        call = self._call(options, "caption")
        return self._written(*self._caption_prompt(images, call), call)

    def answer(
        self,
        images: ImageInput | Sequence[ImageInput] | None,
        questions: str | Sequence[str],
        **options: Unpack[ReadOptions],
    ) -> list[str]:
        """Answers questions about pictures: one each, or one picture with many questions, or the reverse.

        Arguments as in `caption`; images None asks without a picture.

        Raises:
            ValueError: as `caption`, and on an empty question or numbers that do not match.
        """
        call = self._call(options, "answer")
        return self._written(*self._answer_prompt(images, questions, call), call)

    def infill(
        self,
        images: ImageInput | Sequence[ImageInput] | None,
        texts: str | Sequence[str],
        **options: Unpack[ReadOptions],
    ) -> list[str]:
        """Fills blanks (two or more underscores, one token each) in texts about pictures; gives whole texts.

        Arguments as in `answer`.

        Raises:
            ValueError: as `answer`, and on a text without a blank.
        """
        from ddit.prompts import BLANK, infill_prompt

        call = self._call(options, "infill")
        given, pictures = self._paired(texts, self._read(images, call), "texts")
        self._warn_unknown([BLANK.sub(" ", text) for text in given])
        prompt = infill_prompt(self.text_codec, given, self.settings.text_length, style=self.style)
        special = self.text_codec.tokenizer.all_special_ids  # a blank is a word, never the end of the text
        ids = self._writer.write(prompt, pictures, call, special).input_ids
        prefix = self.text_codec.token_ids(self.style.caption_prefix)
        rows = [row[len(prefix) :] if row[: len(prefix)] == prefix else row for row in ids.tolist()]
        return [self.text_codec.decode(row) for row in rows]

    def reading_error(
        self,
        images: ImageInput | Sequence[ImageInput] | None,
        questions: str | Sequence[str] | None = None,
        **options: Unpack[ReadOptions],
    ) -> ApproximationError:
        """How far `image_refresh` and `text_refresh` take the predictions from the exact ones, on these samples.

        Captions are written, or answers to questions, by exact predictions; each is compared with the approximate one.
        Arguments and errors as in `caption` and `answer`.
        """
        if questions is None:
            call = self._call(options, "caption")
            return self._writer.measure(*self._caption_prompt(images, call), call)
        call = self._call(options, "answer")
        return self._writer.measure(*self._answer_prompt(images, questions, call), call)

    def _call(self, options: ReadOptions, verb: Literal["caption", "answer", "infill"]) -> ReadCall:
        settings = self.settings
        num_steps = settings.answer_steps if verb == "answer" else settings.caption_steps
        length = {"caption": settings.caption_length, "answer": settings.answer_length}.get(verb)
        return ReadCall.of(options, settings.writing, num_steps=num_steps, length=length)

    def _caption_prompt(
        self, images: ImageInput | Sequence[ImageInput] | None, call: ReadCall
    ) -> tuple["TokenizedPrompt", list[Image.Image | EncodedImage] | None]:
        from ddit.prompts import caption_prompt

        pictures = self._read(images, call)
        count = 1 if pictures is None else len(pictures)
        return caption_prompt(self.text_codec, count, self.settings.text_length, style=self.style), pictures

    def _answer_prompt(
        self,
        images: ImageInput | Sequence[ImageInput] | None,
        questions: str | Sequence[str],
        call: ReadCall,
    ) -> tuple["TokenizedPrompt", list[Image.Image | EncodedImage] | None]:
        from ddit.prompts import answer_prompt

        texts, pictures = self._paired(questions, self._read(images, call), "questions")
        self._warn_unknown(texts)
        return answer_prompt(self.text_codec, texts, self.settings.text_length, style=self.style), pictures

    @property
    def _writer(self) -> TextGenerator:
        return TextGenerator(self.transformer, self.image_codec, self.text_codec)

    def _written(
        self, prompt: "TokenizedPrompt", pictures: list[Image.Image | EncodedImage] | None, call: ReadCall
    ) -> list[str]:
        """The texts at a prompt's answer positions."""
        ids, answer_mask = self._writer.write(prompt, pictures, call)
        return [self.text_codec.decode(row[mask]) for row, mask in zip(ids, answer_mask, strict=True)]

    # --- how likely texts are ---

    def score(
        self,
        images: ImageInput | Sequence[ImageInput] | None,
        texts: str | Sequence[str],
        *,
        questions: str | Sequence[str] | None = None,
        **options: Unpack[ScoreOptions],
    ) -> list[Score]:
        """How likely each text is as the caption of its picture, or as the answer to its question about it.

        Bounds of the log-likelihood in nats, exact for short texts (see `likelihood`). Images, texts and questions are
        of one number, or a single one goes with all of the others; images None scores without a picture.

        Args:
            images: as in `caption`.
            options: see `scoring.ScoreOptions`.

        Raises:
            ValueError: as `answer`, and on a text that is empty or does not fit.
        """
        call = ScoreCall.of(options)
        given, asked, pictures = self._scored(texts, questions, images, call)
        count = max(len(given), len(asked), len(pictures))
        matches = [(given, "texts"), (asked, "questions"), (pictures, "images")]
        given, asked, pictures = (matched(items, count, what, "samples") for items, what in matches)
        return self._scorer.score(given, asked, pictures, call)

    def choose(
        self,
        images: ImageInput | Sequence[ImageInput] | None,
        candidates: Sequence[str],
        *,
        questions: str | Sequence[str] | None = None,
        per_token: bool = False,
        **options: Unpack[ScoreOptions],
    ) -> list[Choice]:
        """Which of the candidates fits each picture best: as its caption, or as the answer to its question.

        Each picture is tried with all candidates; arguments else as in `score`.

        Args:
            per_token: compares nats a token, where lengths differ.

        Raises:
            ValueError: as `score`.
        """
        call = ScoreCall.of(options)
        texts, asked, pictures = self._scored(candidates, questions, images, call)
        count = max(len(asked), len(pictures))
        asked, pictures = (
            matched(asked, count, "questions", "images"),
            matched(pictures, count, "images", "questions"),
        )
        scores = self._scorer.score(
            texts * count,
            [question for question in asked for _ in texts],
            [picture for picture in pictures for _ in texts],
            call,
        )
        parts = [scores[start : start + len(texts)] for start in range(0, len(scores), len(texts))]
        return [Choice.among(texts, part, per_token=per_token) for part in parts]

    def _scored(
        self,
        texts: str | Sequence[str],
        questions: str | Sequence[str] | None,
        images: ImageInput | Sequence[ImageInput] | None,
        call: ScoreCall,
    ) -> tuple[list[str], list[str | None], list[Image.Image | EncodedImage | None]]:
        """What is to be scored, as lists: one None stands for no question and for no picture."""
        pictures = self._read(images, call)
        given, asked = as_list(texts), [] if questions is None else as_list(questions)
        self._warn_unknown([*dict.fromkeys(asked), *dict.fromkeys(given)])
        return given, [*asked] or [None], [None] if pictures is None else [*pictures]

    @property
    def _scorer(self) -> Scorer:
        return Scorer(self.transformer, self.image_codec, self.text_codec, self.settings, self.style)

    # --- what the user gives ---

    def _read(
        self, images: ImageInput | Sequence[ImageInput] | None, call: ReadCall | ScoreCall
    ) -> list[Image.Image | EncodedImage] | None:
        """Pictures at the size that the model reads."""
        rows, columns = self._drawer.latent_size(call.height, call.width)
        if images is None:
            return None
        single = isinstance(images, str | os.PathLike | bytes | Image.Image | EncodedImage)
        sources = [images] if single else list(images)
        if not sources:
            raise ValueError("no images given")
        height, width = (side * self.image_codec.downsample for side in (rows, columns))
        return [self._fit(source, height, width) for source in sources]

    def _fit(self, source: ImageInput, height: int, width: int) -> Image.Image | EncodedImage:
        if not isinstance(source, EncodedImage):
            return fit_image(read_image(source), height, width)
        if source.image.size != (width, height):
            raise ValueError(
                f"the picture was looked at as {source.image.width}x{source.image.height}, not {width}x{height}"
            )
        return source

    def _paired(
        self, texts: str | Sequence[str], pictures: list[Image.Image | EncodedImage] | None, what: str
    ) -> tuple[list[str], list[Image.Image | EncodedImage] | None]:
        """Texts and pictures of equal number; a single one goes with all of the others."""
        given = as_list(texts)
        if pictures is None:
            return given, None
        count = max(len(given), len(pictures))
        return matched(given, count, what, "images"), matched(pictures, count, "images", what)

    def _warn_unknown(self, texts: Sequence[str]) -> None:
        """One warning for all texts, or, to a listener, a notice for each."""
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
