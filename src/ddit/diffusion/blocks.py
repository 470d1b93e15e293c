"""Texts written in blocks, left to right, each by masked diffusion behind the finished ones (arXiv 2503.09573).

    log p(x) >= sum over blocks b of E_t [ (1/t) sum over masked i of b of log p(x_i | x_b at t, clean blocks < b) ]

each block with a time of its own. One block of all tokens is `masked`'s process, blocks of one are autoregression.
Nothing here knows a model, see `masked.LogitsFn`; that a block's logits depend on no later one is the model's matter.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ddit.diffusion.masked import LogitsFn, time_of_uniform
from ddit.diffusion.text_sampler import OnStep, TextSample, TextSampler, TextState
from ddit.settings import UnmaskingRule

OnBlock = Callable[[int, Tensor], None]
"""Called before the first step of a block with its number and the samples (b,) that take part."""


def block_times(u: Tensor, blocks: Tensor, all_masked_share: float = 0.0) -> Tensor:
    """Times (B, L) of blocks (B, L), of numbers (B,) that are uniform (or stratified) in [0, 1); 1 for a share of them.

    A sample's blocks have times spread evenly over [0, 1); the sum of their losses is as the sum at independent times,
    with less noise.
    """
    num_blocks = blocks.amax(1, keepdim=True).clamp(min=1)
    return time_of_uniform(u[:, None] + (blocks - 1) / num_blocks, all_masked_share)


def sample_blocks(
    logits_fn: LogitsFn,
    input_ids: Tensor,
    blocks: Tensor,
    *,
    num_steps: int,
    mask_token_id: int,
    eos_token_id: int | None = None,
    banned_ids: Sequence[int] = (),
    rule: UnmaskingRule | None = None,
    generators: Sequence[torch.Generator] | None = None,
    on_step: OnStep | None = None,
    on_block: OnBlock | None = None,
) -> TextSample:
    """Fills blocks 1, 2, ... in turn, each as `text_sampler.sample_text` fills a text; a sample stops with the first
    block that holds an end-of-text token, with which the rest is filled.

    A batch gives what single calls give: samples wait for each other between blocks, and take no steps meanwhile.

    Args:
        input_ids: (B, L); block 0 is given and never changes.
        blocks: (B, L), of each position; every sample has as many positions of each block as the others.
        num_steps: the most steps that a sample takes in one block.
        eos_token_id, banned_ids, rule, generators: as in `text_sampler.sample_text`.
        on_step: called after every step, of all blocks; those not begun yet are masked.
        on_block: called before every block.
    """
    blocks, num_blocks = blocks.expand_as(input_ids), int(blocks.max())
    sampler = TextSampler(
        logits_fn,
        input_ids,
        blocks > 0,
        mask_token_id,
        eos_token_id,
        banned_ids,
        rule or UnmaskingRule(),
        generators,
    )
    total, goes_on = num_blocks * num_steps, torch.ones(len(blocks), dtype=torch.bool, device=blocks.device)
    for block in range(1, num_blocks + 1):
        if on_block is not None:
            on_block(block, goes_on.nonzero()[:, 0])
        is_open = goes_on[:, None] & (blocks == block)
        sampler.open(is_open)
        sampler.run(num_steps, _counted(on_step, (block - 1) * num_steps, total))
        if eos_token_id is not None:
            is_over = ((sampler.ids == eos_token_id) & is_open).any(1)
            sampler.end(is_over[:, None] & (blocks > block))
            goes_on &= ~is_over
        if not goes_on.any() and block < num_blocks:
            if on_step is not None:
                on_step(total, total, sampler.state)
            break
    return TextSample(sampler.ids, sampler.num_steps)


def _counted(on_step: OnStep | None, before: int, total: int) -> OnStep | None:
    """Counts the steps of one block among those of all."""

    def step(done: int, _: int, state: TextState) -> None:
        if on_step is not None:
            on_step(before + done, total, state)

    return step
