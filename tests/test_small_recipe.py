"""The chain of a small model on any sources: its sizes, its budget, its links, and `mini` as one case of it."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny
from PIL import Image
from text_models import published_codec

from ddit.config.data import FoldersData, JsonData, LlavaData, QuestionsData, WorldData
from ddit.config.runs import (
    AutoencoderRun,
    DualRun,
    LatentsRun,
    RunConfig,
    TextEncoderRun,
    from_json,
    to_json,
)
from ddit.model import DualDiT
from ddit.pipeline import Pipeline
from ddit.recipes import build
from ddit.recipes.costs import expected_hours, pair_flops
from ddit.recipes.small import SHORT_ANSWERS_SHARE, SMALL_SIZES, TRANSFORMER_SHARE, small
from ddit.train.flops import run_flops
from ddit.train.stages import run_stages
from ddit.world import PRESETS

CAPTIONS = JsonData("captions.json")


def dual_runs(runs: list[RunConfig]) -> list[DualRun]:
    return [run for run in runs if isinstance(run, DualRun)]


@pytest.mark.parametrize("size", SMALL_SIZES)
def test_each_stage_starts_from_the_one_before_it_and_survives_json(size: str) -> None:
    runs = small("runs", [CAPTIONS, JsonData("more.json", weight=2.0)], size)
    kinds = ["vae", "text", "latents_0", "latents_1", "image", "joint", "final"]
    assert [run.out for run in runs] == [f"runs/{size}-{kind}" for kind in kinds]
    duals = dual_runs(runs)
    assert [run.init for run in duals] == [None, *(f"{run.out}/export" for run in duals[:-1])]
    assert all(before.model == after.model for before, after in pairwise(duals))
    assert duals[-1].optimizer.schedule == "linear"
    assert [source.latents for source in duals[1].data.i2t] == ["runs/" + f"{size}-{k}" for k in kinds[2:4]]
    assert all(from_json(to_json(run)) == run for run in runs)


@pytest.mark.parametrize(
    ("size", "widths"),
    [*((size, {}) for size in SMALL_SIZES), ("xs", {"stem": (64, 128, 256), "refiner": 64})],
)
def test_the_cost_is_that_of_the_counted_flops_and_fills_the_budget(
    size: str, widths: dict[str, Any]
) -> None:
    duals = dual_runs(small("runs", [CAPTIONS], size, hours=20.0, **widths))
    for run in duals:
        downsample = run.data.image_size // run.model.sample_size
        assert pair_flops(run) == pytest.approx(run_flops(run, downsample) / run.global_batch_size, rel=0.03)
    hours = sum(expected_hours(run, SMALL_SIZES[size].flops) for run in duals)
    assert hours == pytest.approx(20 * TRANSFORMER_SHARE, rel=0.01)
    quick = dual_runs(
        small("runs", [CAPTIONS], size, hours=20.0, **widths, flops=2 * SMALL_SIZES[size].flops)
    )
    assert quick[0].max_steps == pytest.approx(2 * duals[0].max_steps, rel=0.01)


def test_the_sizes_are_what_they_say() -> None:
    counts = {}
    for size in SMALL_SIZES:
        with torch.device("meta"):
            model = DualDiT(dual_runs(small("runs", [CAPTIONS], size))[0].model)
        counts[size] = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    assert counts == pytest.approx({"xs": 6, "s": 15, "m": 45, "l": 155}, rel=0.1)


def test_questions_are_no_prompts() -> None:
    talk, asked = LlavaData("talk.json"), QuestionsData("q.json", "a.json")
    image, joint, _ = dual_runs(small("runs", [CAPTIONS, talk, asked]))
    assert [source.kind for source in image.data.t2i] == ["json"]
    assert [source.kind for source in joint.data.i2t] == ["json", "llava", "questions"]
    joint, final = dual_runs(small("runs", [talk]))
    assert (joint.init, joint.objective.i2t_fraction, joint.data.t2i) == (None, 1.0, ())
    assert final.init == f"{joint.out}/export"


def test_short_answers_are_mostly_masked_throughout() -> None:
    """A mixture with longer texts is not, and what comes before the reading has no text loss."""
    asked, named = QuestionsData("q.json", "a.json"), FoldersData("photos")
    for sources, share in (
        ([asked], SHORT_ANSWERS_SHARE), ([asked, named], SHORT_ANSWERS_SHARE), ([asked, CAPTIONS], 0.0)
    ):  # fmt: skip
        joint, final = dual_runs(small("runs", sources))[-2:]
        assert [run.objective.text.all_masked_share for run in (joint, final)] == [share, share]


def test_encoders_may_be_given(tmp_path: Path) -> None:
    AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8), decoder_block_out_channels=(8, 8, 8), num_encoder_blocks=(1, 1, 1),
        num_decoder_blocks=(1, 1, 1), latent_channels=16,
    ).save_pretrained(tmp_path / "tiny")  # fmt: skip
    codec = published_codec()
    codec.save_pretrained(tmp_path / "t5" / "tokenizer", tmp_path / "t5" / "text_encoder")
    vae, text = str(tmp_path / "tiny"), str(tmp_path / "t5")
    runs = small("runs", [CAPTIONS], vae=vae, text=text, image_size=128)
    assert not any(isinstance(run, AutoencoderRun | TextEncoderRun) for run in runs)
    latents, image = runs[:2]
    assert isinstance(latents, LatentsRun)
    assert isinstance(image, DualRun)
    assert (latents.vae, image.vae, image.text) == (vae, vae, text)
    assert (image.model.in_channels, image.model.sample_size) == (16, 32)
    assert (image.model.text_dim, image.model.vocab_size) == (24, codec.vocab_size)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": "xl"}, r"unknown size 'xl'; known: xs, s, m, l"),
        ({"hours": 0}, r"hours must be above 0, got 0"),
        ({"image_size": 100}, r"image_size must be a multiple of 8 .*, got 100"),
        ({"vae": "nowhere"}, r"unknown model 'nowhere'"),
        ({"sources": []}, r"there is no source"),
    ],
)
def test_what_does_not_fit_is_one_clear_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        small(**({"root": "runs", "sources": [CAPTIONS]} | options))
    assert "\n" not in str(caught.value)


def test_mini_is_the_small_chain_on_the_world() -> None:
    """What its transformer runs do not have of `small`'s are the numbers named here."""
    world = WorldData(PRESETS["fixed"])
    ours = dual_runs(small("runs", [world], "s", patch_size=4, text_length=16))
    theirs = [build(f"mini-{stage}", "runs") for stage in ("image", "stage1", "stage3")]
    for our, their in zip(ours, theirs, strict=True):
        assert isinstance(their, DualRun)
        assert replace(our.model, vocab_size=96) == their.model
        for name in ("prompts", "parallel", "global_batch_size", "lora", "compute_dtype", "non_finite"):
            assert getattr(our, name) == getattr(their, name)
        assert replace(our.optimizer, warmup_steps=60) == their.optimizer
        aligned = replace(our.objective, alignment_weight=0.5, alignment_block=2)
        assert their.objective in (aligned, replace(aligned, alignment_weight=0.0))


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty images of one colour each, and their captions."""
    folder = tmp_path_factory.mktemp("own")
    entries = []
    for number in range(60):
        name = ("rot", "grün", "blau")[number % 3]
        pixels = np.full((40, 30 + number, 3), 30, np.uint8)
        pixels[..., number % 3] = 200
        pixels[: number % 20] //= 2
        Image.fromarray(pixels).save(folder / f"{number}.png")
        entries.append({"image_path": f"{number}.png", "caption": f"Ein Bild in {name} 🎨"})
    (folder / "captions.json").write_text(json.dumps(entries))
    return folder


def shortened(run: RunConfig) -> RunConfig:
    if isinstance(run, AutoencoderRun):
        return replace(run, batch_size=4, max_steps=2)
    if isinstance(run, TextEncoderRun):
        return replace(run, batch_size=6, max_steps=2, num_held_out=6, warmup_steps=1)
    if isinstance(run, LatentsRun):
        return run
    assert isinstance(run, DualRun)
    report = replace(run.report, log_every=1, tensorboard=False, peak_tflops=1.0)
    return replace(run, global_batch_size=4, max_steps=2, report=report)


@pytest.mark.slow
def test_files_become_a_model_that_knows_their_words(own: Path, tmp_path: Path) -> None:
    runs = small(tmp_path, [JsonData(str(own / "captions.json"))], "xs", text_length=24)
    run_stages([shortened(run) for run in runs])
    pipeline = Pipeline.from_pretrained(tmp_path / "xs-final" / "export")
    image = pipeline.generate("Ein Bild in grün 🎨", num_steps=2)[0]
    assert image.size == (32, 32)
    assert isinstance(pipeline.caption([image], num_steps=2)[0], str)
    with pytest.warns(UserWarning, match="does not know the word 'Xylophon'"):
        pipeline.generate("Ein Bild in Xylophon", num_steps=1)


@pytest.mark.slow
def test_a_frozen_t5_in_one_folder_and_a_tiny_autoencoder_serve_as_encoders(
    own: Path, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8), decoder_block_out_channels=(8, 8, 8), num_encoder_blocks=(1, 1, 1),
        num_decoder_blocks=(1, 1, 1), latent_channels=16,
    ).save_pretrained(tmp_path / "tiny")  # fmt: skip
    published_codec().save_pretrained(tmp_path / "t5", tmp_path / "t5")
    source = JsonData(str(own / "captions.json"))
    runs = small(
        tmp_path, [source], "xs", text_length=24, vae=str(tmp_path / "tiny"), text=str(tmp_path / "t5")
    )
    run_stages([shortened(run) for run in runs])
    export = tmp_path / "xs-final" / "export"
    assert not list((export / "tokenizer").glob("*.safetensors"))
    assert Pipeline.from_pretrained(export).generate("a red dog", num_steps=2)[0].size == (32, 32)
