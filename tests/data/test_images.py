"""Images of training samples: every kind that people have is read, and every fault has its cause."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddit.data.samples import CorruptSample
from ddit.data.sources.images import decode_image, load_image, measure_file


def make_image(mode: str = "RGB", width: int = 60, height: int = 40) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values).convert(mode)


def encoded(image: Image.Image, form: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(make_image(), "JPEG", exif=exif)


def animated() -> bytes:
    frames = [Image.new("RGB", (60, 40), color) for color in ("red", "blue")]
    return encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])


KINDS = {
    "rgba": encoded(make_image("RGBA"), "PNG"),
    "palette": encoded(make_image("P"), "PNG"),
    "grey": encoded(make_image("L"), "JPEG"),
    "cmyk": encoded(make_image("CMYK"), "JPEG"),
    "16 bit": encoded(Image.fromarray(np.full((40, 60), 40_000, np.uint16)), "PNG"),
    "webp": encoded(make_image(), "WEBP"),
    "animated": animated(),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_image_is_rgb(kind: str) -> None:
    read = decode_image(KINDS[kind], kind)
    assert (read.mode, read.size) == ("RGB", (60, 40))


@pytest.mark.parametrize("kind", [*KINDS, "turned"])
def test_the_size_in_the_header_is_that_of_the_decoded_image(kind: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(turned() if kind == "turned" else KINDS[kind])
    assert measure_file(tmp_path / "file") == load_image(tmp_path / "file").size
    assert measure_file(tmp_path / "file") == ((40, 60) if kind == "turned" else (60, 40))


def test_a_size_behind_a_long_header_is_found(tmp_path: Path) -> None:
    data = encoded(make_image(), "JPEG", icc_profile=bytes(300_000))
    (tmp_path / "file").write_bytes(data)
    assert data.find(b"\xff\xc0") > 65_536
    assert measure_file(tmp_path / "file") == (60, 40)


FAULTS = {
    "empty file": b"",
    "not an image": b"<html>404</html>",
    "truncated image": encoded(make_image(), "JPEG")[:700],
    "corrupt image": encoded(make_image(), "WEBP")[:700],
    "too large": b"P5 20000 20000 255\n",
}


@pytest.mark.parametrize("cause", FAULTS)
def test_every_fault_has_its_cause(cause: str, tmp_path: Path) -> None:
    (tmp_path / "file.jpg").write_bytes(FAULTS[cause])
    with pytest.raises(CorruptSample) as caught:
        load_image(tmp_path / "file.jpg")
    assert caught.value.cause == cause
    assert str(tmp_path / "file.jpg") in str(caught.value)


def test_truncated_images_of_every_format_are_corrupt_samples() -> None:
    for form in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"):
        data = encoded(make_image(), form)
        for size in (1, 10, len(data) // 2):
            with pytest.raises(CorruptSample):
                decode_image(data[:size], form)


@pytest.mark.parametrize("name", ["none.jpg", "", "file/none.jpg", "zero\0byte.jpg"])
def test_a_missing_file_has_its_cause_and_no_size(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CorruptSample) as caught:
        load_image(tmp_path / name)
    assert caught.value.cause == "missing file"
    assert measure_file(tmp_path / name) == (0, 0)


def test_what_may_never_end_is_an_unreadable_file_and_has_no_size(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    for path in (tmp_path / "pipe.jpg", Path("/dev/zero")):
        with pytest.raises(CorruptSample) as caught:
            load_image(path)
        assert caught.value.cause == "missing file"
        assert measure_file(path) == (0, 0)


@pytest.mark.parametrize("form", ["JPEG", "WEBP", "TIFF", "AVIF", "PNG"])
@pytest.mark.parametrize("where", ["exif", "xmp"])
def test_the_size_of_a_turned_image_is_upright(form: str, where: str, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    options = {"exif": exif} if where == "exif" else {"xmp": b'<x tiff:Orientation="6"/>'}
    (tmp_path / "file").write_bytes(encoded(make_image(), form, **options))
    assert measure_file(tmp_path / "file") == load_image(tmp_path / "file").size
