"""What a trained model's images were like, stored in its folder (`model.familiarity`)."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ddit.config.runs import DualRun
from ddit.data.sources import open_source
from ddit.files import read_json
from ddit.model.autoencoder import PatchAutoencoder
from ddit.model.familiarity import LEAST_IMAGES, Familiarity, image_features
from ddit.model.loading import load_parts
from ddit.train.foreign_images import make_foreign_images
from ddit.train.small_data import read_pixels

NUM_IMAGES, NUM_FOREIGN_IMAGES = 3000, 500
_BATCH = 100


def add_familiarity(folder: Path, cfg: DualRun) -> bool:
    """Stores the statistics of images that the model reads, themselves and not their latents; whether there are any.

    There are none of a run that reads fewer than `LEAST_IMAGES`, nor of a model whose autoencoder is not a
    `PatchAutoencoder`: it knows photographs.
    """
    num_read = round(cfg.global_batch_size * cfg.objective.i2t_fraction) * cfg.max_steps
    if num_read < LEAST_IMAGES:
        return False
    config = folder / "vae" / "config.json"
    is_small = config.is_file() and read_json(config).get("_class_name") == PatchAutoencoder.__name__
    if not (cfg.data.i2t and is_small and (folder / "transformer").is_dir()):
        return False
    try:
        sources = [(open_source(replace(source, latents=None)), source.weight) for source in cfg.data.i2t]
        pixels = read_pixels(
            sources, min(num_read, NUM_IMAGES), image_size=cfg.data.image_size, seed=cfg.seed
        )
    except ValueError:  # texts alone, or images that are gone and have left their latents
        return False
    if len(pixels) < LEAST_IMAGES:
        return False
    parts = load_parts(folder, dtype=torch.float32)
    order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(cfg.seed))
    foreign = make_foreign_images(NUM_FOREIGN_IMAGES, cfg.data.image_size, seed=cfg.seed)
    features, others = (
        torch.cat([image_features(parts.transformer, parts.image_codec, batch) for batch in _batches(of)])
        for of in (pixels[order], torch.from_numpy(foreign).permute(0, 3, 1, 2))
    )
    Familiarity.fit(features, others).save(folder)
    return True


def _batches(pixels: Tensor) -> Iterator[Tensor]:
    return (batch.float() / 127.5 - 1 for batch in pixels.split(_BATCH))
