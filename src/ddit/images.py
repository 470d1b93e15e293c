"""Images from users and back: safe reading, fitting to the model's size, tensors in [-1, 1], enlarging."""

from __future__ import annotations

import io
import os
import stat
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any, TypeVar, Union

import numpy as np
from PIL import Image, ImageOps

from ddit.errors import near_misses

if TYPE_CHECKING:  # torch takes seconds to import, and a bad image should be reported at once
    from torch import Tensor

MAX_SIDE = 16_384
MAX_PIXELS = 64_000_000
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")

ORIENTATION = 0x0112  # EXIF
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
QUARTER_TURNS = (5, 6, 7, 8)

ImageSource = Union[str, os.PathLike[str], bytes, Image.Image, np.ndarray, "Tensor"]
Found = TypeVar("Found")

KINDS = "a path, an encoded file's bytes, a PIL image, a NumPy array or a tensor"
CHANNELS = (1, 3, 4)


def read_image(source: ImageSource) -> Image.Image:
    """Reads an image as 8-bit RGB, upright (EXIF), transparency on white, the first frame of an animation.

    Args:
        source: a path, an encoded file's bytes, a PIL image, a NumPy array (height, width, channels) or a tensor
            (channels, height, width). Arrays and tensors have 1, 3 (RGB) or 4 (RGBA) channels or, grey, no such
            dimension; they are uint8 from 0 to 255, floats from 0 to 1, or booleans.

    Raises:
        TypeError: for anything else.
        ValueError: one line; the file is missing or no regular file, is no image of a known format, is broken
            (whatever its decoder raises), or is larger than 16,384 pixels a side or 64 million in all (seen in the
            header, before anything is decoded); an array or tensor has another shape, dtype or range.
    """
    return _read(source, _to_rgb, "the image")


def read_mask(source: ImageSource) -> Image.Image:
    """Reads a mask as 8-bit grey of 0 and 255 alone: what is lighter than half is 255, what is transparent is 0.

    Arguments and errors as in `read_image`.
    """
    return _read(source, _to_mask, "the mask")


def read_transparency(source: ImageSource) -> Image.Image:
    """Reads where an image is transparent as a mask: 255 where its alpha is below half, 0 elsewhere.

    Arguments and errors as in `read_image`.
    """
    return _read(source, _to_transparency, "the image")


def is_animated(source: ImageSource) -> bool:
    """Whether an image has more than one frame, of which `read_image` takes the first.

    Arguments and errors as in `read_image`.
    """
    return _read(source, lambda image: bool(getattr(image, "is_animated", False)), "the image")


def image_sources(images: ImageSource | Sequence[ImageSource], what: str = "images") -> list[ImageSource]:
    """One image or many as a list; an array or tensor of four dimensions is many.

    Raises:
        ValueError: if there is none.
        TypeError: if it is neither.
    """
    many: Any = images
    if isinstance(images, str | os.PathLike | bytes | Image.Image) or (_is_pixels(images) and many.ndim != 4):
        return [many]
    if not isinstance(many, Iterable) or isinstance(many, Mapping | Set | io.IOBase):
        raise TypeError(f"{what} must be {KINDS}, or a list of these; got {type(many).__name__}")
    sources = list(many)
    if not sources:
        raise ValueError(f"no {what} given")
    return sources


def _read(source: ImageSource, convert: Callable[[Image.Image], Found], name: str) -> Found:
    if _is_pixels(source):
        source = _from_pixels(source, name)
    if isinstance(source, Image.Image):
        with _own_faults(name):  # it may be a file that is decoded only now
            _check_size(source.size, name)
            return convert(source)
    if isinstance(source, bytes):
        return _decode(io.BytesIO(source), convert, name)
    if not isinstance(source, str | os.PathLike):
        raise TypeError(f"{name} must be {KINDS}; got {type(source).__name__}")
    path = os.fspath(source)
    if path.startswith(("http://", "https://")):
        raise ValueError(f"'{path}' is an address, and nothing is downloaded: save the image to a file first")
    try:
        check_regular(path)
        with open(path, "rb") as file:
            return _decode(file, convert, f"'{path}'")
    except FileNotFoundError:
        raise ValueError(f"no such image: '{path}'{_near_files(path)}") from None
    except OSError as error:
        raise ValueError(f"'{path}' cannot be read: {(error.strerror or str(error)).lower()}") from None


def _is_pixels(source: Any) -> bool:
    """Whether it is an array or a tensor, without importing torch."""
    torch = sys.modules.get("torch")
    return isinstance(source, np.ndarray) or (torch is not None and isinstance(source, torch.Tensor))


def _from_pixels(source: Any, name: str) -> Image.Image:
    """The image of an array (H, W[, C]) or a tensor ([C,] H, W); see `read_image`."""
    if isinstance(source, np.ndarray):
        values, kind, layout, channels = source, "an array", "(height, width, channels)", -1
    else:
        tensor = source.detach().cpu()
        values = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
        kind, layout, channels = "a tensor", "(channels, height, width)", 0
    shape = values.shape
    if values.ndim not in (2, 3) or not values.size:
        raise ValueError(f"{name}: {kind} must be (height, width) or {layout}, got {shape}")
    if values.ndim == 3 and shape[channels] not in CHANNELS:
        turn = "transpose(1, 2, 0)" if channels else "permute(2, 0, 1)"
        is_turned = shape[-1 - channels] in CHANNELS
        advice = f"try image.{turn}" if is_turned else "of 1, 3 or 4 channels"
        raise ValueError(f"{name}: {kind} must be {layout}, got {shape}; {advice}")
    levels = _levels(values, name)
    if values.ndim == 3:
        levels = np.moveaxis(levels, channels, -1)
        levels = levels[..., 0] if levels.shape[-1] == 1 else levels
    return Image.fromarray(np.ascontiguousarray(levels))


def _levels(values: np.ndarray, name: str) -> np.ndarray:
    """Pixels as uint8."""
    if values.dtype == np.uint8:
        return values
    if values.dtype == bool:
        return values.astype(np.uint8) * 255
    if not np.issubdtype(values.dtype, np.floating):
        raise ValueError(f"{name}: pixels must be uint8 (0 to 255) or floats (0 to 1), got {values.dtype}")
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 1):  # also where one is not a number
        signed = low >= -1 and high <= 1
        advice = "from -1 to 1, give image / 2 + 0.5" if signed else "from 0 to 255, give image / 255"
        raise ValueError(f"{name}: floats must be from 0 to 1, got {low:.3g} to {high:.3g}; {advice}")
    return np.round(values * 255).astype(np.uint8)


def check_regular(path: str | os.PathLike[str]) -> None:
    """Raises ValueError for a folder, or for what may never end, such as a pipe or a device; `OSError` if missing."""
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        raise ValueError(f"'{os.fspath(path)}' is a folder, not an image")
    if not stat.S_ISREG(mode):
        raise ValueError(
            f"'{os.fspath(path)}' is a pipe or a device, not a file: save the image to a file first"
        )


def _near_files(path: str) -> str:
    """The files of the same folder whose names are like it."""
    folder, name = os.path.split(path)
    try:
        with os.scandir(folder or ".") as entries:
            names = [entry.name for entry in entries if entry.is_file()]
    except OSError:
        return ""
    return near_misses(name, names)


def _decode(file: IO[bytes], convert: Callable[[Image.Image], Found], name: str) -> Found:
    with _own_faults(name), _open(file) as image:
        _check_size(image.size, name)
        return convert(image)


def _open(file: IO[bytes]) -> Image.Image:
    Image.init()
    return Image.open(file, formats=[known for known in FORMATS if known in Image.OPEN])


@contextmanager
def _own_faults(name: str) -> Iterator[None]:
    """Makes whatever a decoder raises the fault of the image `name`: one line, and no warnings."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd metadata, and of sizes that are refused anyway
            yield
    except Image.DecompressionBombError:
        raise ImageTooLarge(f"{name} {_too_large()}") from None
    except Image.UnidentifiedImageError:
        raise NotAnImage(f"{name} is not an image of a known format ({', '.join(FORMATS)})") from None
    except (ImageTooLarge, MemoryError):
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{name} is a broken image: {reason}") from None


class ImageTooLarge(ValueError):
    """An image beyond `MAX_SIDE` or `MAX_PIXELS`."""


class NotAnImage(ValueError):
    """A file of no known image format."""


def image_size(data: bytes) -> tuple[int, int] | None:
    """Width and height, upright, of an encoded image by its header alone; None if it cannot be told.

    `data` may be the file's beginning only.
    """
    try:
        with _own_faults("the image"), _open(io.BytesIO(data)) as image:
            # without this check, asking a PNG for its EXIF data would decode the whole of it; a TIFF's size is turned
            is_told = image.format != "TIFF" and not image.info.keys().isdisjoint(("exif", "xmp"))
            turned = is_told and _orientation(image) in QUARTER_TURNS
            return (image.height, image.width) if turned else image.size
    except ValueError:
        return None


def _too_large() -> str:
    return f"is larger than the limit of {MAX_SIDE:,} pixels a side and {MAX_PIXELS // 10**6} million in all"


def _check_size(size: tuple[int, int], name: str) -> None:
    if max(size) > MAX_SIDE or size[0] * size[1] > MAX_PIXELS:
        raise ImageTooLarge(f"{name} ({size[0]}x{size[1]}) {_too_large()}")
    if min(size) < 1:
        raise ValueError(f"it has {size[0]}x{size[1]} pixels")


def turn_upright(image: Image.Image) -> Image.Image:
    """Turns an image as its EXIF data say; what else they hold is not looked at, and may be malformed."""
    image.load()  # a TIFF is turned by this
    turn = TURNS.get(_orientation(image))
    return image if turn is None else image.transpose(turn)


def _orientation(image: Image.Image) -> int:
    """1 to 8 of the EXIF standard; 1, which is upright, if there is none that can be read."""
    try:
        found = image.getexif().get(ORIENTATION)
    except Exception:
        return 1
    return found if isinstance(found, int) and found in TURNS else 1


def _to_rgb(image: Image.Image) -> Image.Image:
    image = turn_upright(image)
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_to_8_bit(np.asarray(image))).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _to_mask(image: Image.Image) -> Image.Image:
    image = turn_upright(image)
    if image.mode.startswith("I") or image.mode == "F":
        image = Image.fromarray(_to_8_bit(np.asarray(image)))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image)
    return image.convert("L").point([0] * 128 + [255] * 128)


def _to_transparency(image: Image.Image) -> Image.Image:
    image = turn_upright(image)
    if not image.has_transparency_data:
        return Image.new("L", image.size, 0)
    return image.convert("RGBA").getchannel("A").point([255] * 128 + [0] * 128)


def _to_8_bit(values: np.ndarray) -> np.ndarray:
    """Grey values of 16-bit integers, or of floats in [0, 1] (or [0, 255]), as 8-bit integers."""
    if np.issubdtype(values.dtype, np.floating):
        values = np.nan_to_num(values, nan=0, posinf=255, neginf=0)
        values = values * (255.0 if values.max() <= 1 else 1.0)
    else:
        values = values / 257.0
    return np.clip(np.round(values), 0, 255).astype(np.uint8)


def fit_image(image: Image.Image, height: int, width: int) -> Image.Image:
    """Resizes (bicubic, antialiased) and centre-crops to height x width, unless it has that size."""
    if image.size == (width, height):
        return image
    return ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC)


def to_tensor(images: list[Image.Image]) -> Tensor:
    """RGB images of one size -> (B, 3, H, W) float32 in [-1, 1]."""
    import torch

    pixels = torch.from_numpy(np.stack([np.asarray(image) for image in images]))
    return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1


def to_images(pixels: Tensor) -> list[Image.Image]:
    """(B, 3, H, W) in [-1, 1] (clipped) -> RGB images."""
    values = ((pixels.float().clamp(-1, 1) + 1) * 127.5).round().byte()
    return [Image.fromarray(image) for image in values.permute(0, 2, 3, 1).cpu().numpy()]


def upscale_image(image: Image.Image, factor: int) -> Image.Image:
    """Enlarges `factor` times each side (Lanczos), so that a person can see a 64-pixel image.

    Raises:
        ValueError: if the factor is below 1 or the result would exceed `MAX_SIDE`.
    """
    if factor < 1:
        raise ValueError(f"cannot upscale {factor} times: the factor must be at least 1")
    if max(image.size) * factor > MAX_SIDE:
        raise ValueError(f"{image.width}x{image.height} upscaled {factor} times exceeds {MAX_SIDE:,} a side")
    if factor == 1:
        return image
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.LANCZOS)
