import random
from collections import Counter

import numpy as np
import pytest

from ddit.config.data import DataConfig, WideData
from ddit.config.overrides import never_read
from ddit.config.runs import AutoencoderRun, DualRun
from ddit.data.sampler import sample_rng
from ddit.data.sources import WideSource, open_source
from ddit.schema import parse, to_data
from ddit.world.wide import WIDE_QUESTION_KINDS, list_wordings
from ddit.world.wide.descriptions import count_tokens


def test_a_sample_is_a_function_of_its_index_and_generator() -> None:
    source = WideSource(WideData())
    first = [source.sample(i, sample_rng(0, 1, i), i2t=i % 2 == 0) for i in range(12)]
    again = [source.sample(i, sample_rng(0, 1, i), i2t=i % 2 == 0) for i in reversed(range(12))][::-1]
    for a, b in zip(first, again, strict=True):
        assert a[1:] == b[1:]
        assert a.image is not None
        assert np.array_equal(np.asarray(a.image), np.asarray(b.image))
    assert source.sample(0, sample_rng(0, 2, 0), i2t=False).caption != first[0].caption
    assert source.sample(0, sample_rng(0, 1, 0), i2t=True, with_image=False).turns == first[0].turns
    assert source.pixels(3, 5).shape == (2, 3, 64, 64)


def test_texts_come_in_the_shares_that_are_asked_for() -> None:
    cfg = WideData(question_fraction=0.3, detailed_fraction=0.2, conversation_fraction=0.2)
    source, found = WideSource(cfg), Counter()
    for index in range(1000):
        turns = source.sample(index, random.Random(index), i2t=True, with_image=False).turns
        if len(turns) > 1:
            found["conversation"] += 1
        elif count_tokens(turns[0].answer) >= 40:
            found["detailed"] += 1
        elif turns[0].question is None:
            found["caption"] += 1
        prompt = source.sample(index, random.Random(index), i2t=False, with_image=False).caption
        found["detailed prompt"] += count_tokens(prompt or "") >= 40
    for name, share in (
        ("conversation", 0.2),
        ("detailed", 0.2),
        ("caption", 0.17),
        ("detailed prompt", 0.1),
    ):
        assert abs(found[name] / 1000 - share) < 0.05, (name, found)
    with pytest.raises(ValueError, match="add up"):
        WideData(question_fraction=0.9)
    with pytest.raises(ValueError, match=r"question_emphasis: unknown kinds shape; known: exists"):
        WideData(question_emphasis={"shape": 2.0})
    with pytest.raises(ValueError, match="question_emphasis is 0 for every kind"):
        WideData(question_emphasis=dict.fromkeys(WIDE_QUESTION_KINDS, 0.0))


def test_held_out_wordings_and_parts_are_apart() -> None:
    source = WideSource(WideData(wordings="held_out", question_fraction=0.99, detailed_fraction=0.0,
                                 conversation_fraction=0.0))  # fmt: skip
    asked = {source.sample(i, random.Random(i), i2t=True).turns[0].question for i in range(60)}
    official = [w.text for w in list_wordings("questions.txt") if w.official and "{" not in w.text]
    assert official
    assert not any((q or "").lower().startswith(text) for q in asked for text in official)
    parts = [
        open_source(WideData(num_scenes=400, part=part, held_out_share=0.2)) for part in ("train", "held_out")
    ]
    names = [{part.name(i) for i in range(len(part))} for part in parts]
    assert not names[0] & names[1]
    assert len(names[0] | names[1]) == 400


def test_a_configuration_survives_json_and_names_what_is_never_read() -> None:
    data = DataConfig(t2i=(WideData(),), i2t=(WideData(split="val", wordings="all"),))
    assert parse(DataConfig, to_data(data)) == data
    with pytest.raises(ValueError, match=r"sources\.0\.world\.min_size"):
        parse(AutoencoderRun, {"out": "x", "sources": [{"kind": "wide", "world": {"min_size": 3}}]})
    run = AutoencoderRun(out="x", sources=(WideData(),), held_out=(WideData(split="val"),))
    assert "sources.0.detailed_fraction" in never_read(run)


def test_unread_keys_of_a_joint_run() -> None:
    from ddit.recipes import build

    run = build("mini-stage1", "x")
    assert isinstance(run, DualRun)
    from dataclasses import replace

    wide = replace(run, data=replace(run.data, t2i=(WideData(),), i2t=(WideData(),)))
    unread = never_read(wide)
    assert "data.t2i.0.conversation_fraction" in unread
    assert "data.i2t.0.detailed_prompt_fraction" in unread
