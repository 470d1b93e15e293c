"""`python tools/mix_models.py OUT MODEL[:SHARE] ...`: the weighted mean of models that come from one start.

They have the same shapes; all but the transformer is the first one's. Without shares all count alike. Of tunings of one
kind the mean keeps what they have in common and loses what was chance (Wortsman et al. 2022, arXiv 2203.05482); between
a tuning and its start, what the tuning has cost elsewhere comes back sooner than what it has brought goes (arXiv
2109.01903).
"""

import argparse
from collections.abc import Mapping
from pathlib import Path

from ddit.pipeline import Pipeline


def mix(shares: Mapping[str, float], out: Path) -> Path:
    """Writes the mean of the models, by the shares of their sum, into the folder `out`, in float32.

    Raises:
        ValueError: for a model that is not there, or has other shapes than the first.
    """
    (first_share, *rest), total = shares.values(), sum(shares.values())
    first, *others = (Pipeline.from_pretrained(name, dtype="float32") for name in shares)
    if any(other.transformer.config != first.transformer.config for other in others):
        raise ValueError("the models have other shapes than the first: a mean is of tunings of one model")
    mixed = first.transformer.state_dict()
    for weight in mixed.values():
        weight.mul_(first_share / total)
    for other, share in zip(others, rest, strict=True):
        for name, weight in other.transformer.state_dict().items():
            mixed[name].add_(weight, alpha=share / total)
    first.save_pretrained(out)
    return out


def read_shares(texts: list[str]) -> dict[str, float]:
    """MODEL[:SHARE] of the command line."""
    parts = [text.rpartition(":") if ":" in text else (text, ":", "1") for text in texts]
    try:
        return {name: float(share) for name, _, share in parts}
    except ValueError:
        raise ValueError("a share is a number: MODEL:0.3") from None


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("models", nargs="+", metavar="MODEL[:SHARE]")
    args = parser.parse_args()
    try:
        print(mix(read_shares(args.models), args.out))
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
