"""Joint attention's projections and product; shape legend in `ddit.model.dual_dit`."""

import math

import torch.nn.functional as F
from torch import Tensor, nn

MAX_PLAIN_ATTENTION = 128
"""Keys up to which a CPU takes plain products."""


class Attention(nn.Module):
    """Projections of one attention: of the image stream and, if `joint`, of the text stream beside it."""

    def __init__(self, dim: int, num_heads: int, *, qk_norm: bool, joint: bool) -> None:
        super().__init__()
        self.head_dim = dim // num_heads
        self.to_q, self.to_k, self.to_v = (nn.Linear(dim, dim) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(dim, dim)])
        self.norm_q, self.norm_k = self._norm(qk_norm), self._norm(qk_norm)
        if joint:
            self.add_q_proj, self.add_k_proj, self.add_v_proj = (nn.Linear(dim, dim) for _ in range(3))
            self.to_add_out = nn.Linear(dim, dim)
            self.norm_added_q, self.norm_added_k = self._norm(qk_norm), self._norm(qk_norm)

    def _norm(self, qk_norm: bool) -> nn.Module:
        return nn.RMSNorm(self.head_dim, eps=1e-6) if qk_norm else nn.Identity()

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # (B, S, D) -> (B, heads, S, E)

    def project_image(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of the image stream: (B, N, D) -> 3 x (B, heads, N, E)."""
        q, k, v = (self._heads(project(x)) for project in (self.to_q, self.to_k, self.to_v))
        return self.norm_q(q), self.norm_k(k), v

    def project_text(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of the text stream: (B, L, D) -> 3 x (B, heads, L, E)."""
        q, k, v = (self._heads(project(x)) for project in (self.add_q_proj, self.add_k_proj, self.add_v_proj))
        return self.norm_added_q(q), self.norm_added_k(k), v


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Scaled dot-product attention over heads: (B, heads, S, E) -> (B, S, D).

    mask: bool, True where a query sees a key, broadcast to (B, heads, S, keys). None but for texts in blocks, so that
        CUDA may take its flash kernel: samples of other sizes are attended to apart.
    """
    if len(q) == 0:  # the compiler fails on the softmax of no samples
        return q.transpose(1, 2).flatten(2)
    if q.device.type == "cpu" and k.shape[2] <= MAX_PLAIN_ATTENTION:
        # The backward pass of torch's fused CPU kernel takes thirty times as long on short sequences.
        scores = (q @ k.mT).float().mul(q.shape[-1] ** -0.5)  # (B, heads, S, S)
        if mask is not None:
            scores = scores.masked_fill(~mask, -math.inf)
        return (scores.softmax(-1).to(v.dtype) @ v).transpose(1, 2).flatten(2)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)
