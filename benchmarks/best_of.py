"""Does the model know its better images by their scores? GenEval by N: `python benchmarks/best_of.py`.

Generates --candidates images a prompt, each from its own seed, and scores each prompt as the caption of each of its
images, as `Pipeline.generate(best_of=N)` does. A prompt's candidates are taken in groups of N, and of each group one
image counts: the one with the highest score; or, as an oracle, one that the detector finds right, if there is one (no
choice can do better). N = 1 is plain generation, or choosing blindly. Intervals are by bootstrap over
prompts. Writes best_of.md; a quarter of an hour of two idle cores for 40 prompts.
"""

import argparse
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from ddit.eval.geneval import score_images
from ddit.eval.report import code_version
from ddit.pipeline import Pipeline
from ddit.world import PRESETS, TAGS, Prompt, make_prompts

HERE = Path(__file__).parent
RESAMPLES = 2000


class Trial(NamedTuple):
    """The candidates of one prompt, (C,) each: right by the detector, and the prompt's log-likelihood in each."""

    prompt: Prompt
    right: np.ndarray
    scores: np.ndarray


Choose = Callable[[np.ndarray, np.ndarray], float]
"""What counts of a group of candidates: (right, scores) -> a share."""


def highest(right: np.ndarray, scores: np.ndarray) -> float:
    return float(right[scores.argmax()])


def oracle(right: np.ndarray, _: np.ndarray) -> float:
    return float(right.any())


def generate(pipeline: Pipeline, prompts: Sequence[Prompt], num: int, seed: int) -> list[list[Image.Image]]:
    """`num` images of each prompt."""
    images = []
    for index, prompt in enumerate(tqdm(prompts, desc="generating", unit="prompt", file=sys.stderr)):
        images.append(pipeline.generate([prompt.text] * num, seed=seed + index * num))
    return images


def try_prompts(
    pipeline: Pipeline, prompts: Sequence[Prompt], candidates: Sequence[list[Image.Image]], num_samples: int
) -> list[Trial]:
    trials = []
    for prompt, images in tqdm(list(zip(prompts, candidates, strict=True)), desc="scoring", unit="prompt"):
        right = [found.correct for found in score_images([prompt] * len(images), images)]
        scores = pipeline.score(images, prompt.text, num_samples=num_samples)
        trials.append(Trial(prompt, np.array(right), np.array([score.log_prob for score in scores])))
    return trials


def share(trial: Trial, n: int, choose: Choose) -> float:
    """The mean of what counts over the prompt's groups of n candidates."""
    starts = range(0, len(trial.right) - n + 1, n)
    return float(np.mean([choose(trial.right[s : s + n], trial.scores[s : s + n]) for s in starts]))


def by_category(trials: Sequence[Trial], n: int, choose: Choose) -> dict[str, np.ndarray]:
    """Each prompt's share, by category."""
    return {tag: np.array([share(t, n, choose) for t in trials if t.prompt.tag == tag]) for tag in TAGS}


def overall(shares: dict[str, np.ndarray]) -> tuple[float, float]:
    """GenEval's mean of its categories, and half of its 95 % interval: prompts resampled within each category."""
    rng = np.random.default_rng(0)
    means = np.zeros(RESAMPLES)
    for values in shares.values():
        picked = rng.integers(0, len(values), (RESAMPLES, len(values)))
        means += values[picked].mean(1) / len(shares)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(np.mean([values.mean() for values in shares.values()])), float(high - low) / 2


def auc(trials: Sequence[Trial]) -> tuple[float, int]:
    """How often a right image scores above a wrong one of the same prompt, and the number of such pairs."""
    wins = [
        float(good > bad)
        for trial in trials
        for good in trial.scores[trial.right]
        for bad in trial.scores[~trial.right]
    ]
    return (float(np.mean(wins)) if wins else float("nan")), len(wins)


def table(trials: Sequence[Trial], counts: Sequence[int]) -> str:
    lines = [f"| N | chosen by | overall | {' | '.join(TAGS)} |", f"|---|---|---|{'---|' * len(TAGS)}"]
    base, _ = overall(by_category(trials, 1, highest))
    for n in counts:
        for name, choose in (("the score", highest), ("an oracle", oracle)):
            if n == 1 and choose is oracle:
                continue
            shares = by_category(trials, n, choose)
            mean, spread = overall(shares)
            gain = {tag: shares[tag] - by_category(trials, 1, highest)[tag] for tag in TAGS}
            change = "" if n == 1 else f" ({mean - base:+.3f} ± {overall(gain)[1]:.3f})"
            cells = " | ".join(f"{values.mean():.3f}" for values in shares.values())
            lines.append(
                f"| {n} | {'nothing' if n == 1 else name} | {mean:.3f} ± {spread:.3f}{change} | {cells} |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="mini")
    parser.add_argument("--split", default="test")
    parser.add_argument("--num-prompts", type=int, default=40, help="a category")
    parser.add_argument("--candidates", type=int, default=8)
    parser.add_argument("--num-samples", type=int, default=32, help="masks a score")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=HERE / "best_of.md")
    args = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    pipeline = Pipeline.from_pretrained(args.model)
    prompts = make_prompts(PRESETS["fixed"], args.num_prompts, split=args.split, seed=args.seed)
    begin = time.process_time()
    images = generate(pipeline, prompts, args.candidates, seed=10**6 * (args.seed + 1))
    generating = time.process_time() - begin
    begin = time.process_time()
    trials = try_prompts(pipeline, prompts, images, args.num_samples)
    scoring = time.process_time() - begin
    counts = [n for n in (1, 2, 4, 8, 16) if n <= args.candidates]
    ranked, pairs = auc(trials)
    command = " ".join(["python benchmarks/best_of.py", *sys.argv[1:]])
    text = f"""# Best of N

`{command}`, commit {code_version()}, {time.strftime("%Y-%m-%d")}; {platform.machine()}, {os.cpu_count()} cores,
torch {torch.__version__}. Model {args.model}, world `fixed`, split {args.split}: {args.num_prompts} prompts a category,
{args.candidates} images each, {args.num_samples} masks a score. Share of right images by the world's detector, 95 %
intervals; in brackets the change against N = 1 on the same images. The oracle takes a right image if there is one.

{table(trials, counts)}

A right image scores above a wrong one of the same prompt in {ranked:.3f} of {pairs} pairs (.5 is chance).

A candidate costs {generating / len(prompts) / args.candidates:.3f} s of CPU time to generate and
{scoring / len(prompts) / args.candidates:.3f} s to score and to check.
"""
    args.out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
