"""A model's own defaults, and what is given over them."""

import pytest

from ddit.settings import ImageSampling, ModelSettings, TextSampling, UnmaskingRule

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


def test_the_papers_sampler_replaces_all_of_a_models_own() -> None:
    assert OWN.with_defaults({"sampler": "paper"}).image_sampling == ImageSampling()
    assert OWN.with_defaults({"sampler": "paper", "num_steps": 3}).image_sampling.num_steps == 3


def test_a_default_that_there_is_not_or_that_is_out_of_range_is_refused() -> None:
    with pytest.raises(TypeError, match=r"unknown option 'num_step'; did you mean num_steps\?"):
        OWN.with_defaults({"num_step": 3})
    with pytest.raises(ValueError, match="num_steps must be at least 1, got 0"):
        OWN.with_defaults({"num_steps": 0})
