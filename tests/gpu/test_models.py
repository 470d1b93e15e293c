"""Models give on a device what they give on the CPU; `-m gpu` runs these on CUDA, an ordinary run on the CPU."""

import pytest
import torch

from ddit.devices import multiplies_bfloat16
from ddit.doctor import models
from ddit.doctor.report import Bench, Skipped
from ddit.pipeline import Pipeline


def in_bfloat16(bench: Bench) -> torch.dtype:
    if not multiplies_bfloat16(bench.device):
        pytest.skip("no quick bfloat16 products")
    return torch.bfloat16


def test_the_reference_holds_in_float32(bench: Bench) -> None:
    outcome = models.check_verify(bench, torch.float32)
    assert outcome.status == "ok", outcome.figure


def test_the_reference_holds_in_bfloat16(bench: Bench) -> None:
    outcome = models.check_verify(bench, in_bfloat16(bench))
    assert outcome.status == "ok", outcome.figure


def test_a_model_that_differs_from_its_reference_is_found(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(models.TOLERANCES, torch.float32, 0.0)
    assert models.check_verify(bench, torch.float32).status == "ok" or bench.is_gpu
    monkeypatch.setattr(models, "TOLERANCES", {torch.bfloat16: 1e-6})
    assert models.check_verify(bench, in_bfloat16(bench)).status == "failed"


@pytest.mark.parametrize("option", ["offload", "offload_blocks", "int8"])
def test_ways_of_loading_give_the_same(bench: Bench, option: str) -> None:
    outcome = models.check_loading(bench, **{option: True})
    assert outcome.status == "ok", outcome.figure


@pytest.mark.gpu  # on the CPU tests/model/test_dual_dit.py compares compiled blocks
@pytest.mark.filterwarnings("ignore")  # torch's compiler warns of its own parts
def test_compiled_code_gives_the_same_call_after_call(bench: Bench) -> None:
    outcome = models.check_compiled(bench)
    assert outcome.status == "ok", outcome.figure


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", models.PIXELS, ids=str)
def test_mini_draws_and_writes_as_on_the_cpu(bench: Bench, dtype: torch.dtype) -> None:
    try:
        outcome = models.check_mini(bench, dtype)
    except Skipped as reason:
        pytest.skip(str(reason))
    assert outcome.status == "ok", outcome.figure


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore")
def test_mini_is_replayed_as_graphs(bench: Bench) -> None:
    try:
        outcome = models.check_compiled_mini(bench)
    except Skipped as reason:
        pytest.skip(str(reason))
    assert outcome.status == "ok", outcome.figure


@pytest.mark.filterwarnings("ignore")
def test_more_graphs_than_the_limit_are_an_error(bench: Bench) -> None:
    import torch._dynamo.config as dynamo
    from torch._dynamo.exc import FailOnRecompileLimitHit

    def double(x: torch.Tensor, times: int) -> torch.Tensor:
        return x * times

    compiled = torch.compile(double, backend="eager", dynamic=False)
    x = torch.ones(2, device=bench.device)
    with dynamo.patch(recompile_limit=2), models.counted_graphs():
        assert [compiled(x, times).sum().item() for times in range(2)] == [0, 2]
        with pytest.raises(FailOnRecompileLimitHit):
            compiled(x, 2)


def test_the_small_model_is_saved_and_loaded_alike(bench: Bench) -> None:
    folder = models.save_small(bench.folder / "small")
    pipeline = Pipeline.from_pretrained(folder, device=bench.device, dtype="float32")
    assert not pipeline.transformer.config.image_attends_text
    assert pipeline.caption(pipeline.generate("a cat")[0])[0]
