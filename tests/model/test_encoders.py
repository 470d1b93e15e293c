import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from safetensors.torch import load_file
from text_models import WORDS, published_codec, word_codec
from transformers import AutoTokenizer, PreTrainedTokenizerFast, T5EncoderModel, T5TokenizerFast

from ddit.model import encoders
from ddit.model.autoencoder import PatchAutoencoder
from ddit.model.encoders import ImageCodec, TextCodec
from ddit.model.small_text import build_tokenizer, tiny_t5


@pytest.fixture(scope="module")
def codec() -> TextCodec:
    return word_codec()


def small_vae(**config) -> AutoencoderKL:
    torch.manual_seed(0)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        latent_channels=4,
        **config,
    )


def tiny_vae(**config) -> AutoencoderTiny:
    torch.manual_seed(0)
    return AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8),
        decoder_block_out_channels=(8, 8, 8),
        num_encoder_blocks=(1, 1, 1),
        num_decoder_blocks=(1, 1, 1),
        latent_channels=16,
        **config,
    )


# Images


def test_latents_of_a_tiny_autoencoder_have_no_variance():
    vae = tiny_vae(scaling_factor=1.5, shift_factor=0.25)
    codec = ImageCodec(vae)
    pixels = torch.rand(2, 3, 16, 8) * 2 - 1
    assert (codec.channels, codec.downsample) == (16, 4)
    latents = codec.encode(pixels)
    torch.testing.assert_close(latents, (vae.encode(pixels).latents - 0.25) * 1.5)
    mean, std = codec.encode_distribution(pixels)
    assert torch.equal(mean, latents)
    assert std.abs().max() < 1e-12
    torch.testing.assert_close(
        codec.decode(latents), vae.decode(vae.encode(pixels).latents).sample.clamp(-1, 1)
    )
    large = codec.encode(torch.rand(1, 3, 1100, 1100))  # its own tiling knows 4 channels alone
    assert large.shape == (1, 16, 275, 275)


def test_latents_are_shifted_and_scaled_as_in_sd3():
    vae = small_vae(scaling_factor=1.5, shift_factor=0.25)
    codec = ImageCodec(vae)
    pixels = torch.rand(2, 3, 16, 8) * 2 - 1
    raw = vae.encode(pixels).latent_dist
    latents = codec.encode(pixels)
    assert (codec.channels, codec.downsample) == (4, 2)
    assert latents.shape == (2, 4, 8, 4)
    torch.testing.assert_close(latents, (raw.mode() - 0.25) * 1.5)
    torch.testing.assert_close(codec.decode(latents), vae.decode(raw.mode()).sample.clamp(-1, 1))
    assert torch.equal(codec.encode(pixels), latents)


def test_a_missing_shift_means_zero():
    vae = small_vae(scaling_factor=0.5, shift_factor=None)
    pixels = torch.rand(1, 3, 8, 8)
    torch.testing.assert_close(ImageCodec(vae).encode(pixels), 0.5 * vae.encode(pixels).latent_dist.mode())


@pytest.mark.parametrize("make", [small_vae, PatchAutoencoder])
def test_a_generator_makes_latents_a_repeatable_sample(make):
    codec = ImageCodec(make())
    pixels = torch.rand(2, 3, 8, 8)
    samples = [codec.encode(pixels, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(samples[0], samples[1])
    assert not torch.equal(samples[0], samples[2])


@pytest.mark.parametrize("make", [small_vae, tiny_vae, PatchAutoencoder])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_image_codec_survives_a_folder(make, dtype, tmp_path):
    codec = ImageCodec(make())
    codec.save_pretrained(tmp_path)
    loaded = ImageCodec.from_pretrained(tmp_path, dtype)
    assert type(loaded.autoencoder) is type(codec.autoencoder)
    pixels = torch.rand(1, 3, 16, 16)
    latents = loaded.encode(pixels)
    assert latents.dtype == loaded.dtype == dtype
    assert not any(parameter.requires_grad for parameter in loaded.autoencoder.parameters())
    torch.testing.assert_close(
        latents.float(), codec.encode(pixels), atol=0.1 if dtype != torch.float32 else 0, rtol=0
    )


@pytest.mark.parametrize("make", [small_vae, PatchAutoencoder])
def test_a_large_batch_is_encoded_in_parts(make, monkeypatch):
    codec = ImageCodec(make())
    pixels = torch.rand(5, 3, 16, 8) * 2 - 1
    whole = (
        codec.encode_distribution(pixels),
        codec.encode(pixels, generator=torch.Generator().manual_seed(0)),
    )
    sizes, encode = [], codec.autoencoder.encode
    monkeypatch.setattr(codec.autoencoder, "encode", lambda part: sizes.append(len(part)) or encode(part))
    monkeypatch.setattr(encoders, "PIXELS_AT_ONCE", 2 * 16 * 8)
    parts = (
        codec.encode_distribution(pixels),
        codec.encode(pixels, generator=torch.Generator().manual_seed(0)),
    )
    assert sizes == [2, 2, 1] * 2
    torch.testing.assert_close(parts, whole)


def test_only_large_images_are_decoded_in_tiles(monkeypatch):
    monkeypatch.setattr(encoders, "TILE_SIZE", 32)
    codec, plain = ImageCodec(small_vae()), small_vae()
    sizes, decoder = [], codec.autoencoder.decoder.forward
    monkeypatch.setattr(
        codec.autoencoder.decoder, "forward", lambda z, *rest: sizes.append(z.shape[-1]) or decoder(z, *rest)
    )
    for side, is_tiled in ((16, False), (32, True)):  # latents; twice as many pixels
        latents = torch.randn(1, 4, side, side)
        sizes.clear()
        decoded, whole = codec.decode(latents * codec.scale), plain.decode(latents).sample.clamp(-1, 1)
        assert decoded.shape == whole.shape
        assert (len(sizes) > 1) == is_tiled
        assert max(sizes) <= 16
        assert (decoded - whole).abs().mean() < (0.1 if is_tiled else 1e-6)


@pytest.mark.parametrize("make", [small_vae, PatchAutoencoder])
def test_changing_the_dtype_prints_nothing(make, capfd):
    codec = ImageCodec(make()).to(device="cpu", dtype=torch.bfloat16)
    assert codec.encode(torch.rand(1, 3, 8, 8)).dtype == codec.dtype == torch.bfloat16
    assert capfd.readouterr() == ("", "")


def test_a_foreign_autoencoder_is_named(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "AutoencoderDC"}))
    with pytest.raises(ValueError, match="AutoencoderDC"):
        ImageCodec.from_pretrained(tmp_path)


def test_an_indivisible_side_is_named():
    with pytest.raises(ValueError, match="18 x 15"):
        ImageCodec(small_vae()).encode(torch.zeros(1, 3, 18, 15))


# Tokens


def test_special_tokens_have_t5s_places(codec):
    tokenizer = codec.tokenizer
    assert tokenizer.convert_ids_to_tokens([0, 1, 2]) == ["<pad>", "</s>", "<unk>"]
    assert (codec.eos_token_id, codec.mask_token_id) == (1, len(tokenizer) - 1)
    assert codec.vocab_size == len(tokenizer) == 3 + 3 + len(WORDS) + 1


@pytest.mark.parametrize("text", ["a red dog, a blue car.", "how many dog? two.", "left of a photo"])
def test_decoding_gives_natural_text_back(codec, text):
    ids = codec.tokenize([text], 16)[0]
    assert codec.decode(ids) == text
    assert codec.decode(ids.tolist()) == text


def test_words_and_marks_are_one_token_each_however_they_are_written(codec):
    expected = codec.tokenizer.convert_tokens_to_ids(["▁a", "▁red", "▁dog", "▁,", "▁q:", "▁two", "▁?"])
    for text in ("a red dog, Q: two?", "A  Red dog , q: two ?", " a red dog ,Q: two?\n"):
        assert codec.token_ids(text) == expected


def test_an_unknown_word_is_one_unknown_token_and_reported(codec):
    assert codec.token_ids("a zebra, dogs?")[1:] == [2, *codec.token_ids(","), 2, *codec.token_ids("?")]
    assert codec.unknown_words("A zebra, a Zebra and a dog!") == ["zebra", "Zebra", "and", "dog!"]
    assert codec.unknown_words("Q: how many? A:") == []
    assert codec.decode(codec.token_ids("a zebra")) == "a"


def test_tokenize_cuts_and_pads_with_the_end_of_text(codec):
    a, red, dog = codec.token_ids("a red dog")
    assert codec.tokenize(["a red dog", "a"], 4).tolist() == [[a, red, dog, 1], [a, 1, 1, 1]]
    assert codec.tokenize(["a red dog"], 2).tolist() == [[a, 1]]
    assert codec.tokenize(["a red dog"], 2, add_eos=False).tolist() == [[a, red]]


def test_decode_stops_at_the_end_of_text(codec):
    a, red = codec.token_ids("a red")
    assert codec.decode([0, a, codec.mask_token_id, 1, red]) == "a"


@pytest.mark.parametrize("token", ["<extra_id_0>", "</s>"])
def test_reserved_tokens_in_a_text_are_refused(codec, token):
    with pytest.raises(ValueError, match=token):
        codec.tokenize([f"a {token} dog"], 8)


@pytest.mark.parametrize("word", ["two words", "dog,", "", "▁dog"])
def test_what_is_not_a_word_is_refused(word):
    with pytest.raises(ValueError, match="not a single word"):
        build_tokenizer(["a", word])


def test_every_loader_reads_the_saved_tokenizer_alike(codec, tmp_path):
    text = "Q: how many red dogs, zebra? A: Two."
    codec.save_pretrained(tmp_path / "tokenizer", tmp_path / "text_encoder")
    ids = codec.tokenizer(text)["input_ids"]
    for loader in (PreTrainedTokenizerFast, AutoTokenizer):
        loaded = loader.from_pretrained(tmp_path / "tokenizer")
        assert loaded(text)["input_ids"] == ids
        assert loaded.decode(ids, skip_special_tokens=True) == codec.decode(ids)


def test_a_tokenizer_without_the_mask_token_is_refused(codec):
    tokenizer = T5TokenizerFast(vocab=[("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)], extra_ids=0)
    with pytest.raises(ValueError, match="<extra_id_0>"):
        TextCodec(tokenizer, codec.encoder)


def test_an_encoder_with_too_few_embeddings_is_refused(codec):
    with pytest.raises(ValueError, match="only 5 embeddings"):
        TextCodec(codec.tokenizer, tiny_t5(5, d_model=8, num_layers=1, num_heads=1, d_ff=8))


def test_published_t5_tokenizer_files_load(tmp_path):
    codec = published_codec()
    codec.save_pretrained(tmp_path / "tokenizer", tmp_path / "text_encoder")
    as_v4_writes_it(tmp_path / "tokenizer")
    loaded = TextCodec.from_pretrained(tmp_path / "tokenizer", tmp_path / "text_encoder")
    assert loaded.mask_token_id == loaded.vocab_size - 1 == len(codec.tokenizer) - 1
    assert (loaded.eos_token_id, loaded.tokenizer.unk_token_id) == (1, 2)
    text = "Q: Is there a Dog, or not? A: yes"
    assert loaded.token_ids(text) == codec.token_ids(text)
    assert loaded.decode(loaded.tokenize([text], 40)[0]) == text


def as_v4_writes_it(folder: Path) -> None:
    """Rewrites a tokenizer's configuration in the manner of transformers 4, as in the published folders."""
    names = [f"<extra_id_{i}>" for i in range(100)]
    specials = {
        "eos_token": "</s>",
        "pad_token": "</s>",
        "unk_token": "<unk>",
        "additional_special_tokens": names,
    }
    config = specials | {
        "extra_ids": 100,
        "legacy": True,
        "model_max_length": 512,
        "clean_up_tokenization_spaces": True,
        "sp_model_kwargs": {},
        "tokenizer_class": "T5Tokenizer",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "special_tokens_map.json").write_text(json.dumps(specials))


# States


def test_states_ignore_what_else_is_in_the_batch(codec):
    ids = codec.tokenize(["a red dog", "how many car? two", "a"], 8)
    states = codec.states(ids)
    assert states.shape == (3, 8, codec.width)
    for i in range(3):
        torch.testing.assert_close(codec.states(ids[i : i + 1])[0], states[i], atol=1e-5, rtol=1e-5)


def test_padding_is_attended_to_like_any_token(codec):
    ids = codec.tokenize(["a red dog"], 8)
    changed = ids.clone()
    changed[0, -1] = codec.mask_token_id
    assert not torch.allclose(codec.states(ids)[0, 0], codec.states(changed)[0, 0], atol=1e-4)


def test_a_fully_masked_text_tells_no_place_apart_without_an_anchor(codec):
    ids = torch.full((1, 24), codec.mask_token_id)
    assert codec.states(ids)[0].std(dim=0).max() < 1e-5
    ids[0, 0] = codec.token_ids("A:")[0]
    states = codec.states(ids)[0]
    assert torch.pdist(states).min() > 1e-5


def test_text_codec_survives_a_folder(tmp_path):
    codec = word_codec()
    codec.save_pretrained(tmp_path / "tokenizer", tmp_path / "text_encoder")
    ids = codec.tokenize(["a red dog"], 8)
    loaded = TextCodec.from_pretrained(tmp_path / "tokenizer", tmp_path / "text_encoder")
    assert torch.equal(loaded.states(ids), codec.states(ids))
    half = TextCodec.from_pretrained(tmp_path / "tokenizer", tmp_path / "text_encoder", torch.bfloat16)
    assert half.states(ids).dtype == half.dtype == torch.bfloat16
    assert load_file(tmp_path / "text_encoder" / "model.safetensors")


def test_loading_prints_nothing(codec, tmp_path, capfd):
    codec.save_pretrained(tmp_path / "tokenizer", tmp_path / "text_encoder")
    TextCodec.from_pretrained(tmp_path / "tokenizer", tmp_path / "text_encoder")
    assert capfd.readouterr() == ("", "")


def test_mask_embedding_replaces_one_row():
    codec = word_codec()
    before = codec.encoder.shared.weight.clone()
    vector = torch.arange(24.0)
    codec.set_mask_embedding(vector)
    after = codec.encoder.encoder.get_input_embeddings().weight
    assert torch.equal(after[codec.mask_token_id], vector)
    assert torch.equal(after[:-1], before[:-1])
    with pytest.raises(ValueError, match=r"shape \(24,\), got \(1, 24\)"):
        codec.set_mask_embedding(vector[None])


def test_tiny_t5_is_small_and_of_the_published_kind():
    encoder = tiny_t5(200)
    assert type(encoder) is T5EncoderModel
    assert sum(parameter.numel() for parameter in encoder.parameters()) < 2_000_000
    assert (encoder.config.dense_act_fn, encoder.config.is_gated_act) == ("gelu_new", True)
    assert encoder.config.dropout_rate == 0.0


@pytest.mark.parametrize(
    ("half", "origin"), [("\ud83d", "half of a character"), ("\udce9", "the byte 0xe9, not UTF-8")]
)
def test_a_lone_surrogate_is_one_line(codec: TextCodec, half: str, origin: str):
    for text in (half, f"a {half} dog"):
        with pytest.raises(
            ValueError, match=r"lone surrogate \(\\ud\w{3}\), which is no character"
        ) as raised:
            codec.tokenize([text], 8)
        assert origin in str(raised.value)
        str(raised.value).encode()  # it can be shown and sent
    assert codec.token_ids("a dog \U0001f600")
