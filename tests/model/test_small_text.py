"""The tokenizer of pieces: any text, near texts, what comes back, and which words it warns of."""

import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
from text_models import published_codec, with_encoder, word_codec

from ddit.config.data import WorldData
from ddit.data.sources import WorldSource
from ddit.model.encoders import MASK_TOKEN, TextCodec
from ddit.model.small_text import train_tokenizer
from ddit.model.t5 import load_tokenizer

ENGLISH = [
    "What colour is it? It is red.",
    "what colour is the dog? The dog is brown.",
    "A photo of a dog on the grass, 24 cows behind it.",
    "Ein Hund läuft über die Straße.",
    "a 🐶 plays",
] * 20
TEXTS = [
    "What colour is it",
    "STOP, iPhone (NATO)!",
    "Ein süßer Hund läuft über die Äpfel.",
    "a 🐶 and a family 👨‍👩‍👧 ❤️ 🇩🇪",
    "Жук ΔΙΑ 狗 が x² Ünïcode",
    "<0x41> {\"a\": [1, 2]} 3.14 it's",
]  # fmt: skip


def world_texts(first: int, count: int) -> list[str]:
    source, texts = WorldSource(WorldData()), []
    for index in range(first, first + count):
        rng = random.Random(index)
        turn = source.turn(index, rng, 1.0)
        texts += [source.caption(index, rng), f"{turn.question}", turn.answer]
    return texts


@pytest.fixture(scope="module")
def codec() -> TextCodec:
    return with_encoder(train_tokenizer(ENGLISH, 512))


@pytest.fixture(scope="module")
def world() -> TextCodec:
    return with_encoder(train_tokenizer(world_texts(0, 1000), 512))


def test_special_tokens_are_where_t5_has_them(codec: TextCodec) -> None:
    assert codec.tokenizer.convert_ids_to_tokens([0, 1, 2]) == ["<pad>", "</s>", "<unk>"]
    assert codec.tokenizer.convert_ids_to_tokens(codec.mask_token_id) == MASK_TOKEN
    assert codec.mask_token_id == codec.vocab_size - 1 == len(codec.tokenizer) - 1
    assert codec.vocab_size <= 512


@pytest.mark.parametrize("text", TEXTS)
def test_any_text_comes_back_and_nothing_is_unknown(codec: TextCodec, text: str) -> None:
    ids = codec.token_ids(text)
    assert codec.tokenizer.unk_token_id not in ids
    assert codec.decode(ids) == text


def test_white_space_and_composition_are_all_that_is_lost(codec: TextCodec) -> None:
    assert codec.decode(codec.token_ids("  a\n\tdog u\u0308ber ")) == "a dog über"
    assert codec.token_ids(" ") == []


def test_case_and_punctuation_are_pieces_of_their_own(codec: TextCodec) -> None:
    plain, asked = codec.token_ids("what colour is it"), codec.token_ids("What colour is it?")
    assert asked[1:-1] == plain
    assert len(plain) == 4


def test_byte_pieces_of_a_cut_character_decode_to_something(codec: TextCodec) -> None:
    ids = codec.token_ids("狗")
    assert "\ufffd" in codec.decode(ids[:-1])


def test_a_folder_gives_the_same_ids_and_words(codec: TextCodec, tmp_path: Path) -> None:
    codec.tokenizer.save_pretrained(tmp_path)
    again = with_encoder(load_tokenizer(tmp_path))
    for text in TEXTS:
        assert again.token_ids(text) == codec.token_ids(text)
        assert again.unknown_words(text) == codec.unknown_words(text)
    assert again.similar_words("colur") == ["colour"]


def test_the_same_texts_give_the_same_tokenizer_in_another_process() -> None:
    train = f"train_tokenizer({ENGLISH}, 512).backend_tokenizer.to_str()"
    code = f"from ddit.model.small_text import train_tokenizer; print({train})"
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, check=True) for _ in range(2)]
    assert runs[0].stdout == runs[1].stdout


def test_few_texts_and_wrong_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="num_pieces must be from 512 to 8192, got 96"):
        train_tokenizer(ENGLISH, 96)
    with pytest.raises(ValueError, match="too few texts"):
        train_tokenizer([], 512)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("What colour is it? (It is RED!)", []),
        ("a zebra, a Kangaroo", ["zebra", "Kangaroo"]),
        ("dogs playing", []),  # forms of known words
        ("a 🐶, a 🦓", ["🦓"]),
        ("a Жук", ["Жук"]),
        ("24 or 37 of 100 %", []),
    ],
)
def test_words_far_from_the_texts_are_named(codec: TextCodec, text: str, words: list[str]) -> None:
    assert codec.unknown_words(text) == words


def test_held_out_texts_of_a_source_raise_no_alarm(world: TextCodec) -> None:
    assert [word for text in world_texts(50_000, 500) for word in world.unknown_words(text)] == []


def test_any_other_word_is_unknown_where_texts_have_no_rare_words(world: TextCodec) -> None:
    assert world.unknown_words("a castle, a house, two boxes, two cats") == ["castle", "house", "boxes"]
    with_rare_ones = [*world_texts(0, 2000), "an old castile", "a quay", "a mill"]
    assert with_encoder(train_tokenizer(with_rare_ones, 512)).unknown_words("a castle") == []


def test_few_words_of_held_out_prose_raise_an_alarm() -> None:
    """Prose of which a good part of the words are new; most of what is flagged must be rare."""
    folder = Path(__file__).parents[2] / "docs"
    lines = [line for path in sorted(folder.glob("*.md")) for line in path.read_text().splitlines()]
    lines = [line for line in lines if len(line) > 30 and not re.search(r"[`|<]", line)]
    random.Random(0).shuffle(lines)
    codec = with_encoder(train_tokenizer(lines[60:], 2048))
    words = [word for line in lines[:60] for word in re.findall(r"[^\W\d_]+", line)]
    flagged = [word for line in lines[:60] for word in codec.unknown_words(line)]
    assert len(flagged) <= 0.05 * len(words)
    nonsense = "xqzv wkjrf zzyx brontosaurus Krankenwagen guacamole"
    assert len(codec.unknown_words(nonsense)) >= 5


def test_whole_word_and_published_tokenizers_keep_their_measure() -> None:
    assert word_codec().unknown_words("a zebra") == ["zebra"]
    assert published_codec().unknown_words("a zebra 🐶") == ["🐶"]
