import copy
import os
from typing import Any, cast

import pytest
import torch
from torch import nn

from benchmarks.sampling import subjects
from benchmarks.sampling.arms import ImageTask, Subject, expected_steps, random_text, text_arms
from benchmarks.sampling.measure import Arm, Clock, EvaluationCounter, Result, Score, measure, peak_memory
from benchmarks.sampling.published import Published
from benchmarks.sampling.report import Table, target_rows
from ddit.diffusion.flow import num_evaluations
from ddit.diffusion.text_sampler import sample_text
from ddit.pipeline import Pipeline
from ddit.settings import ImageSampling


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(subjects.SIZES, "tiny", (64, 2, 64, 1))
        return subjects.random_pipeline("tiny", 128)


def test_evaluations_are_counted_and_a_reused_image_saves_flops(pipeline):
    joint, isolated = pipeline, subjects.isolated(copy.deepcopy(pipeline))  # with an encoder of its own
    published = cast(Published, None)  # its arm is left out below
    subject = Subject("tiny", joint, isolated, published, rivals=False, compiles=False)
    task = random_text(8, 16, 3, count=2, side=joint.settings.image_size, max_steps=None)
    arms = {arm.label: arm for arm in text_arms(subject, task, [1, 2], None)}
    chosen = [arms[label] for label in ("ours, as published", "+ rule", "+ image reused", "+ batch 2")]
    results = measure(chosen, Clock.start(cpu_time=True), rounds=1, fresh=False, arm_seconds=60, memory=False)
    assert [results[label].evaluations for label in ("+ rule", "+ image reused", "+ batch 2")] == [3, 3, 3]
    assert 14 <= results["ours, as published"].evaluations <= 17  # over some 110 positions
    assert results["+ rule"].flops < results["ours, as published"].flops / 4
    assert results["+ image reused"].flops < results["+ rule"].flops


def test_a_decoder_takes_an_evaluation_a_token_and_depends_on_the_question(pipeline):
    decoder = subjects.Autoregressive(pipeline, torch.float32)
    images = subjects.noise_images(2, pipeline.settings.image_size)
    with EvaluationCounter(decoder.model) as counter:
        first = decoder.generate(images, ["w1 w2", "w1 w2"], 5)
    other = decoder.generate(images, ["w3 w4", "w3 w4"], 5)
    assert first.shape == (2, 5)
    assert counter.rows == 2 * 5
    assert not first.equal(other)


def test_the_isolated_model_has_the_same_tensors(pipeline):
    own, other = pipeline.transformer.state_dict(), subjects.isolated(pipeline).transformer.state_dict()
    assert own.keys() == other.keys()
    assert all(own[name].data_ptr() == other[name].data_ptr() for name in own)


@pytest.mark.skipif("DDIT_PUBLISHED" not in os.environ, reason="needs a checkout of the published code")
def test_the_published_model_gives_our_outputs(pipeline):
    published = Published(os.environ["DDIT_PUBLISHED"], pipeline)
    assert published.check_same() < 1e-5
    weight = published.model.text_proj_out.weight
    saved = weight.clone()
    published.model.text_proj_out.weight = nn.Parameter(saved * 1.01, requires_grad=False)
    with pytest.raises(ValueError, match="differ by"):
        published.check_same()


@pytest.mark.parametrize(("steps", "positions"), [(16, 100), (16, 8), (4, 8)])
def test_expected_steps_are_those_of_the_sampler(steps, positions):
    torch.manual_seed(0)
    count = 300
    ids = torch.zeros(count, positions, dtype=torch.long)
    sample = sample_text(
        lambda noisy, is_masked, rows: torch.zeros(int(is_masked.sum()), 4),
        ids, torch.ones_like(ids, dtype=torch.bool),
        num_steps=steps, mask_token_id=3,
        generators=[torch.Generator().manual_seed(row) for row in range(count)],
    )  # fmt: skip
    assert sample.num_steps.float().mean().item() == pytest.approx(expected_steps(steps, positions), rel=0.03)


def test_a_call_cut_short_is_scaled_by_evaluations():
    cfg = ImageSampling(num_steps=10, guidance_interval=(0.5, 1.0))
    shorter, scale = ImageTask(name="images", prompts=["w1"], ours=cfg, max_steps=3).cut(cfg)
    assert shorter.num_steps == 3
    assert scale * num_evaluations(shorter) == num_evaluations(cfg)


def test_peak_memory_is_what_is_held_at_once():
    def work() -> None:
        kept = [torch.ones(2**18) for _ in range(3)]  # a MB each
        del kept

    assert peak_memory(work) == pytest.approx(3, abs=0.2)


def _result(label: str, part: str, after: str, batch: int, seconds: float) -> Result:
    rest: Any = {"count": 1, "run": lambda numbers: [], "counted": nn.Identity()}
    return Result(Arm(label=label, part=part, after=after, batch=batch, **rest), seconds=[seconds], flops=1.0)


def test_the_parts_multiply_to_the_measured_ratio():
    results = [
        _result("published", "", "", 1, 8.0),
        _result("+ rule", "fewer steps", "published", 1, 2.0),
        _result("+ bf16, batch 1", "precision", "+ rule", 1, 1.6),
        _result("+ batch 32", "batching", "+ rule", 32, 0.5),
        _result("+ bf16, batch 32", "precision", "+ batch 32", 32, 0.1),
    ]
    table = Table("tiny", "8 tokens", {r.arm.label: r for r in results}, Clock.start(cpu_time=True), "")
    slower = _result("+ compiled, batch 32", "compiled", "+ bf16, batch 32", 32, 0.2)
    table.results[slower.arm.label] = slower  # is not what counts
    assert table.breakdown(table.ours(32, results[0])) == pytest.approx(
        {"fewer steps": 4, "batching": 4, "precision": 5}
    )
    met = {row[2]: (row[5], row[6]) for row in target_rows([table])}
    assert met == {"32": ("80.0x", "yes"), "1": ("5.0x", "no")}


def test_the_quickest_arm_counts_only_if_its_score_is_no_worse():
    results = [
        _result("published", "", "", 1, 100.0),
        _result("+ rule, batch 1", "fewer steps", "published", 1, 2.0),
        _result("+ looser rule, batch 1", "looser rule", "+ rule, batch 1", 1, 1.0),
    ]
    for result, score in zip(results, (0.9, 0.895, 0.88), strict=True):
        result.score = Score(score, 0.05)
    table = Table("tiny", "answers", {r.arm.label: r for r in results}, Clock.start(cpu_time=True), "")
    (row,) = target_rows([table])
    assert row[5:8] == ["50.0x", "yes", "0.900 and 0.895"]
    results[1].score = Score(0.8, 0.05)
    (row,) = target_rows([table])
    assert row[5:8] == ["100.0x", "no: the score is lower", "0.900 and 0.880"]
