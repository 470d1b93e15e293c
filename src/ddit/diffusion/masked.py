"""The text process: absorbing-state masked diffusion (MDLM). Time, masking, NELBO, posterior, guidance.

t in [0, 1]; t = 1 is all masked. At time t each token of the answer is masked independently with probability
(1 - eps) t. The text stream sees no time: what is masked tells it. SUBS parameterisation: the mask token is never
predicted, an unmasked token is carried over.

Nothing here knows a model: a `LogitsFn` maps (noisy_ids (b, L), is_masked (b, L) bool, rows (b,)) to
logits (is_masked.sum(), V) at the masked positions; `rows` tells which samples of the batch these are.
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ddit.objectives import MaskedConfig

MASK_EPS = 1e-3
LEAST_LOG = -1e4
"""Stands for the logarithm of 0 in p log p."""

LogitsFn = Callable[[Tensor, Tensor, Tensor], Tensor]


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


def time_of_uniform(u: Tensor, all_masked_share: float = 0.0) -> Tensor:
    """Times of numbers (B,) that are uniform (or stratified) in [0, 1): in [eps, 1), and 1 for a share of them."""
    rest, u = 1 - all_masked_share, u % 1
    return torch.where(u < rest, MASK_EPS + (1 - MASK_EPS) * u / rest, 1.0)


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

    t: (B,), or (B, L) where positions have times of their own.
    uniform: (B, L), by which it is decided; drawn from `generator` unless given.
    """
    if uniform is None:
        draw_on = generator.device if generator else input_ids.device
        uniform = torch.rand(input_ids.shape, generator=generator, device=draw_on)
    u = uniform.to(input_ids.device)
    return torch.where((u < (1 - MASK_EPS) * _by_position(t)) & answer_mask, mask_token_id, input_ids)


def replace_tokens(
    noisy_ids: Tensor,
    input_ids: Tensor,
    answer_mask: Tensor,
    share: float,
    *,
    mask_token_id: int,
    uniform: Tensor,
) -> Tensor:
    """Replaces a share of the visible answer tokens by tokens of other positions of their text, which may be equal.

    uniform: (2, B, L) in [0, 1), by which it is decided whether, and by which one.
    """
    others = input_ids.gather(1, (uniform[1] * input_ids.shape[1]).long())
    return torch.where((uniform[0] < share) & answer_mask & (noisy_ids != mask_token_id), others, noisy_ids)


def subs_log_probs(logits: Tensor, mask_token_id: int, banned_ids: Sequence[int] = ()) -> Tensor:
    """Log-probabilities (..., V) in float32 at masked positions: softmax without the mask token and what is banned."""
    logits = logits.float()
    ruled_out = torch.zeros(logits.shape[-1], device=logits.device)
    ruled_out[[mask_token_id, *banned_ids]] = -math.inf
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
    eos_token_id: int | None = None,
) -> Tensor:
    """Continuous-time NELBO of the answer, (B,) in float32: sum of -(1/t) log p(x_0 | x_t) over masked positions.

    With `cfg.sharpen` s, the entropy of p, s times, is added to -log p wherever x_0 is the likeliest token.

    Args:
        input_ids: (B, L), clean, with its padding of end-of-text tokens.
        answer_mask: (B, L) bool, the positions that are masked and scored; the rest stays visible.
        t, noisy_ids: drawn from `generator` unless given. Times (B,), or (B, L) of texts in blocks (`blocks`).
        eos_token_id: where the padding begins, for `cfg.normalizer` "unpadded".
    """
    if t is None:
        t = sample_t(len(input_ids), generator=generator, device=input_ids.device)
    if noisy_ids is None:
        noisy_ids = mask_tokens(input_ids, answer_mask, t, mask_token_id=mask_token_id, generator=generator)
    nll = masked_token_nll(
        logits_fn, input_ids, noisy_ids, answer_mask, mask_token_id=mask_token_id, sharpen=cfg.sharpen
    )
    return (nll_weights(input_ids, answer_mask, t, cfg, eos_token_id) * nll).sum(1)


def nll_weights(
    input_ids: Tensor, answer_mask: Tensor, t: Tensor, cfg: MaskedConfig, eos_token_id: int | None = None
) -> Tensor:
    """What -log p of a masked position is multiplied with: (B, 1) for times (B,), (B, L) for (B, L), in float32.

    Raises:
        ValueError: for `cfg.normalizer` "unpadded" without `eos_token_id`.
    """
    weight = 1 / _by_position(t).float()
    if cfg.max_weight is not None:
        weight = weight.clamp(max=cfg.max_weight)
    if cfg.normalizer == "all":
        return weight / answer_mask.shape[1]
    if cfg.normalizer == "unpadded":
        if eos_token_id is None:
            raise ValueError("normalizer=unpadded needs the id of the end-of-text token")
        answer_mask = without_padding(input_ids, answer_mask, eos_token_id)
    return weight / answer_mask.sum(1, keepdim=True).clamp(min=1)


def without_padding(input_ids: Tensor, answer_mask: Tensor, eos_token_id: int) -> Tensor:
    """The answer's positions up to its end, the first of the end-of-text tokens that fill the text: (B, L) bool."""
    is_end = (input_ids == eos_token_id) & answer_mask
    is_last = is_end.flip(1).cummin(1).values.flip(1)  # of the end and its padding
    kept = answer_mask.clone()
    kept[:, 1:] &= ~(is_last[:, 1:] & is_last[:, :-1])
    return kept


def _by_position(t: Tensor) -> Tensor:
    """Times (B,) as (B, 1); those of positions (B, L) as they are."""
    return t if t.dim() == 2 else t[:, None]


def masked_token_nll(
    logits_fn: LogitsFn,
    input_ids: Tensor,
    noisy_ids: Tensor,
    answer_mask: Tensor,
    *,
    mask_token_id: int,
    sharpen: float = 0.0,
) -> Tensor:
    """-log p(x_0 | x_t) of each masked answer position, (B, L) in float32; 0 elsewhere. sharpen: see `masked_loss`."""
    is_masked = (noisy_ids == mask_token_id) & answer_mask
    logits = logits_fn(noisy_ids, is_masked, torch.arange(len(input_ids), device=input_ids.device))
    log_probs, targets = subs_log_probs(logits, mask_token_id), input_ids[is_masked]
    nll = F.nll_loss(log_probs, targets, reduction="none")
    if sharpen:
        entropy = -(log_probs.exp() * log_probs.clamp(min=LEAST_LOG)).sum(-1)
        nll = nll + sharpen * (log_probs.argmax(-1) == targets) * entropy
    return torch.zeros(input_ids.shape, device=nll.device).masked_scatter(is_masked, nll)


def posterior(p_x0: Tensor, t: float | Tensor, s: float | Tensor, mask_token_id: int) -> Tensor:
    """Unnormalised q(x_s | x_t, x_0 ~ p_x0), (..., V) -> (..., V): token v with p(v) (t - s), still masked with s.

    t, s: one for all, or one a distribution (...).
    """
    lapse = t - s
    q_xs = p_x0 * (lapse[..., None] if isinstance(lapse, Tensor) else lapse)
    q_xs[..., mask_token_id] = s
    return q_xs


def guided_logits(logits_fn: LogitsFn, null_logits_fn: LogitsFn, guidance_scale: float) -> LogitsFn:
    """Guidance against the null image: log p + (g - 1) (log p - log p_null), up to a constant a position.

    A scale of 1 is `logits_fn` itself, and the null image is never asked; otherwise a pass is two forwards.

    Raises:
        ValueError: on a negative scale.
    """
    if not 0 <= guidance_scale < math.inf:
        raise ValueError(f"text_guidance_scale must be at least 0 and finite, got {guidance_scale}")
    if guidance_scale == 1:
        return logits_fn

    def guided(noisy_ids: Tensor, is_masked: Tensor, rows: Tensor) -> Tensor:
        logits = logits_fn(noisy_ids, is_masked, rows).float()
        return logits + (guidance_scale - 1) * (logits - null_logits_fn(noisy_ids, is_masked, rows).float())

    return guided
