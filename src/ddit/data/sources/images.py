"""Images of training samples: whatever is wrong with one becomes a `CorruptSample` with a countable cause."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

from ddit.data.samples import CorruptSample, SourceError
from ddit.data.sources.remote import AnyPath, RemotePath
from ddit.images import ImageTooLarge, NotAnImage, check_regular, image_size, read_image

HEADER_SIZE = 65_536
"""Bytes that hold the size of nearly every image; where they do not, the whole file is read."""

NUM_THREADS = 16  # reading headers waits for the disk or the network, not for the processor


def decode_image(data: bytes, name: str) -> Image.Image:
    """An encoded image as upright 8-bit RGB.

    Raises:
        CorruptSample: "empty file", "not an image", "too large", "truncated image" or "corrupt image".
    """
    if not data:
        raise CorruptSample("empty file", name)
    try:
        return read_image(data)
    except ImageTooLarge as error:
        raise CorruptSample("too large", f"{name}: {error}") from None
    except NotAnImage:
        raise CorruptSample("not an image", name) from None
    except ValueError as error:
        cause = "truncated image" if "truncated" in str(error).lower() else "corrupt image"
        raise CorruptSample(cause, f"{name}: {error}") from None


def load_image(path: AnyPath) -> Image.Image:
    """The image of a file; `CorruptSample` as in `decode_image`, or "missing file" or "unreadable file".

    Raises:
        SourceError: as `RemotePath.read`.
    """
    try:
        data = read_whole(path)
    except SourceError:
        raise
    except (FileNotFoundError, NotADirectoryError, ValueError):  # a name may hold a zero byte
        raise CorruptSample("missing file", str(path)) from None
    except OSError as error:
        raise CorruptSample("unreadable file", f"{path}: {error.strerror}") from None
    return decode_image(data, str(path))


def read_whole(path: AnyPath) -> bytes:
    """The bytes of a file, which must be a regular one; errors as theirs."""
    if isinstance(path, RemotePath):
        return path.read()
    check_regular(path)
    return path.read_bytes()


def measure_image(read: Callable[[int], bytes]) -> tuple[int, int]:
    """Width and height from `read(n)`, which gives a file's first n bytes (-1: all); (0, 0) if they cannot be told.

    A `SourceError` is raised as it comes.
    """
    try:
        data = read(HEADER_SIZE)
        size = image_size(data)
        if size is None and len(data) == HEADER_SIZE:
            size = image_size(read(-1))
    except SourceError:
        raise
    except (OSError, ValueError):
        return 0, 0
    return size or (0, 0)


def measure_file(path: AnyPath) -> tuple[int, int]:
    """Width and height of the image in a file; (0, 0) if they cannot be told."""

    def read(count: int) -> bytes:
        if isinstance(path, RemotePath):
            return path.fetch(0, count) if count >= 0 else path.read()
        check_regular(path)
        with path.open("rb") as file:
            return file.read(count)

    return measure_image(read)


def content_of(path: AnyPath) -> bytes:
    """What a sample's digest is made of: the bytes of its image, or where they are on another machine, the address."""
    return str(path).encode() if isinstance(path, RemotePath) else read_whole(path)


def measure_all(size_of: Callable[[int], tuple[int, int]], indices: Sequence[int]) -> np.ndarray:
    """`size_of` each index, in threads: (len(indices), 2) int32."""
    with ThreadPoolExecutor(NUM_THREADS) as threads:
        found = list(threads.map(size_of, indices))
    return np.array(found, np.int32).reshape(-1, 2)
