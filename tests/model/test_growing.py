"""A model with more words: old ids and what they do stay, new words are known."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from tiny_models import tiny_pipeline

from ddit.model import DualDiT
from ddit.model.encoders import TextCodec
from ddit.model.folders import resolve
from ddit.model.growing import add_words, with_finer_patches, with_text_encoder
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


@pytest.fixture
def coarse() -> ModelParts:
    """A random model of patches of 4 latents."""
    parts = tiny_pipeline()
    config = dataclasses.replace(
        parts.transformer.config, patch_size=4, sample_size=16, pos_embed_max_size=6, image_attends_text=False
    )
    transformer = DualDiT(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in transformer.parameters():
            parameter.normal_(0, 0.15, generator=generator)
    return ModelParts(transformer, parts.image_codec, parts.text_codec, parts.settings)


def test_finer_patches_see_what_the_coarser_ones_saw(coarse: ModelParts) -> None:
    finer = with_finer_patches(coarse)
    config = finer.transformer.config
    assert (config.patch_size, config.patch_margin, config.pos_embed_max_size) == (2, 1, 12)
    latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    before, after = (parts.transformer.pos_embed.proj(latents) for parts in (coarse, finer))
    # A finer token sees four latents a side from one before its own two: that at 3 what the coarser one at 1 sees when
    # the image is moved by one latent.
    moved = coarse.transformer.pos_embed.proj(latents.roll((-1, -1), (2, 3)))
    torch.testing.assert_close(after[:, :, 3, 3], moved[:, :, 1, 1])
    assert after.shape[2:] == (8, 8)
    assert before.shape[2:] == (4, 4)


def test_the_positions_of_finer_patches_lie_between_the_old_ones(coarse: ModelParts) -> None:
    finer = with_finer_patches(coarse)
    before = coarse.transformer.pos_embed.pos_embed.view(6, 6, -1)
    after = finer.transformer.pos_embed.pos_embed.view(12, 12, -1)
    # A sine between two of the same angle's distance from both: sin a + sin b = 2 sin((a + b) / 2) cos((a - b) / 2).
    dim = before.shape[-1]
    spacing = 16 / 4 / 6
    frequencies = 10000.0 ** (-torch.arange(dim // 4) / (dim // 4))
    halves = 2 * torch.cos(frequencies.repeat(4) * spacing / 4)  # both axes, sines and cosines
    by_row = after[2:4, 4].sum(0)[dim // 2 :] / halves[dim // 2 :]
    torch.testing.assert_close(by_row, before[1, 2][dim // 2 :], rtol=1e-5, atol=1e-5)
    by_column = after[4, 2:4].sum(0)[: dim // 2] / halves[: dim // 2]
    torch.testing.assert_close(by_column, before[2, 1][: dim // 2], rtol=1e-5, atol=1e-5)


def test_finer_patches_draw_the_middle_of_what_a_coarser_one_would(coarse: ModelParts) -> None:
    with torch.no_grad():
        for name, parameter in coarse.transformer.named_parameters():
            if ".to_out." in name or name == "pos_embed.proj.weight":
                parameter.zero_()  # tokens are alike and do not see each other
        coarse.transformer.pos_embed.pos_embed.zero_()
    finer = with_finer_patches(coarse)
    finer.transformer.pos_embed.pos_embed.zero_()
    latents, t = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(1)), torch.zeros(1)
    states = coarse.text_codec.states(coarse.text_codec.tokenize(["a red car"], 8))
    with torch.no_grad():
        before, after = (
            parts.transformer(latents, t, states, num_t2i=1).velocity for parts in (coarse, finer)
        )
    assert before is not None
    assert after is not None
    assert after.shape == before.shape
    torch.testing.assert_close(after[:, :, :2, :2], before[:, :, 1:3, 1:3], rtol=1e-4, atol=1e-4)


def test_a_model_of_finer_patches_is_a_model_folder(coarse: ModelParts, tmp_path: Path) -> None:
    finer = with_finer_patches(coarse)
    save_parts(
        tmp_path / "finer", transformer=finer.transformer, image_codec=finer.image_codec,
        text_codec=finer.text_codec, settings=finer.settings,
    )  # fmt: skip
    pipeline = Pipeline.from_pretrained(tmp_path / "finer")
    assert pipeline.transformer.config == finer.transformer.config
    pipeline.generate("a red car", num_steps=1)


def test_only_coarse_plain_patches_become_finer(of_words: ModelParts) -> None:
    with pytest.raises(ValueError, match="a multiple of 4"):
        with_finer_patches(of_words)
