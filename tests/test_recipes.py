"""The named runs: the paper's values, the links between stages, and names that are known."""

import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from ddit.config.data import QuestionsData, TarData
from ddit.config.runs import DualRun, from_json, to_json
from ddit.model import DualDiTConfig
from ddit.model.small_text import build_tokenizer
from ddit.prompts import MINI
from ddit.recipes import SD3_STAGES, SIZES, build, list_recipes, list_stages, plan_runs
from ddit.recipes.mini import VOCAB_SIZE
from ddit.recipes.sd3 import PUBLISHED_TUNED
from ddit.world import PRESETS, enlarge, list_vocabulary, make_scene, render


def dual(name: str, **options) -> DualRun:
    config = build(name, "runs", **options)
    assert isinstance(config, DualRun)
    return config


def test_every_recipe_survives_json(tmp_path: Path):
    for name in [*list_recipes(), *list_stages("tiny")]:
        config = build(name, tmp_path)
        assert from_json(to_json(config)) == config


@pytest.mark.parametrize("size", SIZES)
def test_the_published_values_are_the_defaults_of_the_big_sizes(size):
    first, second, large, third = (dual(f"{size}-{stage}") for stage in list(SD3_STAGES)[:4])
    for config in (first, second, large, third):
        optimizer = config.optimizer
        assert (optimizer.name, optimizer.lr, optimizer.weight_decay) == ("adamw", 3e-5, 1e-2)
        assert optimizer.decay == "all"
        assert config.objective.flow.weighting == "velocity"  # the paper's
        assert (optimizer.warmup_steps, optimizer.max_grad_norm, optimizer.ema_decay) == (2000, 2.0, 0.9995)
        assert (config.compute_dtype, config.objective.caption_dropout) == ("bfloat16", 0.1)
        assert config.objective.text.normalizer == "all"
    assert [c.max_steps for c in (first, second, large, third)] == [60_000, 200_000, 80_000, 50_000]
    assert [c.data.image_size for c in (first, second, large, third)] == [256, 256, 512, 512]
    assert [c.data.i2t_length for c in (first, second, large, third)] == [64, 256, 256, 128]
    assert [c.objective.lambda_text for c in (first, second, large, third)] == [0.2, 0.2, 0.2, 1.0]
    assert [c.train_mask_embedding for c in (first, second, large, third)] == [False, True, True, False]
    assert third.global_batch_size == 512
    assert third.data.t2i == first.data.t2i


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("stage", SD3_STAGES)
def test_every_big_stage_is_watched_by_data_it_is_not_trained_on(size, stage):
    """Captions for grids of images and, where questions are trained, questions for the tables."""
    config = dual(f"{size}-{stage}")
    data, report = config.data, config.report
    assert report.num_held_out >= 100
    assert report.num_grid >= 8
    assert max(report.evaluate_every, report.grid_every) < config.max_steps
    assert any(isinstance(source, TarData) for source in data.held_out)
    asks = any(isinstance(source, QuestionsData) for source in data.i2t)
    assert any(isinstance(source, QuestionsData) for source in data.held_out) == asks

    def files(sources) -> set[str]:
        names = ("path", "questions", "annotations")
        return {value for source in sources for name in names if (value := getattr(source, name, None))}

    assert not files(data.held_out) & files((*data.t2i, *data.i2t))


def test_all_weights_are_tuned_in_little_memory():
    full, lora = dual("sd3-medium-full"), dual("sd3-medium-lora")
    assert (full.optimizer.name, full.optimizer.weights) == ("adamw8bit", "bfloat16")
    assert full.lora.rank == 0
    assert not full.train_mask_embedding
    assert (full.data, full.init) == (lora.data, lora.init)


def test_the_variant_of_sd3_5_has_its_own_switches():
    assert SIZES["sd3-medium"].model == DualDiTConfig()
    variant = SIZES["sd3.5-medium"].model
    assert (variant.qk_norm, variant.pos_embed_max_size) == ("rms_norm", 384)
    assert variant.dual_attention_layers == tuple(range(13))


@pytest.mark.parametrize("family", [*SIZES, "mini", "tiny"])
def test_each_stage_starts_from_its_predecessor(family):
    order = ["stage1", "stage2", "stage3", "stage4"] if family in ("mini", "tiny") else list(SD3_STAGES)[:4]
    configs = [dual(f"{family}-{stage}") for stage in order]
    for before, after in pairwise(configs):
        assert after.init == f"{before.out}/export".replace("tiny", "mini")
        assert after.model == before.model
    assert len({config.seed for config in configs}) == len(configs)


@pytest.mark.parametrize(
    "name", ["mini-stage3", "mini-stage4_128", "sd3-medium-stage2_512", "sd3-medium-stage3"]
)
def test_the_trained_mask_token_is_carried_on(name):
    assert dual(name).text is None  # then the encoder is that of `init`


def test_the_chain_holds_every_small_stage_but_the_large_images():
    assert list_stages("mini") == [
        f"mini-{name}"
        for name in (
            "vae",
            "text",
            "teacher",
            "latents",
            "latents_mixed",
            "image",
            "stage1",
            "stage2",
            "stage3",
            "stage4",
            "isolated",
        )
    ]
    assert list_stages("sd3-medium-stage1") == ["sd3-medium-stage1"]


def test_the_conversion_changes_what_image_tokens_see_and_no_size():
    before, after = dual("mini-stage4"), dual("mini-isolated")
    assert after.init == f"{before.out}/export"
    assert after.model == replace(before.model, image_attends_text=False)
    assert after.data.t2i == before.data.t2i
    assert (after.vae, after.text) == (None, None)
    assert after.max_steps < before.max_steps


@pytest.mark.parametrize("name", ["mini-blocks", "sd3-medium-blocks", "sd3.5-medium-blocks"])
def test_the_conversion_to_blocks_changes_who_sees_what_and_no_size(name):
    after, before = dual(name), dual("mini-isolated" if name == "mini-blocks" else f"{name[:-7]}-stage3")
    blocks = replace(after.model, text_block_size=0)
    assert replace(blocks, image_attends_text=True) == replace(before.model, image_attends_text=True)
    assert after.model.text_block_size > 0
    assert after.data.i2t_length % after.model.text_block_size == 0
    assert after.data.t2i == before.data.t2i
    assert after.init in (f"{before.out}/export", PUBLISHED_TUNED)
    assert after.max_steps < before.max_steps
    assert (after.vae, after.text) == (None, None)


def test_an_unknown_name_is_answered_with_those_there_are():
    with pytest.raises(
        ValueError, match=r"unknown recipe 'mini-imagee'; known: mini, tiny, wide, sd3-medium-stage1"
    ):
        build("mini-imagee", "runs")
    with pytest.raises(ValueError, match="unknown recipe 'sd3-medium-image'"):
        build("sd3-medium-image", "runs")
    with pytest.raises(ValueError, match="unknown world 'flat'; known: fixed-1"):
        build("mini-image", "runs", world="flat")


@pytest.mark.parametrize("preset", PRESETS)
def test_an_enlarged_world_renders_images_of_twice_the_side(preset):
    large = enlarge(PRESETS[preset], 2)
    scene = make_scene(large, "train", 3)
    assert render(scene).shape == (128, 128, 3)
    assert all(item.size >= 2 * PRESETS[preset].min_size for item in scene.objects)


def test_the_small_models_have_a_row_for_every_token_of_the_small_world():
    assert len(build_tokenizer([*list_vocabulary(), *MINI.words])) == VOCAB_SIZE


def test_recipes_need_no_torch():
    code = "import sys, ddit.recipes; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_overrides_go_to_a_single_stage():
    (config,) = plan_runs("mini-stage1", "runs", overrides=["max_steps=7"])
    assert config == replace(dual("mini-stage1"), max_steps=7)
    assert [run.out for run in plan_runs("mini", "runs")] == [f"runs/{name}" for name in list_stages("mini")]
    with pytest.raises(
        ValueError, match="overrides need one stage, but 'mini' stands for mini-vae, mini-text"
    ):
        plan_runs("mini", "runs", overrides=["max_steps=7"])
