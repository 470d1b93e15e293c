"""What a run is watched by: losses on scenes that it never trains on."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ddit import flow, masked, prompts
from ddit.config import DualRun
from ddit.data.sampler import sample_rng
from ddit.data.scenes import Reading, SceneSource
from ddit.encoders import ImageCodec, TextCodec
from ddit.model import DualDiT
from ddit.prompts import PromptStyle
from ddit.train.batches import tokenize_readings

UPTAKE_T = 0.85
_CHUNK = 128


class HeldOut:
    """A fixed set of validation scenes: the early signal of text uptake, and how well texts are read."""

    def __init__(self, cfg: DualRun, images: ImageCodec, codec: TextCodec, style: PromptStyle) -> None:
        self.cfg, self.codec = cfg, codec
        source, count = SceneSource(cfg.world, "val"), cfg.report.num_held_out
        rngs = [sample_rng(0, 0, index) for index in range(count)]
        self.latents = images.encode(source.pixels(0, count)).float()
        self.captions = [source.caption(index, rng) for index, rng in enumerate(rngs)]
        self.prompt_ids = prompts.training_prompt(codec, self.captions, cfg.text_length, style=style)
        self.noise = torch.randn(self.latents.shape, generator=torch.Generator().manual_seed(0))
        questions = [source.reading(index, rng, 1.0) for index, rng in enumerate(rngs)]
        self.questions = tokenize_readings(codec, questions, cfg.text_length, style)
        readings = [Reading(None, caption) for caption in self.captions]
        self.readings = tokenize_readings(codec, readings, cfg.text_length, style)

    @torch.no_grad()
    def measure(self, model: DualDiT) -> dict[str, float]:
        """Velocity loss at t = 0.85 under the true and a shuffled caption; with a text loss also, from one pass on
        all-masked answers, the NLL per answer token (padding left out) and the share of answers exactly right.
        """
        found = {}
        if self.cfg.objective.read_fraction < 1:
            true = self._velocity_loss(model, self.prompt_ids)
            shuffled = self._velocity_loss(model, self.prompt_ids.roll(1, 0))
            found |= {"velocity_true": true, "velocity_shuffled": shuffled, "uptake": shuffled - true}
        if self.cfg.objective.read_fraction > 0:
            for name, texts in (("question", self.questions), ("caption", self.readings)):
                nll, exact = self._read(model, *texts)
                found |= {f"{name}_nll": nll, f"{name}_exact": exact}
        return found

    def _velocity_loss(self, model: DualDiT, prompt_ids: Tensor) -> float:
        t = torch.full((len(self.latents),), UPTAKE_T)
        noisy = flow.add_noise(self.latents, self.noise, t)

        def velocity(rows: slice) -> Tensor:
            states = self.codec.states(prompt_ids[rows])
            dtype = next(model.parameters()).dtype
            out = model(noisy[rows].to(dtype), t[rows], states.to(dtype), num_drawn=len(states))
            return out.velocity.float()

        error = _in_chunks(velocity, len(self.latents)) - (self.noise - self.latents)
        return error.square().mean().item()

    def _read(self, model: DualDiT, input_ids: Tensor, answer_mask: Tensor) -> tuple[float, float]:
        mask_id, eos = self.codec.mask_token_id, self.codec.eos_token_id
        noisy_ids = torch.where(answer_mask, mask_id, input_ids)

        def log_probs(rows: slice) -> Tensor:
            states = self.codec.states(noisy_ids[rows])
            dtype = next(model.parameters()).dtype
            out = model(self.latents[rows].to(dtype), torch.zeros(len(states)), states.to(dtype), num_drawn=0)
            return masked.subs_log_probs(out.logits, mask_id)

        predicted = _in_chunks(log_probs, len(input_ids))  # (B, L, V)
        words = answer_mask & (input_ids != eos)
        nll = -predicted.gather(2, input_ids[..., None])[..., 0][words].mean().item()
        wrong = (predicted.argmax(-1) != input_ids) & answer_mask
        return nll, 1 - wrong.any(1).float().mean().item()


def _in_chunks(function: Callable[[slice], Tensor], count: int) -> Tensor:
    return torch.cat([function(slice(start, start + _CHUNK)) for start in range(0, count, _CHUNK)])
