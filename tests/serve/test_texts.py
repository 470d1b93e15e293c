"""What clients may append while a text is sampled is never taken back, and together it is the text."""

from typing import Any, cast

import pytest
from servers import noise_image, pipeline

from ddit.inference.batching import Step
from ddit.serve.jobs import Verb
from ddit.serve.ray_app import build
from ddit.serve.texts import TextView


@pytest.mark.parametrize("order", ["random", "confidence", "threshold", "entropy"])
@pytest.mark.parametrize("verb", ["caption", "answer", "infill"])
def test_what_is_appended_is_the_text_whatever_the_order(verb: Verb, order: Any) -> None:
    given = {
        "caption": (noise_image(),),
        "answer": (noise_image(), "what color is the dog?"),
        "infill": (noise_image(), "a __ dog is the __ __ cat"),
    }[verb]
    early = 0
    for seed in range(6):
        states: list[Any] = []

        def keep(step: Step[Any], states: list[Any] = states) -> None:
            states.append(step.state)

        text = getattr(pipeline(), verb)(*given, seed=seed, order=order, num_steps=8, on_step=keep)[0]
        view = TextView(pipeline(), verb)
        parts = [view.advance(state) for state in states]
        early += any(parts)
        assert "".join(parts) + view.finish(text) == text
        tokens = view.tokens(states[-1])
        assert all(token.is_settled for token in tokens)
        pieces = "".join(cast(str, token.text) for token in tokens)
        assert pieces.replace(" ", "") == text.lower().replace(" ", "")
    assert early or verb == "answer"  # something came before the end


def test_replicas_refuse_an_unknown_argument_and_a_bad_value() -> None:
    with pytest.raises(ValueError, match="unknown argument 'modle'; did you mean model"):
        build({"modle": "mini"})
    with pytest.raises(ValueError, match="bad value for max_queue: 'many'"):
        build({"max_queue": "many"})
    with pytest.raises(ValueError, match="max_queue must be at least 1, got 0"):
        build({"max_queue": "0"})
