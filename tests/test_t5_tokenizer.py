"""With T5's own tokenizer, of 32,100 pieces: prompts, and a model of the published kind from files to answers."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from t5_tokenizer import FILES, t5_tokenizer_folder
from text_models import published_codec
from tiny_models import randomize

from ddit.model import DualDiT, DualDiTConfig
from ddit.model.autoencoder import PatchAutoencoder
from ddit.model.encoders import ImageCodec, TextCodec
from ddit.model.small_text import tiny_t5
from ddit.model.t5 import load_tokenizer
from ddit.pipeline import Pipeline
from ddit.prompts import (
    PUBLISHED,
    answer_prompt,
    caption_prompt,
    infill_prompt,
    t2i_prompt,
    training_prompt,
    training_question,
)
from ddit.settings import ModelSettings

pytestmark = pytest.mark.slow
MASK, EOS = 32099, 1
TEXTS = (
    "Is there a cat?",
    "What COLOUR is it, if any: red; blue?",
    "Ein schönes Bild, 3,5 m² groß",
    "naïve café ﬁne ½ — “quoted”",
    "a photo of\ttwo   dogs",
)


@pytest.fixture(scope="module")
def folder() -> Path:
    found = t5_tokenizer_folder()
    if found is None:
        pytest.skip("T5's tokenizer cannot be downloaded here: DDIT_T5_TOKENIZER names a folder of it")
    return found


@pytest.fixture(scope="module")
def codec(folder: Path) -> TextCodec:
    torch.manual_seed(0)
    encoder = tiny_t5(
        32128, d_model=24, num_layers=2, num_heads=2, d_ff=32
    )  # T5's table has 28 rows to spare
    return TextCodec(load_tokenizer(folder), encoder)


def test_the_ids_are_the_published_ones(codec: TextCodec) -> None:
    assert (codec.vocab_size, codec.mask_token_id, codec.eos_token_id) == (32100, MASK, EOS)
    assert codec.token_ids("Q:") == [1593, 10]
    assert codec.decode(codec.token_ids("Is there a cat?")) == "Is there a cat?"


def test_the_fast_tokenizer_and_the_file_of_pieces_agree_with_sentencepiece(
    folder: Path, tmp_path: Path
) -> None:
    from sentencepiece import SentencePieceProcessor

    shutil.copy(folder / "spiece.model", tmp_path)
    fast, slow = load_tokenizer(folder), load_tokenizer(tmp_path)
    theirs = SentencePieceProcessor(str(folder / "spiece.model"))
    for text in TEXTS:
        expected = theirs.encode(text)
        for tokenizer in (fast, slow):
            assert tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids == expected, text
    assert slow.get_vocab() == fast.get_vocab()


def test_prompts_are_the_pieces_of_their_whole_text(codec: TextCodec) -> None:
    question, length = "What color is the dog?", 64
    asked = answer_prompt(codec, [question], length, style=PUBLISHED)
    whole = codec.token_ids(f"Q: {question} A: ")
    assert asked.input_ids[0].tolist() == whole + [MASK] * (length - len(whole))
    trained = training_question(codec, [question], ["red"], length, style=PUBLISHED)
    assert trained.input_ids[0, : len(whole)].tolist() == whole
    assert trained.input_ids[0, len(whole) :].tolist() == [*codec.token_ids("red")] + [EOS] * (
        length - len(whole) - len(codec.token_ids("red"))
    )
    assert set(caption_prompt(codec, 1, 8, style=PUBLISHED).input_ids[0].tolist()) == {MASK}
    filled = infill_prompt(codec, ["a photo of a __ dog"], 16, style=PUBLISHED).input_ids[0].tolist()
    before, after = codec.token_ids("a photo of a "), codec.token_ids(" dog")
    assert filled[: len(before) + 1 + len(after)] == [*before, MASK, *after]
    drawn = t2i_prompt(codec, ["A Red dog"], 16, style=PUBLISHED)
    assert torch.equal(drawn, training_prompt(codec, ["A Red dog"], 16, style=PUBLISHED))
    assert not torch.equal(drawn, t2i_prompt(codec, ["a red dog"], 16, style=PUBLISHED))


def test_the_stand_in_of_other_tests_has_its_form(codec: TextCodec) -> None:
    """The tests without a download use a small tokenizer of the same kind: spaces, special tokens and ends alike."""
    small = published_codec()
    text = "Q: yes A: no"
    assert codec.tokenizer.convert_ids_to_tokens(
        codec.token_ids(text)
    ) == small.tokenizer.convert_ids_to_tokens(small.token_ids(text))
    for one in (codec, small):
        assert one.mask_token_id == one.vocab_size - 1
        assert one.tokenizer.convert_tokens_to_ids("<extra_id_99>") == one.vocab_size - 100


def test_a_model_goes_from_files_to_images_and_texts(codec: TextCodec, folder: Path, tmp_path: Path) -> None:
    sizes = {"hidden_size": 32, "depth": 2, "num_heads": 2, "text_dim": 24, "vocab_size": 32100}
    transformer = DualDiT(
        DualDiTConfig(in_channels=8, patch_size=2, sample_size=8, pos_embed_max_size=8, **sizes)
    )
    randomize(transformer, 0)
    settings = ModelSettings(image_size=32, prompt_length=16, text_length=40, caption_steps=3, answer_steps=3)
    made = Pipeline(transformer, ImageCodec(PatchAutoencoder(latent_channels=8)), codec, settings)
    made.save_pretrained(tmp_path / "model")
    for name in FILES:  # as the published folders have them
        shutil.copy(folder / name, tmp_path / "model" / "tokenizer")
    pipeline = Pipeline.from_pretrained(tmp_path / "model")
    image = pipeline.generate("A red dog", seed=0, num_steps=2)[0]
    assert image.size == (32, 32)
    assert list(pipeline.answer(image, TEXTS[0], seed=1)) == list(made.answer(image, TEXTS[0], seed=1))
    assert list(pipeline.caption(image, seed=1)) == list(made.caption(image, seed=1))
    (filled,) = pipeline.infill(image, "a __ dog", seed=1)
    assert filled.startswith("a ")
    assert filled.endswith(" dog")
    first, second = pipeline.score(image, ["a red dog", "Ein schönes Bild"], seed=0)
    assert first.num_tokens == len(codec.token_ids("a red dog")) + 1
    assert second.log_prob < 0
