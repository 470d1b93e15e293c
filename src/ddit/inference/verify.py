"""`ddit verify`: recompute a folder of reference tensors and report the largest error of each.

A folder holds `transformer/`, `text_encoder/`, `reference.safetensors` and `reference.json` (settings). Each group of
tensors is recomputed from its own inputs by the code that training and sampling run.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import T5EncoderModel

from ddit.diffusion.flow import flow_loss, sample_latents, sampling_times
from ddit.diffusion.masked import LogitsFn, masked_loss, masked_token_nll, posterior, subs_log_probs
from ddit.diffusion.text_sampler import sample_text
from ddit.inference.callables import ImageContext, logits_fn, velocity_fn
from ddit.model.dual_dit import DualDiT
from ddit.model.embeddings import TIMESTEP_SCALE
from ddit.model.encoders import quiet_transformers
from ddit.model.weights import load_transformer
from ddit.objectives import FlowConfig, MaskedConfig
from ddit.settings import ImageSampling, UnmaskingRule

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Comparison:
    """One recomputed tensor: its name, largest absolute error, and whether it is within tolerance."""

    name: str
    max_error: float
    within: bool


class _Reference:
    """The models and settings of a reference folder, and the functions that the groups share."""

    def __init__(self, folder: Path, dtype: torch.dtype, device: torch.device | str) -> None:
        settings = json.loads((folder / "reference.json").read_text())
        self.mask_token_id: int = settings["mask_token_id"]
        self.t2i: dict = settings.get("t2i", {})
        self.model: DualDiT = load_transformer(folder / "transformer", dtype=dtype, device=device).eval()
        with quiet_transformers():
            encoder = T5EncoderModel.from_pretrained(folder / "text_encoder", dtype=dtype)
        self.text_encoder = encoder.to(device).eval()  # pyright: ignore[reportArgumentType]
        self.dtype = dtype

    def logits_fn(self, latents: Tensor | None, batch_size: int) -> LogitsFn:
        index = torch.arange(batch_size, device=self.model.null_image_embd.device)
        context = ImageContext(latents, None, index)
        return logits_fn(self.model, lambda noisy_ids, *_: self.text_encoder(input_ids=noisy_ids)[0], context)


def _forward(ref: _Reference, x: Tensors) -> Tensors:
    out = ref.model(x["latents"], x["timestep"] / TIMESTEP_SCALE, x["text_states"])
    return {"velocity": out.velocity, "logits": out.logits}


def _null_image(ref: _Reference, x: Tensors) -> Tensors:
    everywhere = torch.ones_like(x["ids"], dtype=torch.bool)
    rows = torch.arange(len(x["ids"]), device=x["ids"].device)
    return {"logits": ref.logits_fn(None, len(rows))(x["ids"], everywhere, rows).unflatten(0, x["ids"].shape)}


def _masked(ref: _Reference, x: Tensors) -> Tensors:
    ids, noisy_ids, answer_mask = x["x0"], x["xt"], x["label_mask"].bool()
    logits = ref.logits_fn(x["latents"], len(ids))
    nll = masked_token_nll(logits, ids, noisy_ids, answer_mask, mask_token_id=ref.mask_token_id)
    loss = masked_loss(
        logits,
        ids,
        answer_mask,
        mask_token_id=ref.mask_token_id,
        cfg=MaskedConfig(),
        t=x["t"],
        noisy_ids=noisy_ids,
    )
    return {"token_nll": nll / x["t"][:, None], "loss": loss.mean()[None]}


def _flow(ref: _Reference, x: Tensors) -> Tensors:
    t = x["timestep"] / TIMESTEP_SCALE
    loss = flow_loss(
        velocity_fn(ref.model, x["text_states"]),
        x["latents"],
        cfg=FlowConfig(weighting="x0"),
        t=t,
        noise=x["noise"],
    )
    return {"loss": loss.mean()[None], "sigma": t}


def _t2i(ref: _Reference, x: Tensors) -> Tensors:
    cfg = ImageSampling(
        num_steps=ref.t2i["steps"], guidance_scale=ref.t2i["guidance_scale"], shift=float(ref.t2i["shift"])
    )
    both = torch.cat([x["negative_text_states"], x["text_states"]])
    times = sampling_times(cfg)
    latents = sample_latents(velocity_fn(ref.model, both), x["noise"], cfg=cfg)
    return {"latents": latents, "sigmas": times, "timesteps": times[:-1] * TIMESTEP_SCALE}


def _i2t(ref: _Reference, x: Tensors) -> Tensors:
    noisy_ids = x["xt"]
    predict = ref.logits_fn(x["latents"], len(noisy_ids))
    is_masked = noisy_ids == ref.mask_token_id
    logits = predict(noisy_ids, is_masked, torch.arange(len(noisy_ids), device=noisy_ids.device))
    p_x0 = torch.nn.functional.one_hot(
        noisy_ids, logits.shape[-1]
    ).float()  # unmasked tokens are carried over
    p_x0[is_masked] = subs_log_probs(logits, ref.mask_token_id).exp()
    q_xs = posterior(p_x0, x["t"].item(), x["s"].item(), ref.mask_token_id)
    # One step from t = 1 leaves (almost) nothing masked, so the most likely token everywhere is the final argmax.
    likeliest = UnmaskingRule(order="confidence", temperature=0.0)
    final = sample_text(
        predict, noisy_ids, is_masked, num_steps=1, mask_token_id=ref.mask_token_id, rule=likeliest
    )
    return {"p_x0": p_x0, "q_xs": q_xs, "argmax": final.ids}


GROUPS: dict[str, tuple[Callable[[_Reference, Tensors], Tensors], tuple[str, ...]]] = {
    "forward": (_forward, ("velocity", "logits")),
    "null_image": (_null_image, ("logits",)),
    "masked": (_masked, ("token_nll", "loss")),
    "flow": (_flow, ("loss", "sigma")),
    "t2i": (_t2i, ("latents", "timesteps", "sigmas")),
    "i2t": (_i2t, ("p_x0", "q_xs", "argmax")),
}


def verify(
    folder: str | Path,
    *,
    atol: float = 1e-4,
    rtol: float = 1e-4,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Iterator[Comparison]:
    """Recomputes every group of `folder`, yielding one comparison a tensor, in the order of the groups.

    A tensor is within tolerance if every element differs by at most atol + rtol |reference|.

    Raises:
        ValueError: on a tolerance out of range, or on a folder that is incomplete or whose tensors are not those that
            `reference.json` lists.
    """
    if not (0 <= atol < math.inf and 0 <= rtol < math.inf):
        raise ValueError(f"atol and rtol must be at least 0 and finite, got {atol} and {rtol}")
    folder = Path(folder)
    for name in ("reference.json", "reference.safetensors", "transformer", "text_encoder"):
        if not (folder / name).exists():
            raise ValueError(f"{folder} is not a reference folder: it has no {name}")
    groups = _grouped(load_file(folder / "reference.safetensors"), folder)
    reference = _Reference(folder, dtype, device)
    for group, tensors in groups.items():
        recompute, outputs = GROUPS[group.split(".")[0]]
        inputs = {name: _placed(x, dtype, device) for name, x in tensors.items() if name not in outputs}
        try:
            with torch.inference_mode():
                results = recompute(reference, inputs)
        except KeyError as error:
            raise ValueError(f"{folder}: group {group} has no tensor {error}") from error
        for name, result in results.items():
            if name in tensors:
                yield _compare(f"{group}.{name}", result.cpu(), tensors[name], atol, rtol)


def write_reference(
    folder: Path, groups: Mapping[str, Tensors], *, mask_token_id: int, t2i: Mapping[str, float]
) -> None:
    """Makes a reference folder of one that has `transformer/` and `text_encoder/`, by them in float32 on the CPU.

    groups: the inputs of each group. t2i: `steps`, `guidance_scale` and `shift` of the group of that name.
    """
    settings: dict[str, Any] = {"mask_token_id": mask_token_id, "t2i": dict(t2i)}
    (folder / "reference.json").write_text(json.dumps(settings))
    reference, tensors = _Reference(folder, torch.float32, "cpu"), {}
    for group, inputs in groups.items():
        with torch.inference_mode():
            results = GROUPS[group.split(".")[0]][0](reference, inputs)
        tensors |= {f"{group}.{name}": x.clone() for name, x in {**inputs, **results}.items()}
    keys = {name: [str(x.dtype).removeprefix("torch."), list(x.shape)] for name, x in tensors.items()}
    save_file(tensors, folder / "reference.safetensors")
    (folder / "reference.json").write_text(json.dumps({**settings, "keys": keys}))


def _grouped(tensors: Tensors, folder: Path) -> dict[str, Tensors]:
    """Tensors by group ("forward.0" from "forward.0.latents"), checked against the list in `reference.json`."""
    listed = json.loads((folder / "reference.json").read_text())["keys"]
    if differing := sorted(set(listed) ^ set(tensors)):
        raise ValueError(
            f"{folder}: reference.json and reference.safetensors differ in {', '.join(differing)}"
        )
    groups: dict[str, Tensors] = {}
    for key in listed:
        if list(tensors[key].shape) != listed[key][1]:
            raise ValueError(
                f"{folder}: {key} has shape {list(tensors[key].shape)}, listed as {listed[key][1]}"
            )
        group, _, name = key.rpartition(".")
        if group.split(".")[0] not in GROUPS:
            raise ValueError(f"{folder}: unknown group {group!r}; known are {', '.join(GROUPS)}")
        groups.setdefault(group, {})[name] = tensors[key]
    return groups


def _placed(x: Tensor, dtype: torch.dtype, device: torch.device | str) -> Tensor:
    return x.to(device, dtype) if x.is_floating_point() and x.ndim > 1 else x.to(device)


def _compare(name: str, result: Tensor, expected: Tensor, atol: float, rtol: float) -> Comparison:
    if result.shape != expected.shape:
        raise ValueError(
            f"{name} comes out as {list(result.shape)}, the reference has {list(expected.shape)}"
        )
    result, expected = result.cpu(), expected.cpu()  # not every device has float64
    error = (result.double() - expected.double()).abs()
    within = bool((error <= atol + rtol * expected.double().abs()).all())
    return Comparison(name, error.max().item(), within)
