"""Everything at real size, from random weights: `python -m benchmarks.real_size --root FOLDER`.

Makes a model folder in the published layout (a transformer of 2.10 billion parameters and T5-XXL's encoder of 4.76,
both bfloat16, an autoencoder shaped like SD3's), which takes 14 GB of disk, and lets each command run in a new process.
The results mean nothing; time and memory are those of the real model. A process whose own memory passes --limit is
killed, and its row says so. What the commands write (24 GB at most) is removed once no row needs it. Writes
real_size.md.
"""

import argparse
import json
import math
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from PIL import Image
from torch import Tensor
from transformers import T5Config, T5EncoderModel

from ddit.config.runs import DualRun, to_json
from ddit.devices import join_ranks
from ddit.eval.report import code_version
from ddit.files import read_json, write_folder_atomically, write_tensors
from ddit.model import DualDiT, DualDiTConfig
from ddit.model.adapters import add_adapters, save_adapters, trained_names
from ddit.model.embeddings import sincos_positions
from ddit.model.small_text import build_tokenizer
from ddit.model.t5 import STEM, TIED
from ddit.model.weights import config_from_dict, save_transformer
from ddit.recipes import build
from ddit.train.checkpoint import save_checkpoint

HERE = Path(__file__).parent
GIB = 1 << 30
POLL_S = 0.02
WORDS = "a photo of the dog cat car red what is there yes no q: a:"
LOAD = "import sys; from ddit.pipeline import Pipeline; p = Pipeline.from_pretrained(sys.argv[1], dtype='bfloat16'"
AUTOENCODER = {
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "latent_channels": 16,
    "layers_per_block": 2,
    "sample_size": 1024,
    "scaling_factor": 1.5305,
    "shift_factor": 0.0609,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}


@dataclass(frozen=True)
class Sizes:
    """The real model's, or fewer layers of the same widths."""

    depth: int = 24
    t5_layers: int = 24
    width: int = 1536
    text_width: int = 4096
    vocab_size: int = 32128
    small_side: int = 256  # of the smaller images, in pixels


ONE_BLOCK = Sizes(depth=1, t5_layers=1)


class Row(NamedTuple):
    """A command of the table.

    Attributes:
        needs, makes: names of folders in the root that it reads and writes.
    """

    name: str
    command: list[str]
    needs: tuple[str, ...] = ("model",)
    makes: str | None = None


class Measured(NamedTuple):
    """How a process ended ("" if well), its seconds, and its peaks in bytes: all, and without pages of mapped files."""

    fault: str
    seconds: float
    peak: int
    anonymous: int


# --- what the commands read ---


def make_model(folder: Path, sizes: Sizes, tokenizer: Path | None = None) -> None:
    """Writes a model of random weights, tensor by tensor; `tokenizer` is copied, without it there is one of words."""
    with write_folder_atomically(folder) as part:
        for name in ("transformer", "text_encoder", "scheduler"):
            (part / name).mkdir()
        config = DualDiTConfig(
            hidden_size=sizes.width, depth=sizes.depth, num_heads=sizes.width // 64,
            text_dim=sizes.text_width, vocab_size=sizes.vocab_size,
        )  # fmt: skip
        save_transformer(part / "transformer", config, _transformer_tensors(config))
        _make_text_encoder(part / "text_encoder", sizes)
        if tokenizer is None:
            known = WORDS.split()
            fill = (f"word{i}" for i in range(sizes.vocab_size - 35 - len(known)))
            build_tokenizer([*known, *fill]).save_pretrained(part / "tokenizer")
        else:
            shutil.copytree(tokenizer, part / "tokenizer")
        autoencoder = AutoencoderKL.from_config(AUTOENCODER)
        assert isinstance(autoencoder, AutoencoderKL)
        torch.nn.Module.to(autoencoder, torch.bfloat16)  # past diffusers' own `to`, which prints
        autoencoder.save_pretrained(part / "vae")
        scheduler = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
        (part / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
        (part / "model_index.json").write_text(json.dumps({"_class_name": "DualDiffSD3Pipeline"}))


def _transformer_tensors(config: DualDiTConfig) -> Iterator[tuple[str, Tensor]]:
    with torch.device("meta"):
        shapes = {name: tuple(tensor.shape) for name, tensor in DualDiT(config).state_dict().items()}
    grid = config.sample_size // config.patch_size
    for name, tensor in random_tensors(shapes):
        is_table = name == "pos_embed.pos_embed"
        table = sincos_positions(config.hidden_size, config.pos_embed_max_size, grid) if is_table else tensor
        yield name, table.bfloat16()


def _make_text_encoder(folder: Path, sizes: Sizes) -> None:
    config = T5Config.from_dict(
        {
            "vocab_size": sizes.vocab_size,
            "d_model": sizes.text_width,
            "d_kv": 64,
            "d_ff": 10240,
            "num_layers": sizes.t5_layers,
            "num_heads": 64,
            "feed_forward_proj": "gated-gelu",
            "tie_word_embeddings": False,
            "is_encoder_decoder": False,
            "use_cache": False,
            "architectures": ["T5EncoderModel"],
            "dtype": "bfloat16",
        }
    )
    config.save_pretrained(folder)
    with torch.device("meta"):
        state = T5EncoderModel(config).state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items() if name != TIED}
    tensors = ((name, torch.ones_like(t) if "norm" in name else t) for name, t in random_tensors(shapes))
    write_tensors(folder, STEM, tensors)


def random_tensors(shapes: dict[str, tuple[int, ...]]) -> Iterator[tuple[str, Tensor]]:
    """Normal values of deviation 0.02 in bfloat16, cut from one pool: drawing billions would take minutes."""
    generator = torch.Generator().manual_seed(0)
    pool = (torch.randn((1 << 22) + 1, generator=generator) * 0.02).bfloat16()
    for name, shape in shapes.items():
        size = math.prod(shape)
        yield name, pool.repeat(-(-size // len(pool)))[:size].reshape(shape)


def make_data(folder: Path) -> None:
    """Four noisy images with captions, in the published JSON form."""
    folder.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (4, 512, 512, 3), dtype=np.uint8)
    entries = []
    for index, image in enumerate(pixels):
        Image.fromarray(image).save(folder / f"{index}.png")
        entries.append({"image_path": f"{index}.png", "re_caption": "a photo of the red car"})
    (folder / "captions.json").write_text(json.dumps(entries))


def make_adapter(folder: Path, model: Path) -> None:
    """Random adapters of rank 64."""
    with torch.device("meta"):
        transformer = DualDiT(config_from_dict(read_json(model / "transformer" / "config.json")))
    add_adapters(transformer, rank=64, alpha=64.0)
    shapes = {name: tuple(transformer.get_parameter(name).shape) for name in trained_names(transformer)}
    save_adapters(folder, transformer, state=dict(random_tensors(shapes)), dtype=torch.bfloat16)


def make_checkpoint(run: Path, model: Path) -> None:
    """A checkpoint of averaged float32 weights, as stage 1 of SD3 writes it, of zeros: 8.4 GB."""
    config = config_from_dict(read_json(model / "transformer" / "config.json"))
    stage1 = build("sd3-medium-stage1", run.parent)
    assert isinstance(stage1, DualRun)
    cfg = replace(stage1, out=str(run), init=str(model), model=config)
    with torch.device("meta"):
        transformer = DualDiT(config)
    names = dict(transformer.named_parameters())
    state = {f"ema.transformer.{name}": torch.zeros(()).expand(p.shape) for name, p in names.items()}
    run.mkdir(parents=True, exist_ok=True)
    save_checkpoint(run, 1000, state, {"config": to_json(cfg)}, keep=1, ranks=join_ranks())


def prepare(root: Path, name: str) -> None:
    """Makes what no command of the table makes."""
    if name == "data":
        make_data(root / name)
    elif name == "adapter":
        make_adapter(root / name, root / "model")
    elif name == "run":
        make_checkpoint(root / name, root / "model")
    else:
        sys.exit(f"{name} is missing: run the row that makes it, with --keep")


# --- the commands ---


def list_rows(root: Path, sizes: Sizes) -> list[Row]:
    model, image, out = str(root / "model"), str(root / "data" / "0.png"), str(root / "drawn")
    ddit, python = [sys.executable, "-m", "ddit"], [sys.executable, "-c"]
    bf16, both = ["--dtype", "bfloat16"], ("model", "data")
    few = ["--num-steps", "2", *bf16]
    draw = [*ddit, "generate", "a red car", *few, "--overwrite", "--output", out]
    side = sizes.small_side
    small = ["--height", str(side), "--width", str(side)]
    return [
        Row("info", [*ddit, "info", model]),
        Row("load", [*python, f"{LOAD})", model]),
        Row("caption, 2 steps", [*ddit, "caption", image, "--model", model, *small, *few], both),
        Row("ask, 2 steps", [*ddit, "ask", image, "is there a dog?", "--model", model, *small, *few], both),
        Row(f"draw {side} px, 2 steps", [*draw, "--model", model, *small]),
        Row("draw 512 px, 2 steps", [*draw, "--model", model, "--height", "512", "--width", "512"]),
        Row(f"draw {side} px, --offload", [*draw, "--model", model, *small, "--offload"]),
        Row(f"draw {side} px, --offload-blocks", [*draw, "--model", model, *small, "--offload-blocks"]),
        Row(f"LoRA, a step of 2 at {side} px", [*ddit, *_tuning(root, sizes)], both, "runs"),
        Row("merge", [*ddit, "merge", model, str(root / "adapter"), str(root / "merged")], ("model", "adapter"),
            "merged"),
        Row("export", [*ddit, "export", str(root / "run"), str(root / "exported")], ("model", "run"), "exported"),
        Row("export --int8", [*ddit, "export", str(root / "run"), str(root / "small"), "--int8"], ("model", "run"),
            "small"),
        Row("save in 8 bit", [*python, f"{LOAD}, int8=True); p.save_pretrained(sys.argv[2])", model,
            str(root / "int8")], makes="int8"),
        Row("load saved 8 bit", [*python, f"{LOAD})", str(root / "int8")], ("int8",)),
        Row(f"draw {side} px, saved 8 bit", [*draw, "--model", str(root / "int8"), *small], ("int8",)),
        Row("load --int8", [*python, f"{LOAD}, int8=True)", model]),
    ]  # fmt: skip


def _tuning(root: Path, sizes: Sizes) -> list[str]:
    data = [{"kind": "json", "path": str(root / "data" / "captions.json"), "caption_key": "re_caption"}]
    changes = {
        "data.t2i": data, "data.i2t": data, "data.held_out": [], "data.num_workers": 0,
        "data.image_size": sizes.small_side, "data.t2i_length": 64, "data.i2t_length": 64, "report.log_every": 1,
        "report.tensorboard": False, "parallel.compile_blocks": False, "parallel.text_encoder": "int8",
        "parallel.checkpoint_activations": True, "global_batch_size": 2, "micro_batch_size": 2, "max_steps": 1,
        "model.depth": sizes.depth, "model.vocab_size": sizes.vocab_size,
    }  # fmt: skip
    settings = [text for key, value in changes.items() for text in ("--set", f"{key}={json.dumps(value)}")]
    return [
        "train",
        "sd3-medium-lora",
        "--init",
        str(root / "model"),
        "--root",
        str(root / "runs"),
        *settings,
    ]


def measure(command: Sequence[str], limit: float, code: Path | None = None) -> Measured:
    """Runs a command to its end, or until its own memory passes `limit` bytes."""
    env = os.environ | ({"PYTHONPATH": str(code)} if code else {})
    start, peak, anonymous, fault = time.perf_counter(), 0, 0, ""
    with tempfile.TemporaryFile("w+") as printed:
        process = subprocess.Popen(command, env=env, stdout=printed, stderr=printed, start_new_session=True)
        while process.poll() is None:
            status = Path(f"/proc/{process.pid}/status").read_text()
            found = {
                key: int(value) << 10 for key, value in re.findall(r"(VmHWM|RssAnon):\s+(\d+) kB", status)
            }
            peak, anonymous = max(peak, found.get("VmHWM", 0)), max(anonymous, found.get("RssAnon", 0))
            if anonymous > limit and not fault:
                fault = f"over {limit / GIB:.3g} GiB"
                os.killpg(process.pid, signal.SIGKILL)
            time.sleep(POLL_S)
        seconds = time.perf_counter() - start
        printed.seek(0)
        said = printed.read().strip()
    if process.returncode and not fault:
        fault = said.splitlines()[-1] if said else f"exit code {process.returncode}"
        print(said[-4000:], file=sys.stderr)
    return Measured(fault, seconds, peak, anonymous)


def run_rows(
    root: Path, rows: Sequence[Row], limit: float, *, code: Path | None = None, keep: bool = False
) -> Iterator[tuple[Row, Measured]]:
    """Each row's measurement; what a row made, or was made for it, goes once no later row needs it."""
    for index, row in enumerate(rows):
        for name in row.needs:
            if not (root / name).exists():
                prepare(root, name)
        yield row, measure(row.command, limit, code)
        later = {name for other in rows[index + 1 :] for name in other.needs}
        for name in {*row.needs, *([row.makes] if row.makes else [])} - later - {"model", "data"}:
            if not keep:
                shutil.rmtree(root / name, ignore_errors=True)


def line(row: Row, found: Measured) -> str:
    figures = f"{found.seconds:.1f} | {found.anonymous / GIB:.2f} | {found.peak / GIB:.2f}"
    return f"| {row.name} | {figures} | {found.fault or 'well'} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--root", type=Path, required=True, help="folder for the model and what is made of it"
    )
    parser.add_argument("--tokenizer", type=Path, help="folder of T5's tokenizer; without it, one of words")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="rows whose names begin so")
    parser.add_argument("--keep", action="store_true", help="keep everything in the root")
    parser.add_argument("--one-block", action="store_true", help="one layer of each part, of the real widths")
    parser.add_argument("--limit", type=float, default=16, help="GiB that a process may take")
    parser.add_argument("--code", type=Path, help="src folder of another version, to be measured instead")
    parser.add_argument("--out", type=Path, default=HERE / "real_size.md")
    args = parser.parse_args()
    sizes, root = ONE_BLOCK if args.one_block else Sizes(), args.root.resolve()
    if not (root / "model").exists():
        make_model(root / "model", sizes, args.tokenizer)
    rows = [row for row in list_rows(root, sizes) if not args.only or row.name.startswith(tuple(args.only))]
    title = ["command", "s", "own memory, GiB", "with mapped files, GiB", "ended"]
    lines = [f"| {' | '.join(title)} |", f"|{'---|' * len(title)}"]
    for row, found in run_rows(root, rows, args.limit * GIB, code=args.code, keep=args.keep):
        lines.append(line(row, found))
        print(lines[-1], flush=True)
    if not args.keep:
        for name in ("model", "data", "drawn"):
            shutil.rmtree(root / name, ignore_errors=True)
    args.out.write_text(
        f"# Rehearsal at real size\n\n`python -m benchmarks.real_size`, commit {code_version()}, "
        f"{time.strftime('%Y-%m-%d')}; {platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}.\n\n"
        + "\n".join(lines) + "\n"
    )  # fmt: skip


if __name__ == "__main__":
    main()
