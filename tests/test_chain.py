"""The three-stage chain at tiny size, by the commands a user types: raw files on disk to a folder that answers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ddit.model.encoders import TextCodec


def ddit(*arguments: str | Path, ranks: int = 1) -> str:
    """Runs a command (under torchrun where it takes several ranks) and returns what it prints."""
    command = [sys.executable, "-m", "ddit", *map(str, arguments)]
    if ranks > 1:
        launcher = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            f"--nproc-per-node={ranks}",
        ]
        assert arguments[0] == "train"
        command = [*launcher, "-m", "ddit.train", *map(str, arguments[1:])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=900, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr[-3000:]}"
    return done.stdout


def setting(**values: object) -> list[str]:
    """--set options; a double underscore stands for a dot."""
    pairs = ((key.replace("__", "."), value) for key, value in values.items())
    return [part for key, value in pairs for part in ("--set", f"{key}={json.dumps(value)}")]


def log_of(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_from_raw_files_to_a_folder_that_answers(tmp_path: Path):
    raw, runs = tmp_path / "raw", tmp_path / "runs"
    ddit("world", raw / "pretrain", "--form", "tar", "--num", "400")
    ddit("world", raw / "better", "--form", "json", "--num", "200", "--seed", "1", "--upscale", "2")
    ddit("world", raw / "talk", "--form", "llava", "--num", "200", "--seed", "2")
    ddit("world", raw / "asked", "--form", "questions", "--num", "200", "--seed", "3")
    for folder in ("pretrain", "better/metadata.json"):
        assert json.loads(ddit("data", "check", raw / folder, "--json"))["corrupt"] == {}

    ddit("train", "tiny-vae", "--root", runs, *setting(num_images=500, num_pca_images=300, max_steps=40))
    ddit("train", "tiny-text", "--root", runs, *setting(max_steps=40))
    vae = runs / "mini-vae/export/vae"
    ddit("data", "precompute", raw / "pretrain", runs / "latents", "--vae", vae, "--size", "64")

    tar = {"kind": "tar", "path": str(raw / "pretrain"), "caption_key": "re_caption"}
    cached = {**tar, "latents": str(runs / "latents")}
    better = {"kind": "json", "path": str(raw / "better/metadata.json")}
    talk = {"kind": "llava", "path": str(raw / "talk/conversations.json")}
    asked = {
        "kind": "questions",
        "questions": str(raw / "asked/questions.json"),
        "annotations": str(raw / "asked/annotations.json"),
        "images": str(raw / "asked/images"),
    }
    quick = {
        "global_batch_size": 32, "optimizer__warmup_steps": 5, "report__log_every": 5, "report__evaluate_every": 1000,
        "report__num_held_out": 16, "report__num_grid": 8, "report__grid_every": 1000,
        "report__grid_sampling__num_steps": 4,
    }  # fmt: skip
    ddit(
        "train", "tiny-image", "--root", runs,
        *setting(data__t2i=[cached], objective__alignment_weight=0.0, max_steps=15, **quick),
    )  # fmt: skip
    ddit(
        "train", "tiny-stage1", "--root", runs,
        *setting(data__t2i=[cached], data__i2t=[cached], objective__alignment_weight=0.0, max_steps=20, **quick),
        ranks=2,
    )  # fmt: skip
    before = mask_row(runs / "mini-stage1/export")
    ddit(
        "train", "tiny-stage2", "--root", runs,
        *setting(data__t2i=[cached], data__i2t=[better], objective__alignment_weight=0.0, max_steps=10, **quick),
    )  # fmt: skip
    assert mask_row(runs / "mini-stage2/export") != before
    ddit(
        "train", "tiny-stage3", "--root", runs,
        *setting(data__t2i=[cached], data__i2t=[talk, asked], data__i2t_length=48, max_steps=25, **quick),
    )  # fmt: skip
    ddit(
        "train", "tiny-stage4", "--root", runs,
        *setting(data__t2i=[cached], data__i2t=[better, asked], max_steps=5, **quick),
    )  # fmt: skip
    ddit(
        "train", "tiny-stage4_128", "--root", runs,
        *setting(data__t2i=[better], data__i2t=[better], max_steps=5, **quick),
    )  # fmt: skip

    for stage in ("mini-stage1", "mini-stage2", "mini-stage3", "mini-stage4", "mini-stage4_128"):
        assert [event for event in log_of(runs / stage) if "text" in event], stage
    losses = [event["text"] for event in log_of(runs / "mini-stage3") if "text" in event]
    assert losses[-1] < losses[0]

    image = raw / "asked/images" / sorted(os.listdir(raw / "asked/images"))[0]
    answers = ddit(
        "ask", image, "is there a dog?", "how many?", "--model", runs / "mini-stage3/export"
    ).splitlines()
    assert len(answers) == 2  # after so few steps their words are chance


def mask_row(export: Path) -> list[float]:
    codec = TextCodec.from_pretrained(export / "tokenizer", export / "text_encoder")
    return codec.encoder.get_input_embeddings().weight[codec.mask_token_id].tolist()
