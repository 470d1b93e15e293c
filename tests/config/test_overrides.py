"""What a user may change in a run, and that a change without effect is refused."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from ddit.config.data import JsonData, TarData
from ddit.config.overrides import list_keys, never_read, override_run
from ddit.config.renamed import RENAMED
from ddit.config.runs import DualRun, LatentsRun
from ddit.recipes import build, list_recipes
from ddit.schema import to_data


@pytest.fixture
def joint() -> DualRun:
    config = build("mini-stage1", "runs")
    assert isinstance(config, DualRun)
    return config


def change(config: Any, *overrides: str) -> Any:
    return override_run(config, overrides)


def test_what_is_auto_takes_other_types() -> None:
    recipe = build("sd3-medium-lora", Path("runs"))
    assert isinstance(recipe, DualRun)
    changed = change(recipe, "parallel.checkpoint_activations=true", "micro_batch_size=2")
    assert (changed.parallel.checkpoint_activations, changed.micro_batch_size) == (True, 2)


def test_overrides_are_typed_and_nested(joint: DualRun) -> None:
    changed = change(
        joint, "optimizer.lr=1e-4", "max_steps=7", "init=null", "optimizer.betas=[0.5, 0.9]",
        "objective.text.normalizer=all", "out=12",
    )  # fmt: skip
    assert changed.optimizer.lr == 1e-4
    assert changed.optimizer.betas == (0.5, 0.9)
    assert (changed.max_steps, changed.init, changed.objective.text.normalizer) == (7, None, "all")
    assert changed.out == "12"
    assert joint.max_steps != 7
    expected = dataclasses.replace(joint, max_steps=7)
    assert change(joint, "max_steps=7") == expected


def test_settings_that_fit_only_together_may_be_changed_together(joint: DualRun) -> None:
    changed = change(joint, "objective.alignment_block=7", "model.depth=8")
    assert (changed.objective.alignment_block, changed.model.depth) == (7, 8)


def test_entries_of_a_list_are_changed_by_index_and_lists_as_a_whole(joint: DualRun) -> None:
    changed = change(joint, "data.t2i.0.num_scenes=77", "data.i2t.0.question_fraction=0.25")
    assert changed.data.t2i[0].num_scenes == 77
    assert changed.data.i2t[0] == dataclasses.replace(joint.data.i2t[0], question_fraction=0.25)
    whole = change(
        joint,
        'data.t2i=[{"kind": "tar", "path": "a", "weight": 2.0}, {"kind": "json", "path": "b.json"}]',
        "data.t2i.1.caption_key=text",
    )
    assert whole.data.t2i == (TarData("a", weight=2.0), JsonData("b.json", caption_key="text"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.learning_rate=1", "unknown key 'optimizer.learning_rate'"),
        (
            "optimizer.warmup_step=1",
            "unknown key 'optimizer.warmup_step'; did you mean optimizer.warmup_steps",
        ),
        ("seed.more=1", "unknown key 'seed.more': 'seed' has no fields of its own"),
        ("optimizer.more.lr=1", "unknown key 'optimizer.more.lr'; did you mean optimizer.lr"),
        ("max_steps=ten", "max_steps must be a whole number, got 'ten'"),
        ("max_steps=1.5", "max_steps must be a whole number, got 1.5"),
        ("max_steps=true", "max_steps must be a whole number, got True"),
        (
            "optimizer.schedule=cosinus",
            "optimizer.schedule must be constant, linear or cosine, got 'cosinus'; did you mean cosine?",
        ),
        ("optimizer=3", "optimizer must be an object with keys, got 3"),
        ("kind=latents", "kind must be dual, got 'latents'"),
        ("max_steps", "override 'max_steps' is not of the form key=value"),
        ("data.t2i.1.split=val", "unknown key 'data.t2i.1.split': data.t2i has 1 entry, counted from 0"),
        (
            "data.t2i.split=val",
            "unknown key 'data.t2i.split': data.t2i has 1 entry, counted from 0; did you mean",
        ),
        ("data.t2i.0.slit=val", "unknown key 'data.t2i.0.slit'; did you mean data.t2i.0.split"),
        (
            'data.t2i=[{"kind": "tar", "pathh": "x"}]',
            "unknown key 'data.t2i.0.pathh'; did you mean data.t2i.0.path",
        ),
        ('data.t2i=[{"kind": "tar"}]', "missing key 'data.t2i.0.path'"),
        ('data.t2i=[{"path": "x"}]', "missing key 'data.t2i.0.kind'; known: world, json, tar"),
        (
            'data.t2i=[{"kind": "jsn"}]',
            "data.t2i.0.kind is 'jsn'; known: world, json, tar, llava, questions, huggingface, folders, text, wide; "
            "did you mean json?",
        ),
        ('data.t2i=[{"kind": "tar", "path": 3}]', "data.t2i.0.path must be a text, got 3"),
        ("data.t2i=[3]", "data.t2i.0 must be an object with keys, got 3"),
        ("data.t2i={}", "data.t2i must be a list"),
        (
            "data.t2i.0.kind=tar",
            "data.t2i.0.kind is 'world': give 'data.t2i.0' as a whole to change its kind",
        ),
        ("data.t2i.0.world.layout=flat", "data.t2i.0.world.layout must be fixed, grid or free, got 'flat'"),
        ("data.t2i.0.world.min_size=3", "data.t2i.0.world: need 8 <= min_size"),
    ],
)
def test_a_wrong_override_is_one_line_that_names_the_key(joint: DualRun, override: str, message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        change(joint, override)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["optimizer.decay_fraction=0.2"], "optimizer.schedule is constant, not linear"),
        (
            ["optimizer.schedule=cosine", "optimizer.decay_fraction=0.2"],
            "optimizer.schedule is cosine, not linear",
        ),
        (["optimizer.final_lr_fraction=0.1"], "optimizer.schedule is constant"),
        (["optimizer.muon_lr=0.1", "optimizer.name=adamw"], "optimizer.name is adamw, not muon"),
        (["objective.alignment_weight=0", "objective.alignment_block=1"], "objective.alignment_weight is 0"),
        (["lora.alpha=2"], "lora.rank is 0"),
        (["max_skipped=3"], "non_finite is stop"),
        (["objective.i2t_fraction=0", "objective.lambda_text=0.5"], "no text is trained on"),
        (["objective.i2t_fraction=0", "objective.text.normalizer=all"], "no text is trained on"),
        (["objective.i2t_fraction=0", "data.i2t.0.num_scenes=5"], "no text is trained on"),
        (["objective.i2t_fraction=0", "train_mask_embedding=true"], "no text is trained on"),
        (["objective.i2t_fraction=1", "objective.caption_dropout=0.2"], "no image is generated"),
        (["objective.i2t_fraction=1", "objective.flow.logit_mean=0.2"], "no image is generated"),
        (["objective.flow.mode_scale=1"], "time_density is logit_normal, not mode"),
        (["objective.flow.time_density=mode", "objective.flow.logit_std=2"], "mode, not logit_normal"),
        (["objective.i2t_fraction=1", "data.t2i.0.num_scenes=5"], "no image is generated"),
        (["data.t2i.0.weight=2"], "data.t2i has a single source"),
        (["data.t2i.0.question_fraction=0.5"], "of the sources in data.t2i only captions are used"),
        (["data.t2i.0.world.min_size=21"], "data.t2i.0.world.layout is fixed"),
        (["data.held_out=[]", "report.grid_every=5"], "data.held_out names no source"),
        (["report.num_held_out=0", "report.evaluate_every=5"], "report.num_held_out is 0"),
        (["report.checkpoint_steps=5", "report.checkpoint_minutes=5"], "report.checkpoint_steps is 5"),
        (
            ['data.t2i=[{"kind": "tar", "path": "x"}]', "data.t2i.0.original_share=0.5"],
            "original_key is null",
        ),
        (["data.held_out.0.held_out_share=0.1"], "data.held_out.0.part is all"),
        (
            [
                'data.i2t=[{"kind": "folders", "path": "x", "captions": "sidecar"}]',
                "data.i2t.0.question_fraction=0.1",
            ],
            "data.i2t.0.captions is sidecar",
        ),
    ],
)
def test_a_change_that_nothing_would_read_is_refused_with_the_reason(
    joint: DualRun, overrides: list[str], reason: str
) -> None:
    with pytest.raises(ValueError, match="would never be read: ") as caught:
        change(joint, *overrides)
    assert str(caught.value).endswith(reason)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "overrides",
    [
        ["optimizer.schedule=linear", "optimizer.decay_fraction=0.2", "optimizer.final_lr_fraction=0.1"],
        ["optimizer.muon_lr=0.1"],
        ["lora.rank=4", "lora.alpha=2"],
        ["lora.rank=0"],
        ["non_finite=skip", "max_skipped=3"],
        ["objective.i2t_fraction=1", "data.i2t=[]", "data.t2i.0.num_scenes=5"],
        ["data.i2t=[]", "data.t2i.0.question_fraction=0.5"],
    ],
)
def test_the_same_changes_are_taken_where_something_reads_them(joint: DualRun, overrides: list[str]) -> None:
    assert change(joint, *overrides) != joint or overrides == ["lora.rank=0"]


def test_every_key_named_as_unread_exists() -> None:
    for name in list_recipes():
        config = build(name, "runs")
        known = list_keys(to_data(config))
        for key in never_read(config):
            assert any(one == key or one.startswith(f"{key}.") for one in known) or _is_empty(config, key), (
                key
            )


def _is_empty(config: Any, key: str) -> bool:
    for part in key.split("."):
        config = config[int(part)] if part.isdigit() else getattr(config, part)
    return config in ((), {})


def test_overrides_reach_the_other_stages(tmp_path: Path) -> None:
    latents = build("mini-latents", tmp_path)
    assert isinstance(latents, LatentsRun)
    assert change(latents, "source.num_scenes=12").source.num_scenes == 12
    with pytest.raises(ValueError, match=r"^source\.weight would never be read: there is a single source$"):
        change(latents, "source.weight=2")
    with pytest.raises(ValueError, match=r"^feature_side would never be read: teacher is null$"):
        change(latents, "teacher=null", "feature_side=2")
    vae = build("mini-vae", tmp_path)
    assert change(vae, "sources.0.world.layout=free").sources[0].world.layout == "free"
    with pytest.raises(
        ValueError, match=r"unknown key 'world\.layout'; did you mean sources\.0\.world\.layout"
    ):
        change(vae, "world.layout=free")
    with pytest.raises(
        ValueError,
        match=r"^sources\.0\.question_fraction would never be read: the autoencoder reads no text$",
    ):
        change(vae, "sources.0.question_fraction=0.5")
    with pytest.raises(ValueError, match=r"num_tokenizer_texts would never be read: num_pieces is null"):
        change(build("mini-text", tmp_path), "num_tokenizer_texts=5")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.lr=0", "optimizer.lr must be above 0, got 0"),
        ("optimizer.lr=1e400", "optimizer.lr must be finite, got inf"),
        ("optimizer.betas=[0.9, 1.0]", "optimizer.betas.1 must be below 1, got 1.0"),
        ("optimizer.betas=[0.9]", "missing key 'optimizer.betas.1'"),
        ("optimizer.weight_decay=-1", "optimizer.weight_decay must be at least 0, got -1"),
        ("objective.i2t_fraction=1.5", "objective.i2t_fraction must be at most 1, got 1.5"),
        ("objective.i2t_fraction=-0.5", "objective.i2t_fraction must be at least 0, got -0.5"),
        ("objective.flow.logit_std=0", "objective.flow.logit_std must be above 0, got 0"),
        ("objective.text.max_weight=0", "objective.text.max_weight must be above 0, got 0"),
        ("optimizer.ema_decay=1", "optimizer.ema_decay must be below 1, got 1"),
        ("data.t2i_length=0", "data.t2i_length must be at least 1, got 0"),
        ("data.t2i.0.num_scenes=0", "data.t2i.0.num_scenes must be at least 1, got 0"),
        ("report.grid_sampling.num_steps=0", "report.grid_sampling.num_steps must be at least 1, got 0"),
        ("micro_batch_size=0", "micro_batch_size must be at least 1, got 0"),
        ("objective.alignment_block=6", "objective.alignment_block 6 is not below model.depth 6"),
        ("report.peak_tflops=0", "report.peak_tflops must be above 0, got 0"),
    ],
)
def test_numbers_out_of_range_are_named_with_their_place(joint: DualRun, override: str, message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        change(joint, override)
    assert str(caught.value) == message


@pytest.mark.parametrize("old", RENAMED)
def test_a_key_of_version_0_1_is_answered_with_its_new_name(joint: DualRun, old: str) -> None:
    assert any(key == RENAMED[old] or key.startswith(f"{RENAMED[old]}.") for key in list_keys(to_data(joint)))
    for key in (old, f"{old}.0.num_scenes"):
        with pytest.raises(ValueError, match=f"^{old} is {RENAMED[old]} since 0.2$"):
            change(joint, f"{key}=5")


def test_a_text_may_look_like_json_where_a_text_stands(joint: DualRun) -> None:
    assert change(joint, "data.held_out.0.split=12").data.held_out[0].split == "12"
    assert change(joint, 'init="12"', "vae=true").vae == "true"
    assert change(joint, 'init="12"').init == "12"
