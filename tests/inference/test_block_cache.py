"""Texts in blocks: what is kept is exact, a batch is the single calls, one block of all is the model without blocks."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import randomize, tiny_pipeline
from torch import Tensor

from ddit.diffusion.blocks import sample_blocks
from ddit.diffusion.masked import subs_log_probs
from ddit.inference.block_cache import BlockCache
from ddit.inference.callables import ImageContext
from ddit.model.text_blocks import one_copy, text_blocks
from ddit.pipeline import Pipeline
from ddit.settings import ORDERS, UnmaskingRule

QUESTIONS = ["is there a cat?", "what color is the dog?", "how many?", "is there a cat?", "what is there"]


def block_pipeline(block_size: int = 3, text_input: str = "encoder") -> Pipeline:
    return tiny_pipeline(image_attends_text=False, text_block_size=block_size, text_input=text_input)


def noise_images(count: int) -> list[Image.Image]:
    values = np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    return [Image.fromarray(value) for value in values]


def uncached(pipeline: Pipeline, context: ImageContext, blocks: Tensor):
    """Logits by both streams and the whole text encoder, in every step."""

    def logits(noisy_ids: Tensor, is_masked: Tensor, rows: Tensor) -> Tensor:
        text, model = one_copy(blocks[rows]), pipeline.transformer
        latents = None if context.latents is None else context.latents[context.index[rows]]
        states = pipeline.text_codec.i2t_states(noisy_ids, text, model.config.text_input)
        return model(
            latents, torch.zeros(len(rows)), states, num_t2i=0, logit_mask=is_masked, sees=text.sees
        ).logits  # fmt: skip

    return logits


ANSWERS = {
    "prompt": [range(4, 12)] * 4,
    "all": [range(12)] * 4,
    "blanks": [(1, 3, 4, 7, 8, 10, 11), range(5, 12), range(7), (0, 2, 4, 6, 8, 10, 11)],
}


@pytest.mark.parametrize("text_input", ["encoder", "embeddings"])
@pytest.mark.parametrize("answers", ANSWERS.values(), ids=ANSWERS)
@torch.inference_mode()
def test_the_logits_of_every_step_are_those_of_a_pass_over_everything(answers, text_input: str) -> None:
    pipeline = block_pipeline(text_input=text_input)
    codec, model = pipeline.text_codec, pipeline.transformer
    randomize(model, 3, scale=0.15)
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    context = ImageContext(latents, model.image_kv(latents), torch.tensor([0, 1, 1, 0]))
    ids = torch.randint(3, codec.mask_token_id, (4, 12), generator=torch.Generator().manual_seed(1))
    answer_mask = torch.stack([torch.isin(torch.arange(12), torch.tensor([*answer])) for answer in answers])
    cache = BlockCache(model, codec, answer_mask)
    cached, plain = cache.logits_fn(context), uncached(pipeline, context, cache.blocks.expand(4, -1))
    sizes = []

    def compared(noisy_ids: Tensor, is_masked: Tensor, rows: Tensor) -> Tensor:
        found, expected = cached(noisy_ids, is_masked, rows), plain(noisy_ids, is_masked, rows)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        sizes.append(len(rows))
        return found

    generators = [torch.Generator().manual_seed(seed) for seed in range(4)]
    sample_blocks(
        compared, ids, cache.blocks, num_steps=3, mask_token_id=codec.mask_token_id, generators=generators,
        eos_token_id=codec.eos_token_id, on_block=cache.begin, banned_ids=range(codec.vocab_size, codec.vocab_size + 3),
        rule=UnmaskingRule(edit_above=0.5),
    )  # fmt: skip
    assert len(sizes) > 4
    assert min(sizes) < 4


FAST: dict[str, Any] = {
    "order": "threshold", "threshold": 0.3, "text_guidance_scale": 1.5, "commit_above": 0.8, "top_p": 0.9,
    "num_steps": 3, "temperature": 0.7,
}  # fmt: skip


@pytest.mark.parametrize("text_input", ["encoder", "embeddings"])
@pytest.mark.parametrize(
    "options",
    [{"length": 8}, {"length": None}, {"length": 50, "num_steps": 2}, {"length": 8, "edit_above": 0.5}],
)
def test_a_batch_is_the_single_calls(options: dict, text_input: str) -> None:
    pipeline, options = block_pipeline(text_input=text_input), FAST | options
    images = [noise_images(3)[i] for i in (0, 1, 0, 2, 1)]
    batch = pipeline.answer(images, QUESTIONS, seed=5, **options)
    singles = [pipeline.answer(images[i], QUESTIONS[i], seed=5 + i, **options)[0] for i in range(5)]
    assert batch == singles
    assert len(set(batch)) > 1


@pytest.mark.parametrize("text_input", ["encoder", "embeddings"])
@pytest.mark.parametrize("order", ORDERS)
def test_one_block_of_everything_is_the_model_without_blocks(order, text_input: str) -> None:
    whole = block_pipeline(100, text_input)
    plain = tiny_pipeline(image_attends_text=False, text_input=text_input)
    texts = []
    for pipeline in (whole, plain):
        pipeline.settings.prompt_style["caption_prefix"] = ""  # a prompt does not see the answer in blocks
        texts.append(pipeline.caption(noise_images(3), order=order, seed=3, text_guidance_scale=1.5))
    assert texts[0] == texts[1]


def test_infilling_and_texts_without_an_image() -> None:
    pipeline = block_pipeline(2)
    texts = ["a ___ dog ___ ___ of a ___", "the ___ cat is there ___ ___ ___"]
    filled = pipeline.infill(noise_images(2), texts)
    singles = zip(noise_images(2), texts, strict=True)
    assert filled == [pipeline.infill(image, text, seed=i)[0] for i, (image, text) in enumerate(singles)]
    assert pipeline.caption(None)


def test_with_embeddings_no_step_runs_the_text_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline, plain = block_pipeline(text_input="embeddings"), tiny_pipeline(text_input="embeddings")
    for one in (pipeline, plain):
        monkeypatch.setattr(one.text_codec.encoder.encoder, "block", None)
        assert one.caption(noise_images(2), text_refresh=2)
        assert one.score(noise_images(1), "a red dog")[0].log_prob < 0


def test_texts_are_scored_block_by_block() -> None:
    """The score of a short text is exact: the sum of its blocks' bounds, of log-likelihoods behind clean blocks."""
    pipeline = block_pipeline(2)
    codec, style = pipeline.text_codec, pipeline.style
    given, text = codec.token_ids(style.caption_prefix), codec.token_ids("a red dog")
    ids = torch.tensor([[*given, *text, codec.eos_token_id]])
    blocks = text_blocks(torch.arange(ids.shape[1])[None] >= len(given), 2)
    predict = uncached(pipeline, ImageContext(None, None, torch.zeros(1, dtype=torch.long)), blocks)
    expected = 0.0
    for block in (1, 2):
        first, second = (blocks[0] == block).nonzero()[:, 0].tolist()
        for order in ((first, second), (second, first)):
            noisy = torch.where(blocks >= block, codec.mask_token_id, ids)
            for position in order:
                is_masked = torch.arange(ids.shape[1])[None] == position
                log_probs = subs_log_probs(predict(noisy, is_masked, torch.tensor([0])), codec.mask_token_id)
                expected += 0.5 * log_probs[0, ids[0, position]].item()
                noisy[0, position] = ids[0, position]
    (score,) = pipeline.score(None, "a red dog")
    assert score.standard_error == 0
    assert score.log_prob == pytest.approx(expected, abs=1e-4)
