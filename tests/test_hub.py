"""The hub: a card with the run's own facts and figures, and an upload that a stand-in on loopback takes."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hub_server import TOKEN, serve_hub
from huggingface_hub import ModelCard
from tiny_models import tiny_pipeline
from typer.testing import CliRunner

from ddit.cli import app
from ddit.eval.report import model_hash
from ddit.hub import parse_datasets


@pytest.fixture
def export(tmp_path: Path) -> Path:
    """A run's export, with its configuration beside it."""
    folder = tmp_path / "run" / "export"
    tiny_pipeline().save_pretrained(folder)
    data = {"t2i": [{"kind": "json", "path": "/home/me/pets/train.json"}], "i2t": []}
    config = {"init": "me/base", "data": data, "max_steps": 1200, "global_batch_size": 8, "lora": {"rank": 4}}
    (folder.parent / "config.json").write_text(json.dumps(config))
    return folder


def write_summary(folder: Path, task: str, about: dict[str, Any]) -> None:
    figures = [
        {"name": "accuracy", "value": 0.51234, "num": 600, "interval": [0.47, 0.55], "baselines": {}},
        {"name": "yes/no", "value": 0.7, "num": 200, "interval": None, "baselines": {}},
    ]
    (folder / task).mkdir(parents=True, exist_ok=True)
    values = {
        "task": task,
        "figures": figures,
        "commit": "c" * 40,
        "started": "2026-11-28T10:00:00+00:00",
        **about,
    }
    (folder / task / "summary.json").write_text(json.dumps(values))


def push(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["push", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_the_card_has_the_runs_facts_and_figures(export: Path, tmp_path: Path) -> None:
    results = tmp_path / "eval"
    digest = model_hash(export)
    write_summary(results, "vqav2", {"data": "vqa", "model_hash": digest})
    write_summary(results, "pope", {"world": {"split": "heldout"}, "model_hash": digest})
    push(
        export, "me/tiny", "--license", "apache-2.0", "--base-model", "me/base", "--results", results,
        "--dataset", "vqav2=lmms-lab/VQAv2", "--dry-run",
    )  # fmt: skip
    card = ModelCard.load(export / "README.md")
    data = card.data.to_dict()
    assert data["pipeline_tag"] == "any-to-any"
    assert (data["library_name"], data["license"], data["base_model"]) == ("ddit", "apache-2.0", "me/base")
    assert data["datasets"] == ["lmms-lab/VQAv2"]
    (model,) = data["model-index"]
    values = {
        (one["dataset"]["type"], m["type"]): m["value"] for one in model["results"] for m in one["metrics"]
    }
    assert values == {
        ("vqav2", "accuracy"): 0.5123,
        ("vqav2", "yes/no"): 0.7,
        ("small-world-pope", "accuracy"): 0.5123,
        ("small-world-pope", "yes/no"): 0.7,
    }
    assert "| vqav2, official files | accuracy | 0.512 | 0.470 to 0.550 | 600 |" in card.text
    assert "small world, split heldout, pope" in card.text
    assert "json train.json" in card.text
    assert "/home/me" not in card.text
    assert "1,200 steps of 8 samples, adapters of rank 4" in card.text
    (entry,) = yaml.safe_load((export / ".eval_results" / "vqav2.yaml").read_text())
    assert entry["dataset"] == {"id": "lmms-lab/VQAv2", "task_id": "vqav2"}
    assert entry["value"] == 0.5123
    assert "n 600" in entry["notes"]


def test_a_card_that_is_there_keeps_its_text(export: Path, tmp_path: Path) -> None:
    (export / "README.md").write_text(
        "---\nlicense: mit\ntags: [pets]\nmine: 1\n---\n# Pets\n\nMy own words.\n"
    )
    push(export, "me/tiny", "--dry-run")
    card = ModelCard.load(export / "README.md")
    assert card.text.strip() == "# Pets\n\nMy own words."
    data = card.data.to_dict()
    assert (data["license"], data["mine"], data["library_name"]) == ("mit", 1, "ddit")
    assert {"pets", "ddit"} <= set(data["tags"])


def test_mistakes_are_named(export: Path, tmp_path: Path) -> None:
    write_summary(tmp_path / "eval", "pope", {"world": {}, "model_hash": "f" * 64})
    for arguments, message in (
        ((tmp_path, "me/tiny"), "is not a model folder"),
        ((export, "me/tiny", "--results", tmp_path), r"has no summary\.json"),
        ((export, "me/tiny", "--results", tmp_path / "eval"), "the figures of pope are of another model"),
        ((export, "me/tiny", "--dataset", "pope=POPE"), "TASK=OWNER/NAME, got 'pope=POPE'"),
        ((export, "me/tiny", "--dataset", "pope=a/b"), "there is no figure of pope"),
    ):
        with pytest.raises(ValueError, match=message):
            push(*arguments, "--dry-run")
    write_summary(tmp_path / "eval", "pope", {"world": {}, "model_hash": model_hash(export)})
    with pytest.raises(ValueError, match="on the small world, not on a/b"):
        push(export, "me/tiny", "--results", tmp_path / "eval", "--dataset", "pope=a/b", "--dry-run")
    assert parse_datasets(["a=b/c", "d=e/f"]) == {"a": "b/c", "d": "e/f"}


@pytest.mark.slow
def test_the_upload_arrives_whole(export: Path, tmp_path: Path) -> None:
    with serve_hub() as hub:
        command = [
            sys.executable,
            "-m",
            "ddit",
            "push",
            str(export),
            "me/tiny",
            "--private",
            "--message",
            "first",
        ]
        environment = {
            **os.environ,
            "HF_ENDPOINT": hub.address,
            "HF_HOME": str(tmp_path / "hf"),
            "HF_TOKEN": TOKEN,
        }
        environment.pop("HF_HUB_OFFLINE", None)
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == f"{hub.address}/me/tiny"
        stored = {str(p.relative_to(export)): p.read_bytes() for p in export.rglob("*") if p.is_file()}
        assert hub.files == stored
        assert {"README.md", "model_index.json", "pipeline.py", "ddit.json"} <= set(stored)
        assert hub.messages == ["first"]
        assert "private" in (hub.repositories[0].get("visibility"), *hub.repositories[0])
        assert "any-to-any" in hub.cards[0]
        refused = subprocess.run(
            command, env={**environment, "HF_TOKEN": "hf_other"}, capture_output=True, text=True, timeout=300
        )
    assert refused.returncode == 1
    assert "was not uploaded to me/tiny" in refused.stderr
    assert "401" in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1
