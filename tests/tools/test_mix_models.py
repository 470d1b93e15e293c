"""The mean of several models."""

from pathlib import Path

import pytest
import torch

from ddit.pipeline import Pipeline
from tools.mix_models import mix, read_shares


def test_it_has_the_share_of_each_ones_weights(tmp_path: Path) -> None:
    one, *others = (Pipeline.from_pretrained("mini", dtype="float32") for _ in range(3))
    folders = [str(tmp_path / name) for name in ("plus", "minus")]
    for other, folder, more in zip(others, folders, (1, -2), strict=True):
        for weight in other.transformer.parameters():
            weight.data += more
        other.save_pretrained(folder)
    out = mix({"mini": 2.0, folders[0]: 1.0, folders[1]: 1.0}, tmp_path / "mixed")
    mixed = Pipeline.from_pretrained(out, dtype="float32")
    for name, weight in mixed.transformer.named_parameters():
        torch.testing.assert_close(weight, one.transformer.get_parameter(name) - 0.25, atol=2e-5, rtol=1e-5)
    assert mixed.settings == one.settings
    with pytest.raises(ValueError, match="unknown model"):
        mix({"mini": 1.0, str(tmp_path / "gone"): 1.0}, tmp_path / "none")


def test_models_without_a_share_count_alike() -> None:
    assert read_shares(["runs/a", "b:0.25"]) == {"runs/a": 1, "b": 0.25}
    with pytest.raises(ValueError, match="a share is a number"):
        read_shares(["mini:much"])
