"""Compiled blocks: no step, evaluation or sample grid of a run asks for more graphs than the compiler keeps."""

import functools
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
import torch._dynamo.config as dynamo_config
from torch._dynamo.eval_frame import _debug_get_cache_entry_list
from torch._dynamo.testing import CompileCounterWithBackend

from ddit.config.runs import DualRun, ObjectiveConfig
from ddit.diffusion import masked
from ddit.model import DualDiT, DualDiTConfig
from ddit.model.block import JointBlock
from ddit.model.dual_dit import MAX_GRAPHS
from ddit.train.batch import Batch, I2TBatch, Images, T2IBatch
from ddit.train.objective import step_losses
from ddit.train.stages import run_stage

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),
]  # torch's compiler warns of its own parts

FUNCTIONS = ("draw", "read", "joint", "last")
MASK, LENGTH = 52, 6
BUCKETS = ((8, 8), (8, 12), (12, 8), (8, 16), (16, 8), (12, 16))


@pytest.fixture
def counter(monkeypatch: pytest.MonkeyPatch) -> Iterator[CompileCounterWithBackend]:
    """Counts graphs, which run eager; a function beyond the limit raises."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=counter))
    with dynamo_config.patch(fail_on_recompile_limit_hit=True, recompile_limit=dynamo_config.recompile_limit):
        yield counter
    torch._dynamo.reset()


def graphs() -> dict[str, int]:
    """The graphs that are kept of each function, for all blocks together."""
    return {name: len(_debug_get_cache_entry_list(getattr(JointBlock, name).__code__)) for name in FUNCTIONS}


def check(counter: CompileCounterWithBackend, *, most: int) -> None:
    """Each function keeps at most so many graphs; the counter has those of the text encoder as well."""
    found = graphs()
    assert counter.frame_count >= sum(found.values()) > 0
    assert max(found.values()) <= most < MAX_GRAPHS


@pytest.fixture
def compiled(joint: DualRun) -> Callable[..., DualRun]:
    """A run whose blocks are compiled, with held-out losses, grids and tables after every other step."""

    def make(**data) -> DualRun:
        report = replace(joint.report, evaluate_every=2, grid_every=2)
        parallel = replace(joint.parallel, compile_blocks=True)
        return replace(joint, parallel=parallel, report=report, data=replace(joint.data, **data))

    return make


def test_stage_1_with_held_out_samples_and_grids(compiled, counter: CompileCounterWithBackend) -> None:
    run_stage(compiled())
    check(counter, most=8)


def test_stage_3_whose_texts_are_of_two_lengths(compiled, counter: CompileCounterWithBackend) -> None:
    cfg = compiled()
    run_stage(compiled(i2t_length=cfg.data.t2i_length - 4))
    check(counter, most=8)


def make_batch(size: tuple[int, int], i2t_size: tuple[int, int], i2t_length: int, num_null: int) -> tuple:
    """Three t2i and four i2t samples, the last of which have no image; clean latents and states of both."""
    g = torch.Generator().manual_seed(0)
    ids = torch.randint(0, MASK, (4, i2t_length), generator=g)
    answers, t = torch.ones_like(ids, dtype=torch.bool), torch.full((4,), 0.5)
    noisy = masked.mask_tokens(ids, answers, t, mask_token_id=MASK, generator=g)
    none = Images(None, None, None, None)
    t2i = T2IBatch(none, ids[:3], t[:3], torch.randn(3, 4, *size, generator=g))
    is_null = torch.arange(4) >= 4 - num_null
    i2t = I2TBatch(none._replace(is_null=is_null), ids, answers, noisy, t)
    latents = torch.randn(3, 4, *size, generator=g), torch.randn(4, 4, *i2t_size, generator=g)
    states = torch.randn(3, LENGTH, 24, generator=g), torch.randn(4, i2t_length, 24, generator=g)
    return Batch(t2i, i2t, {}), latents, states


@pytest.mark.parametrize("image_attends_text", [True, False])
def test_aspect_buckets_with_two_lengths_and_null_images(
    image_attends_text: bool, counter: CompileCounterWithBackend
) -> None:
    """Pairs of shapes, of equal and of unequal lengths of text, with none to all of the images null."""
    config = DualDiTConfig(
        in_channels=4,
        hidden_size=32,
        depth=3,
        num_heads=2,
        text_dim=24,
        vocab_size=53,
        sample_size=16,
        pos_embed_max_size=12,
        image_attends_text=image_attends_text,
    )
    model = DualDiT(config)
    model.init_weights(torch.Generator().manual_seed(1))
    model.compile_blocks()
    for i, size in enumerate(BUCKETS):
        for j in (i, (i + 1) % len(BUCKETS)):
            other = BUCKETS[j]
            length = LENGTH if (i + j) % 2 else LENGTH - 2
            batch, latents, states = make_batch(size, other, length, num_null=(i + 2 * j) % 5)
            for grad in (True, False):
                with torch.set_grad_enabled(grad):
                    step_losses(model, batch, latents, states, ObjectiveConfig(), mask_token_id=MASK)
    check(counter, most=24)
