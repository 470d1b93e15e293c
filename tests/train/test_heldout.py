"""Held-out samples: always the same, with all the texts that they have."""

import torch
from list_source import ListSource
from tiny_models import tiny_text_codec

from ddit.config.data import DataConfig, LlavaData, WorldData
from ddit.data.samples import CorruptSample
from ddit.prompts import MINI
from ddit.train.batches import ImageFacts
from ddit.train.heldout import HeldOutSamples, held_out_samples

CODEC = tiny_text_codec()


def held_out(*sources, count: int, **options) -> HeldOutSamples:
    data = DataConfig(held_out=sources, image_size=32, t2i_length=10, i2t_length=32)
    return held_out_samples(data, count, CODEC, ImageFacts(4, 4), style=MINI, patch_size=2, **options)


def test_held_out_samples_have_all_their_texts() -> None:
    world = WorldData(split="val", num_scenes=30, question_fraction=1.0)
    held, again = held_out(world, count=12), held_out(world, count=12)
    assert held.images.pixels is not None
    assert again.images.pixels is not None
    assert held.images.pixels.shape == (12, 3, 32, 32)
    assert held.has_caption.all()
    assert held.has_question.all()
    assert len(set(held.captions)) > 3
    assert held.turn_texts.input_ids.shape == held.caption_texts.answer_mask.shape == (12, 32)
    assert torch.equal(held.images.pixels, again.images.pixels)


def test_held_out_conversations_need_no_caption() -> None:
    class Talks(ListSource):
        def sample(self, index, rng, *, i2t, with_image=True):
            if not i2t:
                raise CorruptSample("no caption", "")
            return super().sample(index, rng, i2t=i2t, with_image=with_image)

    talks = Talks(8, without=frozenset({1}))
    held = held_out(LlavaData("talked"), count=50, open_with=lambda _: talks)
    assert len(held.captions) == 8
    assert not held.has_caption.any()
    assert held.has_question.all()
    assert held.images.is_null is not None
    assert held.images.is_null.sum() == 1
