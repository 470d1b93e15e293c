"""A model between two."""

from pathlib import Path

import pytest
import torch

from ddit.pipeline import Pipeline
from tools.mix_models import mix


def test_it_has_the_share_of_each_ones_weights(tmp_path: Path) -> None:
    one, other = (Pipeline.from_pretrained("mini") for _ in range(2))
    with torch.no_grad():
        for weight in other.transformer.parameters():
            weight.add_(1)
    other.save_pretrained(tmp_path / "other")
    mixed = Pipeline.from_pretrained(mix("mini", str(tmp_path / "other"), 0.75, tmp_path / "mixed"))
    for name, weight in mixed.transformer.named_parameters():
        ours, theirs = (model.transformer.get_parameter(name) for model in (one, other))
        torch.testing.assert_close(weight, 0.75 * ours + 0.25 * theirs, atol=2e-5, rtol=1e-5)
    assert mixed.settings == one.settings
    with pytest.raises(ValueError, match="unknown model"):
        mix("mini", str(tmp_path / "gone"), 0.5, tmp_path / "none")
