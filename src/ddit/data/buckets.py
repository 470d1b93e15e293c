"""Aspect-ratio buckets: shapes of about equal area, from tall to wide, and which image goes into which."""

from __future__ import annotations

import numpy as np

Shape = tuple[int, int]
"""Height and width in pixels."""


def bucket_shapes(image_size: int, num_buckets: int, unit: int) -> list[Shape]:
    """Shapes of about `image_size` squared pixels whose sides are multiples of `unit`; one bucket is the square.

    The ratios of neighbours differ by the square root of two, so that an image within their range loses at most 16 %
    of one side to the crop; an odd number includes the square. Shapes that rounding makes equal are merged.
    """
    if num_buckets < 1 or image_size < unit or image_size % unit:
        raise ValueError(
            f"image_size must be a multiple of {unit} and num_buckets at least 1, got {image_size} and {num_buckets}"
        )
    shapes = []
    for i in range(num_buckets):
        ratio = 2 ** ((i - (num_buckets - 1) / 2) / 2)  # width / height
        long = max(round(image_size * max(ratio, 1 / ratio) ** 0.5 / unit), 1) * unit
        short = max(round(image_size**2 / long / unit), 1) * unit
        shapes.append((short, long) if ratio >= 1 else (long, short))
    return list(dict.fromkeys(shapes))


def assign_buckets(sizes: np.ndarray, shapes: list[Shape]) -> np.ndarray:
    """The bucket (n,) int16 of each image, by the nearest ratio; `sizes` (n, 2) are widths and heights.

    What has no image (size 0, 0) fits any shape: such samples are spread in proportion to the others, or evenly where
    there are none.
    """
    ratios = np.log([width / height for height, width in shapes])
    has_image = sizes.min(axis=1) > 0
    logs = np.log(np.maximum(sizes, 1).astype(np.float64))
    middles = (ratios[1:] + ratios[:-1]) / 2
    buckets = np.searchsorted(middles, logs[:, 0] - logs[:, 1]).astype(np.int16)
    counts = np.bincount(buckets[has_image], minlength=len(shapes))
    shares = counts if counts.sum() else np.ones(len(shapes))
    without = np.flatnonzero(~has_image)
    ends = np.cumsum(shares) / shares.sum()
    golden = (np.arange(len(without)) + 1) * 0.6180339887498949 % 1  # evenly spread in every stretch
    buckets[without] = np.minimum(np.searchsorted(ends, golden, side="right"), len(shapes) - 1)
    return buckets


def merge_small(counts: np.ndarray, shapes: list[Shape], minimum: int) -> np.ndarray:
    """For each bucket, the one that its samples go to: buckets with fewer than `minimum` join the nearest ratio's.

    counts (n,): samples of each bucket.
    """
    ratios = np.log([width / height for height, width in shapes])
    target, counts = np.arange(len(shapes)), counts.copy()
    while True:
        used = np.flatnonzero(counts)
        small = [b for b in used if counts[b] < minimum]
        if not small or len(used) == 1:
            return target
        smallest = min(small, key=lambda b: counts[b])
        others = used[used != smallest]
        nearest = others[np.argmin(np.abs(ratios[others] - ratios[smallest]))]
        target[target == smallest] = nearest
        counts[nearest] += counts[smallest]
        counts[smallest] = 0
