"""`fuzz.py SECONDS SEED`: damages files of every form that is read, and prints how many were tried and what came of it.

Run in a process of its own, since a decoder may crash. Exit code 1 if anything but the announced errors was raised.
"""

import io
import json
import random
import sys
import tarfile
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin

from ddit.config.data import JsonData, LlavaData, QuestionsData, TarData, TextData
from ddit.data.samples import CorruptSample
from ddit.data.sources import open_source
from ddit.data.sources.images import decode_image
from ddit.images import image_size, read_mask, read_transparency

WIDTH, HEIGHT = 37, 23
WORDS = (b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\1\0")
TEXTS = (
    b'"\\ud83d"',
    b"[" * 20_000,
    b"1e999",
    b"null",
    b"-",
    b'"\\u0000"',
    b"99999999999999999999",
    b"{}",
    b"\xff",
)


def check_one_line(error: ValueError) -> str:
    """What became of a file that was refused: the reason must be one line."""
    if "\n" in str(error):
        raise AssertionError(f"more than one line: {error}")
    return "refused"


def encoded(form: str, mode: str = "RGB", **options: object) -> bytes:
    values = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    image = Image.fromarray(values).convert(mode)
    if mode == "I;16":
        image = Image.fromarray(values[..., 0].astype(np.uint16) * 257)
    if options.pop("animated", False):
        options |= {"save_all": True, "append_images": [image.rotate(90), image.rotate(180)]}
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def image_seeds() -> dict[str, bytes]:
    """Small files of every format and many of its kinds, with metadata."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010E], exif[0x011A] = 6, "text", 1.5
    exif.get_ifd(0x8769)[0x9003] = "2020:01:01 00:00:00"
    text = PngImagePlugin.PngInfo()
    text.add_text("a", "b" * 100)
    text.add_itxt("x", "y", zip=True)
    seeds = {
        f"PNG {mode}": encoded("PNG", mode, pnginfo=text, exif=exif)
        for mode in ("1", "L", "P", "RGBA", "I;16")
    }
    seeds |= {
        f"JPEG {mode}": encoded("JPEG", mode, exif=exif, icc_profile=bytes(300))
        for mode in ("L", "RGB", "CMYK")
    }
    seeds |= {f"BMP {mode}": encoded("BMP", mode) for mode in ("1", "L", "P", "RGB", "RGBA")}
    seeds |= {f"PPM {mode}": encoded("PPM", mode) for mode in ("1", "L", "RGB", "F")}
    seeds |= {f"TIFF {mode}": encoded("TIFF", mode, exif=exif) for mode in ("RGB", "CMYK", "F", "I;16")}
    for compression in ("tiff_lzw", "tiff_deflate", "packbits", "jpeg"):
        seeds[f"TIFF {compression}"] = encoded("TIFF", compression=compression)
    for form in ("PNG", "GIF", "WEBP", "AVIF", "MPO"):
        seeds[f"{form} animated"] = encoded(form, animated=True)
    return seeds | {
        "JPEG progressive": encoded("JPEG", progressive=True),
        "GIF": encoded("GIF", "P", transparency=2),
        "WEBP": encoded("WEBP", "RGBA", exif=exif),
        "WEBP lossless": encoded("WEBP", lossless=True),
        "AVIF": encoded("AVIF", "RGBA", exif=exif),
        "PPM ASCII": b"P3 2 2 255\n" + b"1 2 3 " * 4,
    }


def source_seeds() -> dict[str, bytes]:
    """A tar and the forms of JSON, each with a few samples."""
    image = encoded("PNG")
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for number in range(4):
            texts = {"txt": b"a red dog", "json": b'{"caption": "a red dog", "width": 37, "height": 23}'}
            for suffix, data in {"png": image, **texts}.items():
                member = tarfile.TarInfo(f"{number:05d}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    entry = {"image_path": "a.png", "caption": "a red dog", "re_caption": "a dog", "width": 37, "height": 23}
    said = [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "a dog"}]
    questions = [
        {"image_id": "a", "question": "what?", "answers": ["a dog"], "question_id": i} for i in range(4)
    ]
    return {
        "txt": "a red dog\n\nKäfer 🙂\n".encode() * 4,
        "csv": 'id,text\n1,"a ""red"" dog,\nleft"\n2,Käfer\n'.encode() * 4,
        "tar": buffer.getvalue(),
        "json": json.dumps([entry] * 4).encode(),
        "jsonl": "".join(json.dumps(entry) + "\n" for _ in range(4)).encode(),
        "llava": json.dumps([{"id": i, "image": "a.png", "conversations": said} for i in range(4)]).encode(),
        "questions": json.dumps(questions).encode(),
        "annotations": json.dumps({"questions": questions, "annotations": questions}).encode(),
    }


def damage(data: bytes, rng: random.Random, *, is_text: bool) -> bytes:
    """Cuts, zeroes, repeats or overwrites parts, or flips bits, more often near the beginning."""
    way, out = rng.random(), bytearray(data)
    if way < 0.15:
        return bytes(data[: rng.randrange(len(data) + 1)])
    place = rng.randrange(min(len(data), 200) if rng.random() < 0.5 else len(data))
    if way < 0.25:
        end = min(len(data), place + rng.randrange(64))
        out[place:end] = bytes(end - place)
    elif way < 0.35:
        other = rng.randrange(len(data))
        out[place:place] = data[other : other + rng.randrange(64)]
    elif way < 0.55:
        out[place : place + rng.randrange(1, 9)] = rng.choice(TEXTS if is_text else WORDS)
    else:
        for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
            out[place] ^= rng.randrange(1, 256)
            place = rng.randrange(len(data))
    return bytes(out)


ODD = (
    None,
    True,
    -1,
    2**80,
    1.5,
    "",
    "\ud83d",
    "\0",
    "/dev/zero",
    "..",
    [],
    [None],
    [[]],
    ["a", "b"],
    {},
    {"a": []},
)


def exchange(data: bytes, rng: random.Random) -> bytes:
    """Puts odd values in the place of one or more of JSON's."""

    def change(value: object) -> object:
        if rng.random() < 0.03:
            return rng.choice(ODD)
        if isinstance(value, dict):
            return {key: change(entry) for key, entry in value.items()}
        return [change(entry) for entry in value] if isinstance(value, list) else value

    lines = data.splitlines() if data.startswith(b'{"image_path') else [data]
    return b"\n".join(json.dumps(change(json.loads(line))).encode() for line in lines)


def read_as_image(data: bytes, folder: Path) -> str:
    size = image_size(data)
    try:
        image = decode_image(data, "name")
    except CorruptSample as error:
        return error.cause
    assert image.mode == "RGB"
    assert size in (image.size, image.size[::-1], None), f"{size} in the header, {image.size} decoded"
    for read in (read_mask, read_transparency):
        try:
            assert read(data).size == image.size
        except ValueError:
            continue
    return "read"


def read_as_source(kind: str, data: bytes, folder: Path) -> str:
    suffix = kind if kind in ("tar", "jsonl", "txt", "csv") else "json"
    path = folder / f"data.{suffix}"
    for left in folder.glob("*data*"):  # what is cached beside it
        left.unlink()
    path.write_bytes(data)
    configs = {"tar": TarData(str(path)), "llava": LlavaData(str(path)), "txt": TextData(str(path))}
    configs["csv"] = TextData(str(path), text_key="text")
    configs["questions"] = QuestionsData(str(path), annotations="", image_pattern="{image_id}.png")
    configs["annotations"] = QuestionsData(str(path), annotations=str(path), image_pattern="{image_id}.png")
    try:
        source = open_source(configs.get(kind, JsonData(str(path))))
        source.sizes()
        source.digests()
    except ValueError as error:
        return check_one_line(error)
    for index in range(len(source)):
        for i2t in (True, False):
            try:
                source.sample(index, random.Random(0), i2t=i2t)
            except CorruptSample:
                continue
    return "read"


def main(seconds: float, seed: int) -> int:
    warnings.simplefilter("error")
    rng, found, faults = random.Random(seed), Counter(), 0
    images, sources = image_seeds(), source_seeds()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "a.png").write_bytes(images["PNG RGBA"])
        readers: dict[str, Callable[[bytes, Path], str]] = dict.fromkeys(images, read_as_image)
        readers |= {
            kind: lambda data, folder, kind=kind: read_as_source(kind, data, folder) for kind in sources
        }
        seeds = images | sources
        for kind, data in seeds.items():
            assert readers[kind](data, folder) == "read", kind
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            kind = rng.choice([*images, *[*sources] * 3])
            if kind in sources and kind not in ("tar", "txt", "csv") and rng.random() < 0.5:
                data = exchange(seeds[kind], rng)
            else:
                data = damage(seeds[kind], rng, is_text=kind in sources)
            try:
                found[readers[kind](data, folder)] += 1
            except BaseException as error:
                faults += 1
                kept = Path(tempfile.gettempdir()) / f"fuzz-{seed}-{faults}"
                kept.write_bytes(data)
                print(f"{kind}, kept as {kept}:", *traceback.format_exception(error), file=sys.stderr)
    print(json.dumps({"files": found.total() + faults, "faults": faults, "outcomes": found}))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]), int(sys.argv[2])))
