"""Files: text and JSON; safetensors in any variant (pickles are refused by name); files and folders written whole."""

from __future__ import annotations

import codecs
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from safetensors import SafetensorError, safe_open

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Json = TypeVar("Json", dict[str, Any], list[Any])

PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def read_text(path: Path) -> str:
    """A text file in UTF-8, with or without a byte order mark, or in UTF-16 with one; lines end with a newline.

    Raises:
        OSError: as for any file.
        ValueError: in one line, for bytes of another encoding.
    """
    data = path.read_bytes()
    is_utf_16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = data.decode("utf-16" if is_utf_16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"'{path}' is not text in UTF-8: {error}") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_json(path: Path, kind: type[Json] = dict) -> Json:
    """A JSON object, or a list; ValueError in one line if it is missing, broken or of another kind."""
    try:
        values = json.loads(read_text(path))
    except FileNotFoundError:
        raise ValueError(f"'{path.parent}' is incomplete: it has no {path.name}") from None
    except RecursionError:
        raise ValueError(f"'{path}' is not valid JSON: it is nested too deep") from None
    except ValueError as error:
        raise ValueError(f"'{path}' is not valid JSON: {error}") from None
    if not isinstance(values, kind):
        wanted = "object" if kind is dict else "list"
        raise ValueError(f"'{path}' should hold a JSON {wanted}, not a {type(values).__name__}")
    return values


@contextmanager
def write_atomically(path: Path) -> Iterator[Path]:
    """A file beside `path` to be written, which takes its name if all goes well and is removed otherwise."""
    part = _beside(path)
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def write_folder_atomically(folder: Path) -> Iterator[Path]:
    """A new folder beside `folder`, which takes its place if all goes well and is removed otherwise."""
    part, old = _beside(folder), _beside(folder)
    part.mkdir(parents=True)
    try:
        yield part
        if folder.exists():
            folder.rename(old)
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}")


def list_names(names: Iterable[str], at_most: int = 4) -> str:
    names = list(names)
    rest = f" and {len(names) - at_most} more" if len(names) > at_most else ""
    return ", ".join(names[:at_most]) + rest


class SafetensorsFiles:
    """The tensors of a folder's safetensors files, single or sharded, read one by one.

    Raises:
        ValueError: if there are none (files that may hold pickles are named and refused), if a shard is
            missing, or if a file cannot be read.
    """

    def __init__(self, folder: Path, stem: str, dtype: torch.dtype | None) -> None:
        self.folder = folder
        self.file_of: dict[str, Path] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        for path in find_weights(folder, stem, dtype):
            try:
                with safe_open(path, framework="pt") as file:
                    for name in file.keys():  # noqa: SIM118 (not a dict)
                        self.file_of[name] = path
                        self.shapes[name] = tuple(file.get_slice(name).get_shape())
            except (SafetensorError, OSError) as error:
                raise ValueError(f"'{path}' cannot be read as safetensors: {error}") from None

    def read(
        self, names: Iterable[str], dtype: torch.dtype | None, device: torch.device | str
    ) -> dict[str, Tensor]:
        """The named tensors; those that need no conversion stay mapped to the file until they are touched."""
        wanted, tensors = set(names), {}
        for path in dict.fromkeys(self.file_of[name] for name in wanted):
            with safe_open(path, framework="pt") as file:
                for name in wanted:
                    if self.file_of[name] == path:
                        tensors[name] = file.get_tensor(name).to(device=device, dtype=dtype)
        return tensors

    def stream(self, names: Iterable[str], dtype: torch.dtype | None = None) -> Iterator[tuple[str, Tensor]]:
        """The named tensors on the CPU, one after the other: none is held, nor its part of the file mapped."""
        for name in names:
            yield name, self.read([name], dtype, "cpu")[name]


SHARD_BYTES = 1 << 30


def write_tensors(
    folder: Path, stem: str, tensors: Iterable[tuple[str, Tensor]], *, shard_bytes: int = SHARD_BYTES
) -> None:
    """Writes tensors as they come: `stem.safetensors`, or shards with an index if they are more than `shard_bytes`.

    No more than one shard is held in memory.

    Raises:
        OSError: if the disk is full.
    """
    shards: list[list[str]] = []
    held: dict[str, Tensor] = {}
    total = size = 0
    for name, tensor in tensors:
        tensor = tensor.detach().to("cpu").contiguous()
        if held and size + tensor.nbytes > shard_bytes:
            shards.append(_write_shard(_shard_part(folder, stem, len(shards)), held))
            size = 0
        held[name] = tensor
        size, total = size + tensor.nbytes, total + tensor.nbytes
    shards.append(_write_shard(_shard_part(folder, stem, len(shards)), held))
    if len(shards) == 1:
        _shard_part(folder, stem, 0).rename(folder / f"{stem}.safetensors")
        return
    weight_map = {}
    for index, names in enumerate(shards):
        file = f"{stem}-{index + 1:05d}-of-{len(shards):05d}.safetensors"
        _shard_part(folder, stem, index).rename(folder / file)
        weight_map |= dict.fromkeys(names, file)
    values = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(values, indent=2) + "\n")


def _shard_part(folder: Path, stem: str, index: int) -> Path:
    return folder / f"{stem}-{index + 1:05d}.part"


def _write_shard(path: Path, held: dict[str, Tensor]) -> list[str]:
    """Writes the tensors and lets go of them; returns their names."""
    from safetensors.torch import save_file

    path.touch()
    mode = path.stat().st_mode
    try:
        save_file(held, path, metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(str(error)) from None
    path.chmod(mode)  # the library writes for the owner alone
    names = list(held)
    held.clear()
    return names


def link_file(source: Path, target: Path) -> None:
    """Gives a file a second name: a hard link, or a copy where the disk has none (another one, or a file system)."""
    source = source.resolve()  # hub caches are symbolic links
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def set_row(path: Path, name: str, row: int, values: Tensor) -> None:
    """Writes a row of the stored matrix `name` (N, D) of a safetensors file in place, in its stored type."""
    import torch

    with safe_open(path, framework="pt") as file:
        matrix = file.get_tensor(name)
    raw = values.detach().to("cpu", matrix.dtype).contiguous().view(torch.uint8).numpy().tobytes()
    with path.open("r+b") as file:
        header = int.from_bytes(file.read(8), "little")
        start, _ = json.loads(file.read(header))[name]["data_offsets"]
        file.seek(8 + header + start + row * len(raw))
        file.write(raw)


def find_weights(folder: Path, stem: str, dtype: torch.dtype | None = None) -> list[Path]:
    """The files of one component: `stem.safetensors`, its shards, or a variant (`stem.fp16...`)."""
    for variant in _variants(dtype):
        single = folder / f"{stem}{variant}.safetensors"
        if single.is_file():
            return [single]
        index = _find_index(folder, stem, variant)
        if index is not None:
            shards = sorted({str(name) for name in read_json(index).get("weight_map", {}).values()})
            paths = [folder / Path(name).name for name in shards]
            missing = [path.name for path in paths if not path.is_file()]
            if missing or not paths:
                raise ValueError(f"'{folder}' is incomplete: missing {list_names(missing) or 'every shard'}")
            return paths
    pickles = sorted(path.name for path in folder.glob("*") if path.suffix in PICKLE_SUFFIXES)
    if pickles:
        raise ValueError(
            f"'{folder}' holds pickled weights only ({list_names(pickles)}), which are never executed here: "
            "convert them to safetensors first"
        )
    if not folder.is_dir():
        raise ValueError(f"'{folder.parent}' is incomplete: it has no folder {folder.name}/")
    raise ValueError(f"'{folder}' is incomplete: it has no {stem}.safetensors")


def _find_index(folder: Path, stem: str, variant: str) -> Path | None:
    """The index of a component's shards, under today's name or one that diffusers gave before 0.30."""
    names = (f"index{variant}", f"{variant}.index".lstrip("."))
    found = [folder / f"{stem}.safetensors.{name}.json" for name in names]
    found.append(folder / f"{stem}{variant}.safetensors.index.json")
    return next((path for path in found if path.is_file()), None)


def find_variant(folder: Path, stem: str, dtype: torch.dtype | None = None) -> str | None:
    """The variant ("fp16", "bf16") that `find_weights` picks, or None for plain files."""
    found = re.search(r"\.(fp16|bf16)[.-]", find_weights(folder, stem, dtype)[0].name)
    return found.group(1) if found else None


def _variants(dtype: torch.dtype | None) -> tuple[str, ...]:
    match str(dtype):
        case "torch.bfloat16":
            return (".bf16", "", ".fp16")
        case "torch.float16":
            return (".fp16", "", ".bf16")
    return ("", ".bf16", ".fp16")


def check_names(found: Mapping[str, tuple], wanted: Mapping[str, tuple], source: str) -> None:
    """ValueError in one line if names or shapes differ: what is missing, unexpected, of another shape."""
    missing = [name for name in wanted if name not in found]
    unexpected = [name for name in found if name not in wanted]
    wrong = [
        f"{name} {list(found[name])} instead of {list(shape)}"
        for name, shape in wanted.items()
        if name in found and found[name] != shape
    ]
    faults = [
        f"{len(names)} {fault} ({list_names(names)})"
        for fault, names in (("missing", missing), ("unexpected", unexpected), ("of the wrong shape", wrong))
        if names
    ]
    if faults:
        raise ValueError(f"{source} does not fit the model, tensors: " + "; ".join(faults))
