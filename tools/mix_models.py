"""`python tools/mix_models.py ONE OTHER SHARE OUT`: a model between two, SHARE (0 to 1) of the first.

Both come from one start and have the same shapes; all but the transformer is the first one's. What a tuning has cost
elsewhere comes back sooner than what it has brought goes (Wortsman et al. 2022, arXiv 2109.01903).
"""

import sys
from pathlib import Path

import torch

from ddit.pipeline import Pipeline


def mix(one: str, other: str, share: float, out: Path) -> Path:
    """Writes the model into the folder `out`, in float32."""
    first, second = (Pipeline.from_pretrained(name, dtype="float32") for name in (one, other))
    weights = second.transformer.state_dict()
    mixed = {name: torch.lerp(weights[name], w, share) for name, w in first.transformer.state_dict().items()}
    first.transformer.load_state_dict(mixed)
    first.save_pretrained(out)
    return out


if __name__ == "__main__":
    print(mix(sys.argv[1], sys.argv[2], float(sys.argv[3]), Path(sys.argv[4])))
