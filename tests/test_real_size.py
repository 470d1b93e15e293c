"""One block of the real widths goes through the commands of the rehearsal, which notices what goes wrong."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from t5_tokenizer import t5_tokenizer_folder

from benchmarks.real_size import GIB, ONE_BLOCK, Row, Sizes, list_rows, make_model, measure, run_rows
from ddit.devices import multiplies_bfloat16
from ddit.model import DualDiT, DualDiTConfig
from ddit.pipeline import Pipeline


@pytest.mark.slow
@pytest.mark.skipif(
    not multiplies_bfloat16(torch.device("cpu")),
    reason="without products in bfloat16 a CPU takes ten minutes",
)
def test_one_block_goes_through_every_command(tmp_path: Path) -> None:
    sizes = replace(ONE_BLOCK, small_side=64)
    make_model(tmp_path / "model", sizes, t5_tokenizer_folder())
    twice = (
        "info",
        "ask",
        "draw 512",
        "draw 64 px, saved",
        "export --int8",
    )  # what another row does as well
    rows = [row for row in list_rows(tmp_path, sizes) if not row.name.startswith(twice)]
    found = {row.name: measured for row, measured in run_rows(tmp_path, rows, 3 * GIB, keep=True)}
    assert {name: measured.fault for name, measured in found.items() if measured.fault} == {}
    assert len(found) == len(rows) == 11
    assert found["load"].anonymous < 0.6 * GIB < found["load --int8"].peak  # mapped, and quantised in memory
    assert list((tmp_path / "drawn").glob("*.png"))
    assert (tmp_path / "runs" / "sd3-medium-lora" / "export" / "model_index.json").is_file()
    base = Pipeline.from_pretrained(tmp_path / "model", dtype="bfloat16", device="cpu")
    merged = Pipeline.from_pretrained(tmp_path / "merged", dtype="bfloat16", device="cpu")
    changed = [
        name
        for (name, ours), theirs in zip(
            base.transformer.state_dict().items(), merged.transformer.state_dict().values(), strict=True
        )
        if not torch.equal(ours, theirs)
    ]
    assert changed
    assert "pos_embed.pos_embed" not in changed
    stored = [
        (tmp_path / name / "text_encoder" / "model.safetensors").stat().st_ino for name in ("model", "merged")
    ]
    assert stored[0] == stored[1]  # a hard link


def test_the_sizes_are_the_published_ones() -> None:
    sizes = Sizes()
    with torch.device("meta"):
        transformer = DualDiT(DualDiTConfig(depth=sizes.depth, vocab_size=sizes.vocab_size))
    assert transformer.config.hidden_size == sizes.width
    assert sum(p.numel() for p in transformer.parameters()) == pytest.approx(2.1e9, rel=0.01)


def test_a_command_that_takes_too_much_memory_is_ended() -> None:
    hungry = [sys.executable, "-c", "import time; x = bytearray(300 << 20); time.sleep(30)"]
    found = measure(hungry, 0.1 * GIB)
    assert found.fault == "over 0.1 GiB"
    assert found.anonymous > 0.1 * GIB
    assert found.seconds < 20


def test_a_command_that_fails_says_how(tmp_path: Path) -> None:
    row = Row("wrong", [sys.executable, "-c", "raise SystemExit('no such thing')"], needs=())
    [(_, found)] = run_rows(tmp_path, [row], GIB)
    assert found.fault == "no such thing"
