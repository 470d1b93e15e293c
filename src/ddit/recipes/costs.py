"""What training costs: FLOPs of a pair of image and text, and the time of a run. Needs no torch."""

from ddit.config.runs import DualRun
from ddit.model.config import DualDiTConfig


def pair_flops(run: DualRun) -> float:
    """FLOPs of training on one pair of image and text: the products of the transformer, forward and backward.

    Without torch, and within a few percent of what `ddit.train.flops` counts.
    """
    model, width = run.model, run.model.hidden_size
    image, text = (model.sample_size // model.patch_size) ** 2, run.data.t2i_length
    tokens = image + text
    block = 24 * width**2 * tokens + 4 * tokens**2 * width + 24 * width**2  # products, attention, modulation
    ends = 4 * model.patch_size**2 * model.in_channels * width * image + 2 * model.text_dim * width * text
    i2t = run.objective.i2t_fraction
    ends += _stem_flops(model) + (1 - i2t) * _refiner_flops(model)
    unused = (
        18 * width**2 * ((1 - i2t) * text + i2t * image)
    )  # the last layer of the stream that has no target
    logits = 2 * width * model.vocab_size * i2t * run.data.i2t_length / 2
    return 3 * (model.depth * block - unused + ends + logits)


def _stem_flops(model: DualDiTConfig) -> int:
    """FLOPs of the convolutional stem for one image, forward."""
    flops, channels, side = 0, model.in_channels, model.sample_size
    for index, width in enumerate(model.stem):
        side = side // 2 if index else side
        flops += 18 * side**2 * width * (channels + width)  # two convolutions of 3x3
        channels = width
    return flops + (2 * side**2 * channels * model.hidden_size if model.stem else 0)


def _refiner_flops(model: DualDiTConfig) -> int:
    """FLOPs of the refiner and of the features that the tokens give it, for one image that is drawn, forward."""
    width, channels = model.refiner, model.in_channels
    return 2 * model.sample_size**2 * width * (model.hidden_size + 9 * (2 * channels + 2 * width))


def expected_rate(run: DualRun, flops: float) -> float:
    """Pairs of image and text a second of training at `flops` FLOP/s."""
    return flops / pair_flops(run)


def expected_hours(run: DualRun, flops: float) -> float:
    """Hours of a run's steps at `flops` FLOP/s."""
    return run.max_steps * run.global_batch_size / expected_rate(run, flops) / 3600
