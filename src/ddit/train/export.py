"""The model folders of a run, in the diffusers layout, made of its checkpoints tensor by tensor."""

import shutil
from collections.abc import Collection, Iterable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor

from ddit.config.runs import DualRun
from ddit.model import DualDiT
from ddit.model.adapters import add_adapters, merged_tensors, save_adapters
from ddit.model.embeddings import sincos_positions
from ddit.model.folders import resolve
from ddit.model.saving import EncoderFolders, save_folder
from ddit.model.weights import stream_transformer
from ddit.settings import ModelSettings, TextSampling, UnmaskingRule
from ddit.train.batch import STYLES
from ddit.train.checkpoint import StoredTensors
from ddit.train.learner import start_weights

_DTYPE = torch.bfloat16
_PREFIX = "transformer."
POSITIONS = "pos_embed.pos_embed"
"""The one tensor of a transformer that is never trained."""


def export_checkpoint(
    cfg: DualRun, checkpoint: Path, folder: Path, *, averaged: bool = True, int8: bool = False
) -> None:
    """Writes a model folder of a checkpoint's weights, in bfloat16; one process does it alone.

    The frozen autoencoder, text encoder and tokenizer are hard links to the files of `cfg.vae` and `cfg.text`
    (`saving.save_folder`). With adapters the folder holds the merged weights, and `adapters...` beside `export...` the
    adapters alone.

    Args:
        cfg: the run's.
        checkpoint: folder of the checkpoint.
        averaged: the averaged weights, else those of its step.
        int8: the text encoder in 8 bit.

    Raises:
        ValueError: in one line, if a part of the model that the run started from is missing.
        OSError: if the disk is full.
    """
    for left in folder.parent.glob(f".{folder.name}.*"):  # of a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    vae, text = (resolve(name or cfg.init or "") for name in (cfg.vae, cfg.text))
    encoders = EncoderFolders.find(vae, text)
    stored = StoredTensors(checkpoint, "ema." if averaged else "model.")
    if cfg.lora.rank > 0:
        adapters = folder.with_name(adapters_name(folder.name))
        tensors = _merged(cfg, stored, adapters)
    else:
        tensors = _whole(cfg, stored)
    embedding = (
        stored.read(["mask_embedding"], torch.float32)["mask_embedding"] if cfg.train_mask_embedding else None
    )
    save_folder(
        folder, cfg.model, tensors, encoders, settings_of(cfg), dtype=_DTYPE, mask_embedding=embedding, int8=int8
    )  # fmt: skip


def adapters_name(export: str) -> str:
    """Name of the folder of adapters beside an export of that name: "adapters_raw" beside "export_raw"."""
    return f"adapters{export.removeprefix('export')}" if export.startswith("export") else f"{export}-adapters"


def _whole(cfg: DualRun, stored: StoredTensors) -> Iterator[tuple[str, Tensor]]:
    """The trained weights, and what is fixed: the table of positions."""
    with torch.device("meta"):
        names = list(DualDiT(cfg.model).state_dict())
    trained = {_PREFIX + name for name in names} & stored.shapes.keys()
    for name, tensor in stored.stream(trained, _DTYPE):
        yield name.removeprefix(_PREFIX), tensor
    rest = {name for name in names if _PREFIX + name not in trained}
    if cfg.init is None:
        assert rest == {POSITIONS}
        table_size, grid = cfg.model.pos_embed_max_size, cfg.model.sample_size // cfg.model.patch_size
        yield POSITIONS, sincos_positions(cfg.model.hidden_size, table_size, grid)
    else:
        yield from _start(cfg, rest)


def _merged(cfg: DualRun, stored: StoredTensors, folder: Path) -> Iterator[tuple[str, Tensor]]:
    """The weights that the run started from, with its adapters, which are written to `folder`."""
    with torch.device("meta"):
        adapters = DualDiT(cfg.model)
    add_adapters(adapters, rank=cfg.lora.rank, alpha=cfg.lora.alpha, dropout=cfg.lora.dropout)
    trained = [name for name in stored.shapes if name.startswith(_PREFIX)]
    found = stored.read(trained, torch.float32)
    state = {name.removeprefix(_PREFIX): tensor for name, tensor in found.items()}
    adapters.load_state_dict(state, strict=False, assign=True)
    save_adapters(folder, adapters, base=cfg.init, dtype=_DTYPE)
    return merged_tensors(adapters.eval(), _start(cfg))


def _start(cfg: DualRun, names: Collection[str] | None = None) -> Iterable[tuple[str, Tensor]]:
    """The transformer's tensors before the first step, as they are stored; all, or those named."""
    if cfg.init is None:
        return start_weights(cfg.model, None, cfg.seed).state_dict().items()
    folder, rows = resolve(cfg.init), cfg.model.vocab_size
    return stream_transformer(folder, names, vocab_size=rows, seed=cfg.seed).tensors


def settings_of(cfg: DualRun) -> ModelSettings:
    """The trained model's own defaults: the published ones with the sizes it was trained at, or the small world's."""
    data = cfg.data
    settings = ModelSettings(
        prompt_style=asdict(STYLES[cfg.prompts]),
        image_size=data.image_size,
        prompt_length=data.t2i_length,
        text_length=data.i2t_length,
    )
    block_size = cfg.model.text_block_size
    if data.i2t_lengths and not block_size:
        # Most texts were in rows of the first length. In blocks a text ends by itself.
        shortest = data.i2t_lengths[0]
        settings = replace(settings, caption_length=shortest, answer_length=max(1, shortest // 2))
    if cfg.prompts == "published":
        return settings
    return replace(
        settings,
        image_sampling=cfg.report.grid_sampling,
        text_sampling=TextSampling(rule=UnmaskingRule(order="confidence", temperature=0.0)),
        caption_steps=16,
        answer_steps=block_size or 4,
    )
