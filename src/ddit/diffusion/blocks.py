"""Texts written in blocks, left to right, each by masked diffusion behind the finished ones (arXiv 2503.09573).

    log p(x) >= sum over blocks b of E_t [ (1/t) sum over masked i of b of log p(x_i | x_b at t, clean blocks < b) ]

each block with a time of its own. One block of all tokens is `masked`'s process, blocks of one are autoregression.
Nothing here knows a model, see `masked.LogitsFn`; that a block's logits depend on no later one is the model's matter.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ddit.diffusion.masked import LogitsFn, OnStep, TextSample, TextState, sample_text, time_of_uniform
from ddit.settings import UnmaskingRule

OnBlock = Callable[[int, Tensor], None]
"""Called before the first step of a block with its number and the samples (b,) that take part."""


def block_times(u: Tensor, blocks: Tensor) -> Tensor:
    """Times (B, L) of blocks (B, L), of numbers (B,) that are uniform (or stratified) in [0, 1).

    A sample's blocks have times spread evenly over [0, 1); the sum of their losses is as the sum at independent times,
    with less noise.
    """
    num_blocks = blocks.amax(1, keepdim=True).clamp(min=1)
    return time_of_uniform(u[:, None] + (blocks - 1) / num_blocks)


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
    """Fills blocks 1, 2, ... in turn, each as `masked.sample_text` fills a text; a sample stops with the first block
    that holds an end-of-text token, with which the rest is filled.

    A batch gives what single calls give: samples wait for each other between blocks, and take no steps meanwhile.

    Args:
        input_ids: (B, L); block 0 is given and never changes.
        blocks: (B, L), of each position; every sample has as many positions of each block as the others.
        num_steps: the most steps that a sample takes in one block.
        eos_token_id, banned_ids, rule, generators: as in `masked.sample_text`.
        on_step: called after every step, of all blocks; those not begun yet are masked.
        on_block: called before every block.
    """
    answer_mask = (blocks > 0).expand_as(input_ids)
    blocks, num_blocks = blocks.expand_as(input_ids), int(blocks.max())
    ids, confidence = torch.where(answer_mask, mask_token_id, input_ids), (~answer_mask).float()
    steps = torch.zeros(len(ids), dtype=torch.long)
    rows = torch.arange(len(ids), device=ids.device)  # that go on

    def report(done: int) -> None:
        if on_step is not None:
            on_step(done, num_blocks * num_steps, TextState(ids.clone(), answer_mask, confidence.clone()))

    for block in range(1, num_blocks + 1):
        in_block = blocks[rows] == block
        if on_block is not None:
            on_block(block, rows)

        def watch(done: int, _: int, state: TextState, block: int = block, rows: Tensor = rows) -> None:
            ids[rows], confidence[rows] = state.ids, state.confidence * (blocks[rows] <= block)
            if done < num_steps or block < num_blocks:
                report((block - 1) * num_steps + done)

        sample = sample_text(
            lambda noisy_ids, is_masked, some, rows=rows: logits_fn(noisy_ids, is_masked, rows[some]),
            ids[rows],
            in_block,
            num_steps=num_steps,
            mask_token_id=mask_token_id,
            eos_token_id=eos_token_id,
            banned_ids=banned_ids,
            rule=rule,
            generators=None if generators is None else [generators[row] for row in rows.tolist()],
            on_step=None if on_step is None else watch,
        )
        ids[rows], steps[rows.cpu()] = sample.ids, steps[rows.cpu()] + sample.num_steps
        if eos_token_id is not None:
            is_over = ((sample.ids == eos_token_id) & in_block).any(1)
            rest = is_over[:, None] & (blocks[rows] > block)
            ids[rows], confidence[rows] = (
                torch.where(rest, value, x[rows]) for value, x in ((eos_token_id, ids), (1.0, confidence))
            )
            rows = rows[~is_over]
        if not len(rows):
            break
    report(num_blocks * num_steps)
    return TextSample(ids, steps)
