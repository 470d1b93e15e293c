"""A model with more words: old ids and what they do stay, new words are known."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_models import tiny_pipeline

from ddit.model.encoders import TextCodec
from ddit.model.folders import resolve
from ddit.model.growing import add_words, with_text_encoder
from ddit.model.loading import ModelParts, load_parts
from ddit.model.saving import save_parts
from ddit.model.small_text import tiny_t5, train_tokenizer
from ddit.pipeline import Pipeline

TEXTS = ["a photo of a purple zebra", "a purple car", "zebra!"]


@pytest.fixture(scope="module")
def mini() -> ModelParts:
    return load_parts(resolve("mini"), dtype=torch.float32)


@pytest.fixture(scope="module")
def of_words() -> ModelParts:
    """A model whose tokenizer knows whole words alone."""
    pipeline = tiny_pipeline()
    return ModelParts(pipeline.transformer, pipeline.image_codec, pipeline.text_codec, pipeline.settings)


def test_old_tokens_and_their_states_and_logits_stay(of_words: ModelParts) -> None:
    grown, size = add_words(of_words, TEXTS), of_words.text_codec.vocab_size
    before, after = of_words.text_codec.tokenizer.get_vocab(), grown.text_codec.tokenizer.get_vocab()
    assert {token: after[token] for token in before} == before
    new = {token: number for token, number in after.items() if token not in before}
    assert new == {"▁purple": size, "▁zebra": size + 1, "▁zebra!": size + 2}
    assert grown.text_codec.mask_token_id == of_words.text_codec.mask_token_id
    ids = of_words.text_codec.tokenize(["a photo of a red car"], 8)
    assert torch.equal(grown.text_codec.tokenize(["a photo of a red car"], 8), ids)
    states = of_words.text_codec.states(ids)
    assert torch.equal(grown.text_codec.states(ids), states)
    latents = torch.zeros(1, 4, 8, 8)
    with torch.no_grad():
        old, more = (
            parts.transformer(latents, torch.zeros(1), states, num_t2i=0).logits
            for parts in (of_words, grown)
        )
    assert old is not None
    assert more is not None
    assert more.shape[-1] == size + 3
    torch.testing.assert_close(more[..., :size], old[..., :size])


def test_a_grown_model_is_a_model_folder_that_knows_the_words(of_words: ModelParts, tmp_path: Path) -> None:
    grown = add_words(of_words, TEXTS)
    save_parts(
        tmp_path / "grown", transformer=grown.transformer, image_codec=grown.image_codec, text_codec=grown.text_codec,
        settings=grown.settings,
    )  # fmt: skip
    pipeline = Pipeline.from_pretrained(tmp_path / "grown")
    assert pipeline.text_codec.unknown_words("a purple zebra of an okapi") == ["an", "okapi"]
    assert pipeline.text_codec.decode(pipeline.text_codec.token_ids("A purple zebra, a car?")) == (
        "a purple zebra, a car?"
    )
    pipeline.generate("a purple zebra", num_steps=1)


def test_without_new_words_it_is_the_same_model(of_words: ModelParts) -> None:
    assert add_words(of_words, ["a photo of a red car"]) is of_words


def test_a_tokenizer_of_pieces_keeps_its_ids_and_knows_the_words(mini: ModelParts) -> None:
    tokenizer = train_tokenizer(["ein rotes Auto", "ein blaues Auto"] * 4, 512)
    codec = TextCodec(tokenizer, tiny_t5(512, d_model=32, num_layers=1, num_heads=1, d_ff=32))
    assert codec.unknown_words("ein Xylophon") == ["Xylophon"]
    grown = add_words(mini._replace(text_codec=codec), ["ein Xylophon"])
    assert grown.transformer is mini.transformer
    assert grown.text_codec.tokenizer.get_vocab() == tokenizer.get_vocab()
    assert grown.text_codec.unknown_words("ein Xylophon") == []
    assert grown.text_codec.decode(grown.text_codec.token_ids("Ein Xylophon 🎨")) == "Ein Xylophon 🎨"


WORLD_TEXTS = [
    f"a photo of {count} {color} {name}"
    for count in ("two", "three")
    for color in ("red", "blue", "green", "black")
    for name in ("cars", "dogs", "cats", "apples")
]


def test_with_another_text_encoder_a_model_goes_on_about_where_it_was(mini: ModelParts) -> None:
    torch.manual_seed(0)
    tokenizer = train_tokenizer(WORLD_TEXTS, num_pieces=512)
    other = TextCodec(tokenizer, tiny_t5(len(tokenizer), d_model=64))
    found = with_text_encoder(mini, other, WORLD_TEXTS, 16)
    assert found.text_codec is other
    assert found.image_codec is mini.image_codec
    config = found.transformer.config
    assert (config.text_dim, config.vocab_size) == (64, other.vocab_size)
    old, new = mini.text_codec.tokenizer.get_vocab(), tokenizer.get_vocab()
    for name in ("text_proj_out.weight", "text_proj_out.bias"):
        before, after = mini.transformer.get_parameter(name), found.transformer.get_parameter(name)
        for token in ("▁red", "</s>", "<extra_id_0>"):
            assert torch.equal(after[new[token]], before[old[token]])
        torch.testing.assert_close(after[new["▁photo"]], before[old["▁photo"]])
    kept = {name for name, p in mini.transformer.named_parameters() if "context_embedder" not in name}
    for name in kept - {"text_proj_out.weight", "text_proj_out.bias"}:
        assert torch.equal(found.transformer.get_parameter(name), mini.transformer.get_parameter(name)), name

    # The fit explains most of what the old encoder said of texts that it has not seen.
    text, ids = ["a photo of three blue apples"], []
    embedded = []
    for parts in (mini, found):
        ids = parts.text_codec.tokenize(text, 16)
        embedded.append(parts.transformer.context_embedder(parts.text_codec.states(ids)).detach()[0, :6])
    error = (embedded[0] - embedded[1]).square().sum() / (embedded[0] - embedded[0].mean(0)).square().sum()
    assert error < 0.3
    with pytest.raises(ValueError, match="there are no texts"):
        with_text_encoder(mini, other, [], 16)
