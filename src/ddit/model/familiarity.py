"""Whether an image is like those that a model was trained on, by the model's own features.

The features are statistics of the latents (how the channels are spread, and how much neighbours differ) and, of models
whose image side is independent of the text, the mean of the values of the middle block. An image is foreign by either
of two scores above 1: Mahalanobis's distance to the mean, with a covariance shrunk towards the identity, over a fifth
more than what one in two hundred training images exceeds; and, since images of a varied world are at any distance from
their mean, Fisher's linear discriminant of training images and images of no world (`train.foreign_images`).
Shapes: B images, C latent channels, F features.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Self

import torch
from PIL import Image
from safetensors.torch import load_file, save
from torch import Tensor

from ddit.files import write_atomically
from ddit.images import to_tensor
from ddit.model.dual_dit import DualDiT
from ddit.model.encoders import ImageCodec

FILE = "familiar_images.safetensors"
LEAST_IMAGES = 200
"""With fewer images nothing is said of what is like them."""
SHRINKAGE = 0.01
QUANTILE, MARGIN = 0.995, 1.2
"""Without the margin, mini warns of .009 of true images; with it, photographs are still found (docs/method.md)."""
FOREIGN_MARGIN = 0.1
"""Of the way from that quantile to the mean of the foreign images."""
_CLAMP = 8.0
"""Of a feature, in standard deviations, before the discriminant: no single one decides."""
_TINY, _BATCH = 1e-3, 32


@torch.no_grad()
def image_features(transformer: DualDiT, image_codec: ImageCodec, pixels: Tensor) -> Tensor:
    """Features (B, F), float32 on the CPU, of images (B, 3, H, W) in [-1, 1], which may be of any size."""
    latents = image_codec.encode(pixels)
    x = latents.float()
    steps = [(x[..., 1:] - x[..., :-1]).abs(), (x[..., 1:, :] - x[..., :-1, :]).abs()]
    edges = torch.cat([x[..., 0, :], x[..., -1, :], x[..., 0], x[..., -1]], dim=-1)
    spreads = [
        x.std((2, 3)),
        *(step.mean((2, 3)) for step in steps),
        *(step.flatten(2).median(2).values for step in steps),
        edges.std(2),
    ]
    found = [x.mean((2, 3)), *((spread + _TINY).log() for spread in spreads)]
    if not transformer.config.image_attends_text:
        values = transformer.image_kv(latents)[transformer.config.depth // 2].v  # (B, heads, N, d)
        found.append(values.float().mean(2).flatten(1))
    return torch.cat(found, dim=1).cpu()


class Familiarity(NamedTuple):
    """The statistics of a model's training images.

    Attributes:
        mean, scale: (F,), of each feature.
        whitening: (F, F), makes what is left uncorrelated; float16.
        limit: (), the mean square above which an image is foreign.
        direction, bias: (F,) and (), of the discriminant: above 0 an image is foreign. Without, the distance decides.
    """

    mean: Tensor
    scale: Tensor
    whitening: Tensor
    limit: Tensor
    direction: Tensor | None = None
    bias: Tensor | None = None

    @classmethod
    def fit(cls, features: Tensor, foreign: Tensor | None = None) -> Self:
        """Of the features (B, F) of training images in random order: two thirds fit, the rest sets the limits.

        Args:
            foreign: features (B, F) of images that are none of them; without, the distance alone decides.

        Raises:
            ValueError: for fewer than `LEAST_IMAGES`.
        """
        if len(features) < LEAST_IMAGES:
            raise ValueError(f"needs {LEAST_IMAGES} images to tell what is like them, got {len(features)}")
        known, rest = features.double().split([2 * len(features) // 3, -(-len(features) // 3)])
        mean, scale = known.mean(0), known.std(0) + 1e-6
        covariance = _shrunk(torch.cov(((known - mean) / scale).T))
        whitening = torch.linalg.inv(torch.linalg.cholesky(covariance)).T
        found = cls(mean.float(), scale.float(), whitening.half(), torch.ones(()))
        found = found._replace(limit=MARGIN * torch.quantile(found.score(rest.float()), QUANTILE))
        if foreign is None:
            return found
        inside, outside = found._scaled(known.float()), found._scaled(foreign)
        pooled = _shrunk((torch.cov(inside.T) + torch.cov(outside.T)) / 2)
        direction = torch.linalg.solve(pooled, outside.mean(0) - inside.mean(0))
        limit = torch.quantile(found._scaled(rest.float()) @ direction, QUANTILE)
        beyond = ((outside @ direction).mean() - limit).clamp(min=0)  # 0 where the two are much alike
        return found._replace(direction=direction, bias=-(limit + FOREIGN_MARGIN * beyond))

    def score(self, features: Tensor) -> Tensor:
        """(B,), of features (B, F): above 1 is foreign."""
        white = ((features - self.mean) / self.scale) @ self.whitening.float()
        distance = white.square().mean(1) / self.limit
        if self.direction is None or self.bias is None:
            return distance
        return torch.maximum(distance, 1 + self.bias + self._scaled(features) @ self.direction)

    def _scaled(self, features: Tensor) -> Tensor:
        return ((features - self.mean) / self.scale).clamp(-_CLAMP, _CLAMP)

    @torch.inference_mode()
    def are_foreign(
        self, transformer: DualDiT, image_codec: ImageCodec, images: Sequence[Image.Image]
    ) -> list[bool]:
        """Whether images, of one size, are unlike those that the model was trained on."""
        parts = (to_tensor(list(images[k : k + _BATCH])) for k in range(0, len(images), _BATCH))
        scores = [self.score(image_features(transformer, image_codec, part)) for part in parts]
        return (torch.cat(scores) > 1).tolist()

    def save(self, folder: Path) -> None:
        """Writes `FILE` in a model's folder."""
        with write_atomically(folder / FILE) as part:
            part.write_bytes(save({k: v for k, v in self._asdict().items() if v is not None}))

    @classmethod
    def load(cls, folder: Path) -> Self | None:
        """That of a model's folder; None if it has none."""
        path = folder / FILE
        return cls(**load_file(path)) if path.is_file() else None


def _shrunk(covariance: Tensor) -> Tensor:
    """Towards the identity: features are standardised."""
    return (1 - SHRINKAGE) * covariance + SHRINKAGE * torch.eye(len(covariance), dtype=covariance.dtype)
