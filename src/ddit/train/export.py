"""The model folders of a run, in the diffusers layout."""

import shutil
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor

from ddit.config.runs import DualRun, LoraConfig
from ddit.devices import Ranks
from ddit.model import DualDiT, DualDiTConfig
from ddit.model.adapters import add_adapters, merge_adapters, save_adapters
from ddit.model.folders import resolve
from ddit.model.loading import load_image_codec, load_text_codec, save_parts
from ddit.settings import ModelSettings, TextSampling, UnmaskingRule
from ddit.train.batch import STYLES
from ddit.train.parallel import gather_on_first

_DTYPE = torch.bfloat16
_PREFIX = "transformer."


def export_run(cfg: DualRun, ranks: Ranks, states: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Writes a model folder of each state under the run's folder, in bfloat16; all ranks together.

    states: by the folder's name (`export...`), the learner's tensors, sharded or whole. With adapters the folder holds
    the merged weights, and `adapters...` beside it the adapters alone.
    """
    problem = None
    for name, state in states.items():
        whole = gather_on_first(state, ranks, torch.float32 if cfg.lora.rank > 0 else _DTYPE)
        if ranks.is_first:
            try:
                _save(cfg, Path(cfg.out) / name, whole)
            except OSError as error:
                problem = error.strerror or str(error)
        problem = ranks.share(problem)
        if problem is not None:
            raise OSError(f"{name} cannot be written to {cfg.out}: {problem}")


def _save(cfg: DualRun, folder: Path, whole: Mapping[str, Tensor]) -> None:
    for left in folder.parent.glob(f".{folder.name}.*"):  # of a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    tensors = {n.removeprefix(_PREFIX): t for n, t in whole.items() if n.startswith(_PREFIX)}
    vae, text = (resolve(name or cfg.init or "") for name in (cfg.vae, cfg.text))
    codec = load_text_codec(text, dtype=_DTYPE)  # the run's own may be sharded or in 8 bit
    if cfg.train_mask_embedding:
        codec.set_mask_embedding(whole["mask_embedding"])
    transformer = _transformer(cfg.model, cfg.lora, tensors)
    if cfg.lora.rank > 0:
        adapters = folder.with_name(folder.name.replace("export", "adapters"))
        save_adapters(adapters, transformer, base=cfg.init, dtype=_DTYPE)
        merge_adapters(transformer)
    save_parts(
        folder, transformer=transformer.requires_grad_(False), image_codec=load_image_codec(vae), text_codec=codec,
        settings=settings_of(cfg), dtype=_DTYPE,
    )  # fmt: skip


def _transformer(config: DualDiTConfig, lora: LoraConfig, tensors: Mapping[str, Tensor]) -> DualDiT:
    with torch.device("meta"):
        model = DualDiT(config)
    if lora.rank > 0:
        add_adapters(model, rank=lora.rank, alpha=lora.alpha, dropout=lora.dropout)
    model.load_state_dict(tensors, assign=True)
    return model.eval()


def settings_of(cfg: DualRun) -> ModelSettings:
    """The trained model's own defaults: the published ones with the sizes it was trained at, or the small world's."""
    data = cfg.data
    settings = ModelSettings(
        prompt_style=asdict(STYLES[cfg.prompts]),
        image_size=data.image_size,
        prompt_length=data.t2i_length,
        text_length=data.i2t_length,
    )
    if cfg.prompts == "published":
        return settings
    return replace(
        settings,
        image_sampling=cfg.report.grid_sampling,
        text_sampling=TextSampling(rule=UnmaskingRule(order="confidence", temperature=0.0)),
        caption_steps=16,
        answer_steps=4,
    )
