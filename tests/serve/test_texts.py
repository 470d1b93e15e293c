"""What clients may append while a text is sampled is never taken back, and together it is the text."""

from itertools import pairwise
from typing import Any, cast

import pytest
import torch
from servers import noise_image, pipeline
from tiny_models import tiny_pipeline

from ddit.pipeline import Pipeline
from ddit.serve.jobs import Verb
from ddit.serve.ray_app import build
from ddit.serve.texts import TextView

PLAIN, BLOCKS = pipeline(), tiny_pipeline(image_attends_text=False, text_block_size=3)


@pytest.mark.parametrize("edit_above", [1.0, 0.5])
@pytest.mark.parametrize("model", [PLAIN, BLOCKS], ids=["plain", "blocks"])
@pytest.mark.parametrize("order", ["random", "confidence", "threshold", "entropy"])
@pytest.mark.parametrize("verb", ["caption", "answer", "infill"])
def test_what_is_appended_is_the_text_whatever_the_order(
    verb: Verb, order: Any, model: Pipeline, edit_above: float
) -> None:
    given = {
        "caption": (noise_image(),),
        "answer": (noise_image(), "what color is the dog?"),
        "infill": (noise_image(), "a __ dog is the __ __ cat"),
    }[verb]
    early = edited = 0
    for seed in range(6):
        states: list[Any] = []
        options = {"order": order, "num_steps": 8, "edit_above": edit_above}
        text = getattr(model, verb)(
            *given, seed=seed, on_step=lambda step, states=states: states.append(step.state), **options
        )[0]
        view = TextView(model, verb)
        parts = [view.advance(state) for state in states]
        early += any(parts)
        assert "".join(parts) + view.finish(text) == text
        tokens = view.tokens(states[-1])
        assert all(token.is_settled for token in tokens)
        pieces = "".join(cast(str, token.text) for token in tokens)
        assert pieces.replace(" ", "") == text.lower().replace(" ", "")
        for before, after in pairwise(states):
            assert torch.equal(before.ids[before.is_settled], after.ids[before.is_settled])
            was_filled = before.ids != model.text_codec.mask_token_id
            edited += int((before.ids != after.ids)[was_filled].sum())
    is_one_block = edit_above < 1 and (model is PLAIN or verb == "infill")
    assert early or verb == "answer" or is_one_block  # something came before the end
    assert not edited or edit_above < 1


def test_replicas_refuse_an_unknown_argument_and_a_bad_value() -> None:
    with pytest.raises(ValueError, match="unknown argument 'modle'; did you mean model"):
        build({"modle": "mini"})
    with pytest.raises(ValueError, match="bad value for max_queue: 'many'"):
        build({"max_queue": "many"})
    with pytest.raises(ValueError, match="max_queue must be at least 1, got 0"):
        build({"max_queue": "0"})
