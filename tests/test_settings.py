"""Options: each declared once, its numbers finite; a model's own defaults, and what is given over them."""

import ast
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import ddit
from ddit import settings
from ddit.schema import list_options
from ddit.settings import ImageSampling, ModelSettings, TextSampling, UnmaskingRule

PACKAGE = Path(ddit.__file__).parent
OWN = ModelSettings(
    image_sampling=ImageSampling(num_steps=8, sampler="dpm", guidance_scale=2.0),
    text_sampling=TextSampling(rule=UnmaskingRule(order="entropy", temperature=0.0)),
    answer_length=4,
)


def test_defaults_are_changed_by_name_also_within_the_samplings() -> None:
    changed = OWN.with_defaults({"num_steps": 3, "order": "margin", "answer_length": 2, "shift": None})
    assert (changed.image_sampling.num_steps, changed.image_sampling.sampler) == (3, "dpm")
    assert (changed.text_sampling.rule.order, changed.text_sampling.rule.temperature) == ("margin", 0.0)
    assert (changed.answer_length, changed.image_size) == (2, OWN.image_size)
    assert OWN.with_defaults({}) == OWN


def test_detailed_captions_may_have_a_rule_of_their_own_which_what_is_given_replaces() -> None:
    own = replace(OWN, detailed_entropy_bound=1.0, detailed_block_size=0)
    own = replace(
        own, text_sampling=replace(own.text_sampling, rule=replace(own.text_sampling.rule, block_size=4))
    )

    def rule(model: ModelSettings, **given: Any) -> tuple[float, int]:
        found = model.caption_options(given).sampling.rule
        return found.entropy_bound, found.block_size

    assert (rule(own), rule(own, style="detailed")) == ((0.1, 4), (1.0, 0))
    assert rule(own, style="detailed", entropy_bound=0.3, block_size=2) == (0.3, 2)
    assert rule(OWN, style="detailed", entropy_bound=0.3) == (0.3, OWN.text_sampling.rule.block_size)
    assert rule(own.with_defaults({"entropy_bound": 0.2, "block_size": 8}), style="detailed") == (0.2, 8)
    assert rule(own.with_defaults({"num_steps": 3}), style="detailed") == (1.0, 0)
    assert own.text_options("answer", {}).sampling.rule.block_size == 4
    with pytest.raises(ValueError, match="detailed_entropy_bound must be at least 0"):
        replace(OWN, detailed_entropy_bound=-1.0)
    with pytest.raises(ValueError, match="detailed_block_size must be at least 0"):
        replace(OWN, detailed_block_size=-1)


def test_the_papers_sampler_replaces_all_of_a_models_own() -> None:
    assert OWN.with_defaults({"sampler": "paper"}).image_sampling == ImageSampling()
    assert OWN.with_defaults({"sampler": "paper", "num_steps": 3}).image_sampling.num_steps == 3


def test_a_default_that_there_is_not_or_that_is_out_of_range_is_refused() -> None:
    with pytest.raises(TypeError, match=r"unknown option 'num_step'; did you mean num_steps\?"):
        OWN.with_defaults({"num_step": 3})
    with pytest.raises(ValueError, match="num_steps must be at least 1, got 0"):
        OWN.with_defaults({"num_steps": 0})


CLASSES = [value for value in vars(settings).values() if hasattr(value, "__pydantic_fields__")]


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_no_number_of_a_setting_may_be_nan_or_infinite(cls: Any, value: float) -> None:
    floats = [name for name, info in cls.__pydantic_fields__.items() if "float" in str(info.annotation)]
    for name in floats:
        given = (value, value) if "tuple" in str(cls.__pydantic_fields__[name].annotation) else value
        with pytest.raises(ValueError, match=name):
            cls(**{name: given})


def test_an_option_of_sampling_is_declared_in_one_place() -> None:
    sampling = {o.name for cls in (settings.ImageSampling, settings.TextSampling) for o in list_options(cls)}
    declared: dict[str, list[str]] = {name: [] for name in sampling - {"num_steps"}}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and node.name != "FlowConfig":  # its shift is that of training
                for field in node.body:
                    if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                        declared.get(field.target.id, []).append(f"{path.name}:{node.name}")
    assert all(
        [place.split(":")[0] for place in places] == ["settings.py"] for places in declared.values()
    ), declared
