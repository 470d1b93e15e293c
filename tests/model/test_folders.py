"""Model folders: where they are, and their settings, also those that version 0.1 wrote."""

import json
from pathlib import Path

import pytest

from ddit.model.folders import load_settings, resolve
from ddit.pipeline import Pipeline
from ddit.prompts import PromptStyle
from ddit.schema import parse, to_data
from ddit.settings import ImageSampling, ModelSettings, TextSampling, UnmaskingRule

MINI_OF_0_1 = """
{
  "prompt_style": {
    "caption_prefix": "A:",
    "question_template": "Q: {question} A: ",
    "short_answer_suffix": "",
    "unanswerable_suffix": "",
    "empty_prompt": " ",
    "draw_padding": "</s>",
    "min_answer_tokens": 4
  },
  "image_size": 64,
  "prompt_length": 16,
  "text_length": 16,
  "num_steps": 8,
  "guidance_scale": 2.0,
  "shift": 3.0,
  "solver": "dpm",
  "caption_steps": 16,
  "answer_steps": 16,
  "writing": {
    "order": "entropy",
    "temperature": 0.0,
    "entropy_bound": 0.05
  }
}
"""


def test_a_model_of_version_0_1_keeps_its_settings(tmp_path: Path):
    (tmp_path / "ddit.json").write_text(MINI_OF_0_1)
    settings = load_settings(tmp_path)
    image, rule = settings.image_sampling, settings.text_sampling.rule
    assert (image.sampler, image.num_steps, image.guidance_scale, image.shift) == ("dpm", 8, 2.0, 3.0)
    assert (rule.order, rule.temperature, rule.entropy_bound) == ("entropy", 0.0, 0.05)
    assert (settings.image_size, settings.text_length, settings.caption_steps) == (64, 16, 16)
    assert settings.prompt_style["prompt_padding"] == "</s>"
    (tmp_path / "ddit.json").write_text(json.dumps(to_data(settings)))
    assert load_settings(tmp_path) == settings


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (
            {"num_steps": 20, "guidance_scale": 3.0, "shift": 2.0},
            ModelSettings(image_sampling=ImageSampling(num_steps=20, guidance_scale=3.0, shift=2.0)),
        ),
        (
            {"text_order": "confidence", "temperature": 0, "text_length": 16},
            ModelSettings(
                text_sampling=TextSampling(rule=UnmaskingRule(order="confidence", temperature=0.0)),
                text_length=16,
            ),
        ),
        (
            {"writing": {"order": "margin", "block_size": 8, "text_refresh": 3}},
            ModelSettings(
                text_sampling=TextSampling(rule=UnmaskingRule(order="margin", block_size=8), text_refresh=3)
            ),
        ),
        ({"writing": {"order": "first-hitting"}}, ModelSettings()),
    ],
    ids=["images", "text-order", "writing", "first-hitting"],
)
def test_settings_of_version_0_1_load(tmp_path: Path, values: dict, expected: ModelSettings):
    (tmp_path / "ddit.json").write_text(json.dumps(values))
    assert load_settings(tmp_path) == expected


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_stepps": 3}, "unknown key 'num_stepps'"),
        ({"image_sampling": {"guidance_interval": [0.5]}}, "guidance_interval"),
        ({"image_sampling": {"num_steps": 0}}, "image_sampling.num_steps must be at least 1, got 0"),
        ({"writing": {"order": "sideways"}}, "text_sampling.rule.order must be random, .* got 'sideways'"),
        ({"writing": {"treshold": 1}}, "unknown key 'text_sampling.rule.treshold'; did you mean .*threshold"),
        ({"text_sampling": {"rule": {"block_size": "4"}}}, "block_size must be a whole number, got '4'"),
        ({"answer_length": 0}, "answer_length must be at least 1, got 0"),
        ({"writing": 3}, "text_sampling"),
        ({"writing": {"rule": {}}}, "unknown key 'text_sampling.rule.rule'"),
        ({"solver": "dpm", "sampler": "dpm"}, "unknown key 'sampler'"),
        (
            {"num_steps": 4, "image_sampling": {}},
            "num_steps stands beside image_sampling, which holds it since 0.2",
        ),
        ({"temperature": 0, "text_sampling": {}}, "temperature stands beside text_sampling, which holds it"),
        ({"writing": {}, "text_sampling": {}}, "writing stands beside text_sampling, which holds it"),
        ({"prompt_style": []}, "prompt_style"),
    ],
)
def test_settings_that_cannot_be_are_named_in_one_line(tmp_path: Path, values: dict, message: str):
    (tmp_path / "ddit.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=message) as caught:
        load_settings(tmp_path)
    assert "\n" not in str(caught.value)


def test_the_padding_of_prompts_of_0_1_is_not_dropped_beside_todays(tmp_path: Path):
    (tmp_path / "ddit.json").write_text(
        '{"prompt_style": {"draw_padding": "<pad>", "prompt_padding": "</s>"}}'
    )
    with pytest.raises(ValueError, match="unknown key 'draw_padding'"):
        parse(PromptStyle, load_settings(tmp_path).prompt_style)


@pytest.mark.parametrize("shift", [0, None, "3", True])
def test_a_schedulers_shift_is_the_models_unless_it_is_none(tmp_path: Path, shift: object):
    path = tmp_path / "scheduler" / "scheduler_config.json"
    path.parent.mkdir()
    path.write_text('{"shift": 2}')
    assert load_settings(tmp_path) == ModelSettings(image_sampling=ImageSampling(shift=2.0))
    path.write_text(json.dumps({"shift": shift}))
    with pytest.raises(ValueError, match=r"scheduler_config.json': shift must be (above 0|a number), got "):
        load_settings(tmp_path)


def test_a_folder_called_mini_can_be_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "mini").mkdir()
    monkeypatch.chdir(tmp_path)
    assert resolve("./mini") == resolve(Path("mini")) == Path("mini")


def test_unknown_models_get_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (tmp_path / "file.ckpt").write_text("")
    faults = {
        "maxi": r"unknown model 'maxi': not a folder, not packaged \(mini\), and not a hub id",
        "nobody/nothing-at-all": "not packaged .*, and the hub cannot be reached",
        str(tmp_path / "file.ckpt"): "is a file: a model is a folder",
        str(tmp_path / "missing"): "unknown model .*: not a folder",
    }
    for name, fault in faults.items():
        with pytest.raises(ValueError, match=fault) as caught:
            resolve(name)
        assert "\n" not in str(caught.value)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="is not a model folder: it has no transformer/"):
        Pipeline.from_pretrained(tmp_path / "empty")
