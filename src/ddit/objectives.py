"""What training minimises of the two processes, as configurations. Nothing here needs torch."""

import math
from dataclasses import replace
from typing import Annotated, Literal, Self

from pydantic import Field

from ddit.schema import strict

TimeDensity = Literal["logit_normal", "uniform", "mode", "cosmap"]


@strict
class FlowConfig:
    """Training objective of the image process."""

    weighting: Annotated[
        Literal["velocity", "x0"],
        Field(description="velocity: the paper's loss; x0: the published code's, which weights it by t^2"),
    ] = "velocity"
    time_density: Annotated[
        TimeDensity,
        Field(
            description="density of t in training, on 1000 levels: SD3's four (arXiv 2403.03206, section 3.1)"
        ),
    ] = "logit_normal"
    logit_mean: Annotated[float, Field(description="of the logit-normal density: above 0, more noise")] = 0.0
    logit_std: Annotated[float, Field(gt=0, description="of the logit-normal density")] = 1.0
    mode_scale: Annotated[
        float,
        Field(
            ge=-1, le=1.75, description="s of the density mode: above 0, more times in the middle; 0: uniform"
        ),
    ] = 1.29
    shift: Annotated[
        float,
        Field(
            gt=0, description="shift of the drawn times, s t / (1 + (s - 1) t): above 1, more noise; 1: none"
        ),
    ] = 1.0
    shift_from_size: Annotated[
        int | None,
        Field(
            ge=1,
            description="side in pixels of the square images whose shift is `shift`; that of others is multiplied by "
            "the square root of their pixels' ratio to it [default: one shift for all]",
        ),
    ] = None

    def at_size(self, num_pixels: int) -> Self:
        """With the shift for images of so many pixels (SD3, section 5.3.2)."""
        if self.shift_from_size is None:
            return self
        return replace(
            self, shift=self.shift * math.sqrt(num_pixels) / self.shift_from_size, shift_from_size=None
        )


@strict
class MaskedConfig:
    """Training objective of the text process."""

    normalizer: Annotated[
        Literal["all", "answer", "unpadded"],
        Field(
            description="divide a sample's loss by all positions, as published, by those of its answer with its "
            "padding, or by those up to the answer's end, so that a short answer counts as much as a long one"
        ),
    ] = "all"
    max_weight: Annotated[float | None, Field(gt=0, description="upper bound of the 1/t weight")] = None
    all_masked_share: Annotated[
        float,
        Field(
            ge=0,
            le=1,
            description="share of the samples whose text is masked throughout (t = 1): quickest for short answers",
        ),
    ] = 0.0
    sharpen: Annotated[
        float,
        Field(
            ge=0,
            description="weight of the entropy of right predictions, which makes them surer (LLaDA2.0's CAP); 0: off",
        ),
    ] = 0.0
    wrong_share: Annotated[
        float,
        Field(
            ge=0,
            lt=1,
            description="share of the visible answer tokens that are replaced by others of their text, while the true "
            "ones of all visible positions are learnt too: for edit_above; 0: off",
        ),
    ] = 0.0
