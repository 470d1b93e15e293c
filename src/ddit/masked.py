"""The text process: absorbing-state masked diffusion (MDLM). Time, masking, NELBO, posterior, sampler.

t in [0, 1]; t = 1 is all masked. At time t each token of the answer is masked independently with probability
(1 - eps) t. The text stream sees no time: what is masked tells it. SUBS parameterisation: the mask token is never
predicted, an unmasked token is carried over.

Nothing here knows a model: a `LogitsFn` maps (noisy_ids (b, L), at (b, L) bool, rows (b,)) to logits
(at.sum(), V) at the positions asked for; `rows` tells which samples of the batch these are.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

MASK_EPS = 1e-3
FINAL_TIME = 1e-5

LogitsFn = Callable[[Tensor, Tensor, Tensor], Tensor]
StepCallback = Callable[[int, int, Tensor], None]
Order = Literal["random", "confidence"]


@dataclass(frozen=True)
class MaskedConfig:
    """Training objective of the text process.

    Attributes:
        normalizer: "all" divides a sample's loss by all L positions, as published; "answer" by the positions that
            are ours to fill.
        max_weight: upper bound of the 1/t weight; None leaves it at up to 1000.
    """

    normalizer: Literal["all", "answer"] = "all"
    max_weight: float | None = None


class TextSample(NamedTuple):
    """What `sample_text` returns: ids (B, L) without mask tokens, and forward passes a sample took, (B,)."""

    ids: Tensor
    num_passes: Tensor


def sample_t(
    batch_size: int,
    *,
    generator: torch.Generator | None = None,
    offset: int = 0,
    total: int | None = None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Stratified times (batch_size,) in [eps, 1): one in each of `total` equal slices of the global batch.

    Args:
        offset: index of the first of these samples in the global batch.
        total: size of the global batch, by default this batch.
    """
    total = batch_size if total is None else total
    u = torch.rand(batch_size, generator=generator, device=generator.device if generator else device)
    return time_of_uniform((torch.arange(offset, offset + batch_size, device=device) + u.to(device)) / total)


def time_of_uniform(u: Tensor) -> Tensor:
    """Times in [eps, 1) of numbers (B,) that are uniform (or stratified) in [0, 1)."""
    return MASK_EPS + (1 - MASK_EPS) * (u % 1)


def mask_tokens(
    input_ids: Tensor,
    answer_mask: Tensor,
    t: Tensor,
    *,
    mask_token_id: int,
    generator: torch.Generator | None = None,
    uniform: Tensor | None = None,
) -> Tensor:
    """q(x_t | x_0): masks each position of `answer_mask` (B, L) with probability (1 - eps) t.

    uniform: (B, L), by which it is decided; drawn from `generator` unless given.
    """
    if uniform is None:
        draw_on = generator.device if generator else input_ids.device
        uniform = torch.rand(input_ids.shape, generator=generator, device=draw_on)
    u = uniform.to(input_ids.device)
    return torch.where((u < (1 - MASK_EPS) * t[:, None]) & answer_mask, mask_token_id, input_ids)


def subs_log_probs(logits: Tensor, mask_token_id: int) -> Tensor:
    """Log-probabilities (..., V) in float32 at masked positions: softmax with the mask token ruled out."""
    logits = logits.float()
    ruled_out = torch.zeros(logits.shape[-1], device=logits.device)
    ruled_out[mask_token_id] = -math.inf
    return F.log_softmax(logits + ruled_out, dim=-1)


def masked_loss(
    logits_fn: LogitsFn,
    input_ids: Tensor,
    answer_mask: Tensor,
    *,
    mask_token_id: int,
    cfg: MaskedConfig,
    generator: torch.Generator | None = None,
    t: Tensor | None = None,
    noisy_ids: Tensor | None = None,
) -> Tensor:
    """Continuous-time NELBO of the answer, (B,) in float32: sum of -(1/t) log p(x_0 | x_t) over masked positions.

    Args:
        input_ids: (B, L), clean, with its padding of end-of-text tokens.
        answer_mask: (B, L) bool, the positions that are masked and scored; the rest stays visible.
        t, noisy_ids: drawn from `generator` unless given.
    """
    if t is None:
        t = sample_t(len(input_ids), generator=generator, device=input_ids.device)
    if noisy_ids is None:
        noisy_ids = mask_tokens(input_ids, answer_mask, t, mask_token_id=mask_token_id, generator=generator)
    nll = masked_token_nll(logits_fn, input_ids, noisy_ids, answer_mask, mask_token_id=mask_token_id)
    return nll_weights(answer_mask, t, cfg) * nll.sum(1)


def nll_weights(answer_mask: Tensor, t: Tensor, cfg: MaskedConfig) -> Tensor:
    """What a sample's -log p of its masked positions are multiplied with: (B, L), (B,) -> (B,) in float32."""
    weight = 1 / t.float()
    if cfg.max_weight is not None:
        weight = weight.clamp(max=cfg.max_weight)
    if cfg.normalizer == "all":
        return weight / answer_mask.shape[1]
    return weight / answer_mask.sum(1).clamp(min=1)


def masked_token_nll(
    logits_fn: LogitsFn, input_ids: Tensor, noisy_ids: Tensor, answer_mask: Tensor, *, mask_token_id: int
) -> Tensor:
    """-log p(x_0 | x_t) of each masked answer position, (B, L) in float32; 0 elsewhere."""
    at = (noisy_ids == mask_token_id) & answer_mask
    logits = logits_fn(noisy_ids, at, torch.arange(len(input_ids), device=input_ids.device))
    nll = F.nll_loss(subs_log_probs(logits, mask_token_id), input_ids[at], reduction="none")
    return torch.zeros(input_ids.shape, device=nll.device).masked_scatter(at, nll)


def posterior(p_x0: Tensor, t: float, s: float, mask_token_id: int) -> Tensor:
    """Unnormalised q(x_s | x_t, x_0 ~ p_x0), (..., V) -> (..., V): token v with p(v) (t - s), still masked with s."""
    q_xs = p_x0 * (t - s)
    q_xs[..., mask_token_id] = s
    return q_xs


def sample_text(
    logits_fn: LogitsFn,
    input_ids: Tensor,
    answer_mask: Tensor,
    *,
    num_steps: int,
    mask_token_id: int,
    eos_token_id: int | None = None,
    banned_ids: Sequence[int] = (),
    order: Order = "random",
    temperature: float = 1.0,
    generators: Sequence[torch.Generator] | None = None,
    on_step: StepCallback | None = None,
) -> TextSample:
    """Fills the answer positions, from all masked to none; each sample has its own state and its own randomness.

    A sample's prediction is reused while nothing in it changed, and a batch gives what single calls give.

    Args:
        input_ids: (B, L); positions outside `answer_mask` are pinned and never change.
        answer_mask: (B, L) bool; True is ours to fill.
        num_steps: N equal steps from t = 1 to 1e-5, then a pass that takes the argmax of what is still masked.
        eos_token_id: where everything before a sample's first end-of-text token is written, the rest is filled
            with it. None switches this off.
        banned_ids: tokens never written, beside the mask token.
        order: "random" is ancestral sampling, as published; "confidence" writes the surest positions first, the
            same number in every step.
        temperature: of the draws; 0 takes the most likely token.
        generators: one a sample, on the device of the logits or the CPU; None: the default generator.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}")
    if temperature < 0:
        raise ValueError(f"temperature must not be negative, got {temperature}")
    sampler = _TextSampler(
        logits_fn,
        input_ids,
        answer_mask,
        mask_token_id,
        eos_token_id,
        tuple(banned_ids),
        temperature,
        generators,
    )
    times = torch.linspace(1.0, FINAL_TIME, num_steps + 1).tolist()
    for step in range(num_steps):
        sampler.predict()
        for row in sampler.unfinished():
            if order == "random":
                sampler.write_ancestral(row, times[step], times[step + 1])
            else:
                sampler.write_surest(row, steps_left=num_steps - step)
        sampler.stop_at_end_of_text()
        if on_step is not None:
            on_step(step + 1, num_steps, sampler.ids)
    sampler.predict()
    for row in sampler.unfinished():
        sampler.write_most_likely(row)
    sampler.stop_at_end_of_text()
    return TextSample(sampler.ids, sampler.num_passes)


class _TextSampler:
    """State of `sample_text`: the ids, and of each unfinished sample the distribution at its masked positions."""

    def __init__(
        self,
        logits_fn: LogitsFn,
        input_ids: Tensor,
        answer_mask: Tensor,
        mask_token_id: int,
        eos_token_id: int | None,
        banned_ids: tuple[int, ...],
        temperature: float,
        generators: Sequence[torch.Generator] | None,
    ) -> None:
        self.logits_fn, self.answer_mask = logits_fn, answer_mask
        self.mask_token_id, self.eos_token_id, self.banned_ids = mask_token_id, eos_token_id, list(banned_ids)
        self.temperature, self.generators = temperature, generators
        self.ids = torch.where(answer_mask, mask_token_id, input_ids)
        self.num_passes = torch.zeros(len(input_ids), dtype=torch.long)
        self.probs: list[Tensor | None] = [None] * len(
            input_ids
        )  # (masked positions, V), or None: to predict

    def _at(self) -> Tensor:
        return (self.ids == self.mask_token_id) & self.answer_mask  # (B, L)

    def unfinished(self) -> list[int]:
        return self._at().any(1).nonzero().flatten().tolist()

    def predict(self) -> None:
        """Fresh distributions for the unfinished samples that changed since their last pass."""
        stale = [row for row in self.unfinished() if self.probs[row] is None]
        if not stale:
            return
        rows = torch.tensor(stale, device=self.ids.device)
        at = self._at()[rows]
        logits = self.logits_fn(self.ids[rows], at, rows).float()
        logits[:, self.banned_ids] = -math.inf
        if self.temperature not in (0, 1):
            logits = logits / self.temperature
        probs = subs_log_probs(logits, self.mask_token_id).exp()
        for row, part in zip(stale, probs.split(at.sum(1).tolist()), strict=True):
            self.probs[row] = part
            self.num_passes[row] += 1

    def _draw(self, weights: Tensor, row: int) -> Tensor:
        generator = self.generators[row] if self.generators is not None else None
        if generator is not None:
            weights = weights.to(generator.device)
        return torch.multinomial(weights, 1, generator=generator).flatten().to(self.ids.device)

    def _write(self, row: int, positions: Tensor, tokens: Tensor) -> None:
        self.ids[row, positions] = tokens
        if (tokens != self.mask_token_id).any():
            self.probs[row] = None

    def _masked_positions(self, row: int) -> Tensor:
        return self._at()[row].nonzero().flatten()

    def _tokens(self, row: int, probs: Tensor) -> Tensor:
        return probs.argmax(-1) if self.temperature == 0 else self._draw(probs, row)

    def write_ancestral(self, row: int, t: float, s: float) -> None:
        probs = self._row_probs(row)
        if self.temperature == 0:
            probs = F.one_hot(probs.argmax(-1), probs.shape[-1]).to(probs)
        self._write(
            row, self._masked_positions(row), self._draw(posterior(probs, t, s, self.mask_token_id), row)
        )

    def write_surest(self, row: int, steps_left: int) -> None:
        probs, positions = self._row_probs(row), self._masked_positions(row)
        tokens = self._tokens(row, probs)
        confidence = probs.gather(1, tokens[:, None]).flatten()
        chosen = confidence.topk(math.ceil(len(positions) / steps_left)).indices
        self._write(row, positions[chosen], tokens[chosen])

    def write_most_likely(self, row: int) -> None:
        self._write(row, self._masked_positions(row), self._row_probs(row).argmax(-1))

    def _row_probs(self, row: int) -> Tensor:
        probs = self.probs[row]
        assert probs is not None, "predict() comes first"
        return probs

    def stop_at_end_of_text(self) -> None:
        """Fills what is masked after a first end-of-text token before which nothing is masked."""
        if self.eos_token_id is None:
            return
        at = self._at()
        written_before = (self.ids == self.eos_token_id).cumsum(1) > 0  # at or after the first end of text
        masked_before = (at & ~written_before).any(1)
        fill = at & written_before & ~masked_before[:, None]
        self.ids = torch.where(fill, self.eos_token_id, self.ids)
