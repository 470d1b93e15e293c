"""How far two sets of images are apart, and how near single ones are to those that were trained on, by features."""

from __future__ import annotations

import torch
from torch import Tensor

NUM_NEIGHBOURS = 50


def frechet_distance(first: Tensor, second: Tensor) -> float:
    """The Fréchet distance of Gaussians with the mean and covariance of two sets of features, (n, d) and (m, d).

    |m1 - m2|² + tr(S1 + S2 - 2 (S1 S2)^½) (Dowson and Landau 1982; Heusel et al. 2017), in float64. With centred
    features A = QR and S = AᵀA, the eigenvalues of S1 S2 are the squared singular values of R1 R2ᵀ: their sum is the
    trace of the root, without a root of a matrix, which is inexact where there are fewer images than dimensions.

    Raises:
        ValueError: for less than two images, or dimensions that do not match.
    """
    if min(len(first), len(second)) < 2 or first.shape[1:] != second.shape[1:] or first.ndim != 2:
        raise ValueError(
            f"need features (n, d) and (m, d) of at least two images, got {tuple(first.shape)}, {tuple(second.shape)}"
        )
    mean, root = _gaussian(first)
    other_mean, other_root = _gaussian(second)
    covariances = root.square().sum() + other_root.square().sum()
    product = torch.linalg.svdvals(root @ other_root.T).sum()
    distance = (mean - other_mean).square().sum() + covariances - 2 * product
    return max(float(distance), 0.0)


def _gaussian(features: Tensor) -> tuple[Tensor, Tensor]:
    """The mean (d,), and R (min(n, d), d) of which RᵀR is the covariance."""
    values = features.cpu().double()
    mean = values.mean(0)
    centred = (values - mean) / (len(values) - 1) ** 0.5
    return mean, torch.linalg.qr(centred, mode="r").R


def nearness(features: Tensor, trained: Tensor, *, batch_size: int = 256) -> tuple[Tensor, Tensor]:
    """How much nearer each image (n, d) is to one of the trained ones (m, d) than to others around it.

    The distance to the nearest one by the mean distance to the nearest 50 (all, if there are fewer): near 0 for a
    copy, whatever the image; a plain distance is small for every smooth image (Carlini et al. 2023, section 4.2).

    Returns:
        The ratio (n,), from 0 to 1, and which trained image is the nearest, (n,).

    Raises:
        ValueError: for less than two trained images.
    """
    if len(trained) < 2:
        raise ValueError(f"need two trained images at least, got {len(trained)}")
    ratios, nearest = [], []
    mean = trained.float().mean(0)  # products of small numbers are the more exact
    known = trained.float() - mean
    for part in features.split(batch_size):
        distances = torch.cdist(part.float() - mean, known, compute_mode="use_mm_for_euclid_dist")
        least = distances.topk(min(NUM_NEIGHBOURS, len(trained)), largest=False)
        ratios.append(least.values[:, 0] / least.values.mean(1).clamp(min=1e-12))
        nearest.append(least.indices[:, 0])
    return torch.cat(ratios), torch.cat(nearest)
