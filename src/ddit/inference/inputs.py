"""What a user gives to the pipeline's verbs: options by name, and images and texts, checked, fitted and matched."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from PIL import Image

from ddit.errors import is_collecting, warn_user
from ddit.habits import guarded
from ddit.images import fit_image, image_sources, read_image
from ddit.inference.batching import as_list, matched
from ddit.inference.image_cache import EncodedImage, FittedImage, ImageInput
from ddit.model.encoders import TextCodec
from ddit.schema import list_options, takes
from ddit.settings import ImageSampling, ImageSize, TextSampling

Images = ImageInput | Sequence[ImageInput]
Method = TypeVar("Method", bound=Callable[..., Any])

FOREIGN = "the image is unlike those that the model was trained on: what it says of it may be nonsense"

MODELS_OWN = {option.name for cls in (ImageSampling, TextSampling, ImageSize) for option in list_options(cls)}
MODELS_OWN |= {"num_steps", "length"}
"""Options whose default is the model's (`settings`)."""


def verb(options: Any) -> Callable[[Method], Method]:
    """A method that takes the options of a dataclass by name, and answers a wrong call in one line."""

    def make(method: Method) -> Method:
        return guarded(takes(options, elsewhere=MODELS_OWN)(method))

    return make


def fit_images(images: Images, height: int, width: int) -> list[FittedImage]:
    """Images at the size that the model reads.

    Raises:
        ValueError: on one that cannot be read, or that was encoded at another size.
        TypeError: on what is no image.
    """
    return [_fit(source, height, width) for source in _sources(images)]


def _sources(images: Images) -> list[ImageInput]:
    encoded = isinstance(images, EncodedImage)
    return [images] if encoded else list(image_sources(images))  # pyright: ignore[reportArgumentType]


def _fit(source: ImageInput, height: int, width: int) -> FittedImage:
    if not isinstance(source, EncodedImage):
        return fit_image(read_image(source), height, width)
    if source.image.size != (width, height):
        raise ValueError(
            f"the image was encoded at {source.image.width}x{source.image.height}, not {width}x{height}"
        )
    return source


def warn_foreign(
    images: Images,
    fitted: Sequence[FittedImage],
    is_foreign: Callable[[list[Image.Image]], list[bool]],
    *,
    stacklevel: int,
) -> None:
    """Warns of images that are unlike those of the training: once, or where warnings are collected, of each."""
    sources = _sources(images)
    shown = [(s, f) for s, f in zip(sources, fitted, strict=True) if isinstance(f, Image.Image)]
    foreign = is_foreign([image for _, image in shown]) if shown else []
    for source, _ in (pair for pair, found in zip(shown, foreign, strict=True) if found):
        warn_user(FOREIGN, about=source, stacklevel=stacklevel + 1)
        if not is_collecting():
            return


def pair(
    texts: str | Sequence[str], images: list[FittedImage] | None, what: str
) -> tuple[list[str], list[FittedImage] | None]:
    """Texts and images of equal number; a single one goes with all of the others."""
    given = as_list(texts, what)
    if images is None:
        return given, None
    count = max(len(given), len(images))
    return matched(given, count, what, "images"), matched(images, count, "images", what)


def warn_unknown(codec: TextCodec, texts: Sequence[str], *, stacklevel: int) -> None:
    """Warns of words that the model does not know: once for all texts or, where warnings are collected, for each."""
    for some in [[text] for text in texts] if is_collecting() else [texts]:
        words = dict.fromkeys(word for text in some for word in codec.unknown_words(text))
        if not words:
            continue
        found = {word: " or ".join(map(repr, codec.similar_words(word))) for word in words}
        names = ", ".join(f"'{word}'" + (near and f" (did you mean {near}?)") for word, near in found.items())
        plural = "s" if len(words) > 1 else ""
        message = f"the model does not know the word{plural} {names}"
        warn_user(message, about=some[0], stacklevel=stacklevel + 1)
