"""Images from users: every mode and orientation, size limits, broken files, fitting, enlarging."""

import io
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ddit.images import fit_image, image_sources, read_image, read_mask, to_images, to_tensor, upscale_image


def small_image(width: int = 6, height: int = 4) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def encoded(image: Image.Image, format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def test_path_bytes_and_image_give_the_same(tmp_path: Path):
    image = small_image()
    image.save(tmp_path / "a.png")
    for source in (tmp_path / "a.png", str(tmp_path / "a.png"), encoded(image), image):
        assert read_image(source).tobytes() == image.tobytes()


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "RGBA", "LA", "I;16", "F"])
def test_every_mode_becomes_rgb(mode: str):
    if mode == "I;16":
        image = Image.fromarray(np.full((2, 2), 65535, dtype=np.uint16))
    elif mode == "F":
        image = Image.fromarray(np.ones((2, 2), dtype=np.float32))
    else:
        image = Image.new("RGB", (2, 2), "white").convert(mode)
    read = read_image(image)
    assert read.mode == "RGB"
    assert read.getpixel((0, 0)) == (255, 255, 255)


def test_16_bit_png_keeps_its_brightness():
    data = encoded(Image.fromarray(np.full((2, 2), 32896, dtype=np.uint16)))
    assert read_image(data).getpixel((0, 0)) == (128, 128, 128)


def test_transparency_shows_white():
    image = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    image.putpixel((1, 0), (0, 0, 0, 0))
    read = read_image(encoded(image))
    assert [read.getpixel((x, 0)) for x in (0, 1)] == [(255, 0, 0), (255, 255, 255)]


def test_transparent_palette_shows_white():
    image = Image.new("P", (1, 1), 0)
    image.putpalette([0, 0, 0])
    assert read_image(encoded(image, transparency=0)).getpixel((0, 0)) == (255, 255, 255)


def test_exif_rotation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    assert read_image(encoded(small_image(6, 4), "JPEG", exif=exif)).size == (4, 6)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_of_every_format_is_turned_upright(form: str, orientation: int):
    exif = Image.Exif()
    exif[0x0112] = orientation
    corners = Image.new("RGB", (48, 32), "white")
    corners.paste("red", (0, 0, 24, 16))
    read = read_image(encoded(corners, form, exif=exif))
    assert read.size == ((32, 48) if orientation > 4 else (48, 32))
    reds = {(x, y) for x in (0, 1) for y in (0, 1) if _is_red(read, x, y)}
    upper_left = {1: (0, 0), 2: (1, 0), 3: (1, 1), 4: (0, 1), 5: (0, 0), 6: (1, 0), 7: (1, 1), 8: (0, 1)}
    assert reds == {upper_left[orientation]}


def _is_red(image: Image.Image, x: int, y: int) -> bool:
    """Whether a quarter of the image is red."""
    red, green, _ = image.getpixel((5 + x * (image.width - 11), 5 + y * (image.height - 11)))
    return red > 200 and green < 60


def test_metadata_that_are_not_needed_may_be_malformed():
    """Rationals with a negative part, text for a number and bytes for text, which cannot be written again."""
    whole = encoded(small_image(48, 32), "JPEG")
    plain = read_image(whole)
    directory = [
        (0x0112, 3, 1, 6 << 16),
        (0x011A, 10, 1, 50),
        (0x0128, 2, 4, 0x41424300),
        (0x010E, 7, 4, 0xFF00FE01),
    ]
    body = b"".join(struct.pack(">HHII", *entry) for entry in sorted(directory))
    tiff = b"MM\0*" + struct.pack(">IH", 8, len(directory)) + body + bytes(4) + struct.pack(">ii", -7, 0)
    for exif, is_turned in ((tiff, True), (tiff[:40], True), (b"MM\0*junk", False), (b"junk", False)):
        data = b"Exif\0\0" + exif
        read = read_image(whole[:2] + b"\xff\xe1" + struct.pack(">H", len(data) + 2) + data + whole[2:])
        expected = plain.transpose(Image.Transpose.ROTATE_270) if is_turned else plain
        assert read.tobytes() == expected.tobytes()
        assert read.size == expected.size


@pytest.mark.parametrize("error", [RuntimeError, KeyError, TypeError, ZeroDivisionError, RecursionError])
def test_whatever_a_decoder_raises_is_the_fault_of_its_image(error: type, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(Image.Image, "convert", fail)
    with pytest.raises(ValueError, match=r"^the image is a broken image: "):
        read_image(encoded(small_image()))


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
def test_what_is_no_fault_of_an_image_passes(error: type, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(Image.Image, "convert", fail)
    with pytest.raises(error):
        read_image(encoded(small_image()))


def test_an_avif_whose_end_is_lost_is_broken():
    """Its decoder raises RuntimeError."""
    data = encoded(Image.radial_gradient("L").resize((64, 64)).convert("RGB"), "AVIF")
    assert read_image(data).size == (64, 64)
    for kept in (len(data) // 2, 3 * len(data) // 4):
        with pytest.raises(ValueError, match="is a broken image"):
            read_image(data[:kept] + bytes(len(data) - kept))


def test_what_may_never_end_is_not_opened(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path / "pipe.png", "/dev/zero"):
        with pytest.raises(ValueError, match="is a pipe or a device"):
            read_image(path)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_pixels_that_are_no_numbers_are_no_fault(value: float):
    pixels = np.full((2, 2), 0.5, dtype=np.float32)
    pixels[0, 0] = value
    assert read_image(Image.fromarray(pixels)).size == (2, 2)
    assert read_image(encoded(Image.fromarray(np.full((2, 2), value, np.float32)), "TIFF")).size == (2, 2)


def test_an_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (2, 2), color) for color in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert read_image(data).getpixel((0, 0)) == (255, 0, 0)


def test_an_image_too_wide_is_refused():
    with pytest.raises(ValueError, match=r"20000x1\) is larger than the limit of 16,384 pixels a side"):
        read_image(encoded(Image.new("1", (20_000, 1))))


@pytest.mark.parametrize("side", [9_000, 10_000, 20_000])
def test_an_image_of_too_many_pixels_is_refused_by_its_header(side: int):
    header = b"P5 %d %d 255\n" % (side, side)  # the pixels themselves are missing
    with pytest.raises(ValueError, match="64 million in all") as caught:
        read_image(header)
    assert "\n" not in str(caught.value)


def test_what_is_no_image_gets_one_line(tmp_path: Path):
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "broken.png").write_bytes(encoded(small_image(60, 40))[:200])
    (tmp_path / "broken.jpg").write_bytes(encoded(small_image(60, 40), "JPEG")[:300])
    (tmp_path / "script.eps").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n")
    faults = {
        "missing.png": "no such image",
        "text.png": "is not an image of a known format",
        "empty.png": "is not an image of a known format",
        "script.eps": "is not an image of a known format",
        "broken.png": "is a broken image",
        "broken.jpg": "is a broken image",
        ".": "is a folder, not an image",
    }
    for name, fault in faults.items():
        with pytest.raises(ValueError, match=fault) as caught:
            read_image(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_fitting_crops_the_centre():
    image = Image.new("RGB", (30, 10), "red")
    image.paste("blue", (10, 0, 20, 10))
    fitted = fit_image(image, 4, 4)
    assert fitted.size == (4, 4)
    assert all(fitted.getpixel((x, y))[2] > 200 for x in (1, 2) for y in range(4))


def test_a_fitting_image_is_untouched():
    image = small_image()
    assert fit_image(image, 4, 6) is image


def test_a_long_thin_image_is_fitted_without_blowing_it_up():
    assert fit_image(Image.new("RGB", (16_384, 1)), 512, 512).size == (512, 512)


def test_tensor_and_back():
    image = small_image()
    tensor = to_tensor([image, image])
    assert tensor.shape == (2, 3, 4, 6)
    assert tensor.dtype == torch.float32
    assert tensor.min() >= -1
    assert tensor.max() <= 1
    assert [back.tobytes() for back in to_images(tensor)] == [image.tobytes()] * 2


def test_pixels_beyond_the_range_are_clipped():
    assert to_images(torch.full((1, 3, 1, 1), 7.0))[0].getpixel((0, 0)) == (255, 255, 255)


def test_upscaling():
    assert upscale_image(small_image(), 3).size == (18, 12)
    with pytest.raises(ValueError, match="at least 1"):
        upscale_image(small_image(), 0)
    with pytest.raises(ValueError, match="exceeds"):
        upscale_image(small_image(), 10_000)


def test_a_mask_is_black_and_white_in_every_mode(tmp_path: Path):
    grey = Image.fromarray(np.array([[0, 127, 128, 255]], dtype=np.uint8))
    expected = [0, 0, 255, 255]
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    unit = Image.fromarray(np.asarray(grey).astype(np.float32) / 255)
    for mask in (grey, grey.convert("RGB"), grey.convert("RGBA"), deep, unit):
        read = read_mask(mask)
        assert read.mode == "L"
        assert np.asarray(read).tolist() == [expected], mask.mode
    grey.save(tmp_path / "mask.png")
    assert np.asarray(read_mask(tmp_path / "mask.png")).tolist() == [expected]
    assert np.asarray(read_mask(grey.convert("1", dither=Image.Dither.NONE))).tolist() == [expected]


def test_what_is_transparent_in_a_mask_is_black():
    painted = Image.new("RGBA", (3, 1), (255, 255, 255, 0))
    painted.putpixel((1, 0), (255, 255, 255, 255))
    painted.putpixel((2, 0), (255, 255, 255, 100))
    assert np.asarray(read_mask(painted)).tolist() == [[0, 255, 0]]


def test_one_source_or_many_are_a_list():
    image = Image.new("RGB", (2, 2))
    assert image_sources(image) == image_sources([image]) == [image]
    assert image_sources("a.png") == ["a.png"]
    with pytest.raises(ValueError, match="no masks given"):
        image_sources([], "masks")


# --- arrays and tensors ---


def test_arrays_and_tensors_of_every_kind_are_the_same_image():
    image = small_image()
    levels = np.asarray(image)
    tensor = torch.from_numpy(levels.copy()).permute(2, 0, 1)
    unit = tensor.double() / 255
    same = [
        levels,
        levels / 255,
        (levels / 255).astype(np.float32),
        tensor,
        unit,
        unit.float().requires_grad_(),
    ]
    assert [read_image(pixels).tobytes() for pixels in same] == [image.tobytes()] * len(same)
    assert np.abs(np.asarray(read_image(unit.bfloat16()), dtype=int) - levels).max() <= 1


def test_grey_and_transparent_pixels():
    grey = np.array([[0, 127, 255]], dtype=np.uint8)
    for pixels in (grey, grey[..., None], torch.from_numpy(grey), torch.from_numpy(grey)[None]):
        assert np.asarray(read_image(pixels))[0].tolist() == [[level] * 3 for level in (0, 127, 255)]
    clear = np.zeros((1, 2, 4), dtype=np.uint8)
    clear[0, 1, 3] = 255
    assert np.asarray(read_image(clear))[0].tolist() == [[255] * 3, [0] * 3]


def test_a_mask_may_be_booleans_or_floats():
    white = np.array([[True, False]])
    for mask in (white, white.astype(np.float32), torch.from_numpy(white), white.astype(np.uint8) * 255):
        assert np.asarray(read_mask(mask)).tolist() == [[255, 0]]


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.zeros((3, 8, 9)), r"an array must be \(height, width, channels\), got \(3, 8, 9\); try image.transpose"),
        (torch.zeros(8, 9, 3), r"a tensor must be \(channels, height, width\), got \(8, 9, 3\); try image.permute"),
        (np.zeros((8, 9, 5)), r"got \(8, 9, 5\); of 1, 3 or 4 channels"),
        (np.zeros((0, 9, 3)), r"got \(0, 9, 3\)"),
        (np.zeros(9), r"must be \(height, width\) or"),
        (np.linspace(-1, 1, 27).reshape(3, 3, 3), r"from 0 to 1, got -1 to 1; from -1 to 1, give image / 2"),
        (torch.full((3, 2, 2), 255.0), r"got 255 to 255; from 0 to 255, give image / 255"),
        (np.full((2, 2), np.nan), r"floats must be from 0 to 1, got nan to nan"),
        (np.zeros((2, 2), dtype=np.int64), r"must be uint8 \(0 to 255\) or floats \(0 to 1\), got int64"),
        (np.zeros((1, 20_000), dtype=np.uint8), r"larger than the limit"),
    ],
)  # fmt: skip
def test_pixels_of_another_shape_or_range_are_refused(pixels: Any, message: str):
    with pytest.raises(ValueError, match=message) as caught:
        read_image(pixels)
    assert "\n" not in str(caught.value)


def test_four_dimensions_are_a_batch():
    levels = np.stack([np.asarray(small_image())] * 2)
    assert len(image_sources(levels)) == len(image_sources(torch.from_numpy(levels).permute(0, 3, 1, 2))) == 2
    assert len(image_sources(levels[0])) == 1
    with pytest.raises(ValueError, match="no images given"):
        image_sources(levels[:0])


@pytest.mark.parametrize("source", [5, None, object()])
def test_what_is_no_image_at_all_is_a_type_error(source: Any):
    for read in (read_image, image_sources, lambda item: image_sources([item]) and read_mask(item)):
        with pytest.raises(
            TypeError, match=f"a path, .* a NumPy array or a tensor.*got {type(source).__name__}"
        ):
            read(source)


def test_an_address_is_not_a_path():
    with pytest.raises(ValueError, match=r"'https://a.b/c.png' is an address, and nothing is downloaded"):
        read_image("https://a.b/c.png")
