"""The decoder beside which blocks are measured: what its loss scores, and that its caches give the same texts."""

from dataclasses import replace

import pytest
import torch
from servers import noise_image
from tiny_models import tiny_pipeline

from benchmarks.autoregressive import Decoder
from ddit.images import to_tensor
from ddit.prompts import training_question


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    pipeline = tiny_pipeline(patch_size=2)
    pipeline.settings = replace(pipeline.settings, text_length=20)
    torch.manual_seed(0)
    return Decoder(pipeline, 20).eval()


def test_the_loss_is_that_of_the_answer_and_its_end_alone(decoder: Decoder) -> None:
    codec, style = decoder.ours.text_codec, decoder.ours.style
    ids, answer = training_question(codec, ["how many"], ["three red"], 20, style=style)
    pixels = to_tensor([noise_image(1)])
    with torch.no_grad():
        found = decoder.loss(pixels, ids, answer)
        embedded = decoder.embedded(pixels, ids)
        log_probs = decoder.model(inputs_embeds=embedded).logits[0].log_softmax(-1)
    start, num_image = int((~answer).sum()), embedded.shape[1] - 20
    end = start + len(codec.token_ids("three red")) + 1
    expected = [-log_probs[num_image + i - 1, ids[0, i]] for i in range(start, end)]
    torch.testing.assert_close(found, torch.stack(expected).mean(), atol=1e-5, rtol=1e-5)


def test_batches_and_both_caches_give_the_texts_of_single_calls(
    decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ddit.prompts.DETAILED_QUESTION", "what is there")
    images = [noise_image(seed) for seed in range(3)]
    single = [decoder.describe([image], 1, static=False)[0] for image in images]
    assert decoder.describe(images, 2, static=True) == single
    assert decoder.describe(images, 3, static=False) == single
    assert len(set(single)) > 1
