"""A tokenizer folder with `spiece.model` alone."""

import io
import shutil
from pathlib import Path

import pytest
from tiny_models import tiny_text_codec

from ddit.model.loading import load_text_codec
from ddit.model.t5 import load_tokenizer

TEXTS = [
    "a photo of a red dog",
    "is  there a cat?\tno",
    "Ein café, naïve ﬁne ½",
    "how many <extra_id_0> dogs",
]


@pytest.fixture(scope="module")
def spiece(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small SentencePiece model of T5's form."""
    pytest.importorskip("sentencepiece")
    from sentencepiece import SentencePieceTrainer

    lines = [
        "a photo of the red dog and a blue cat",
        "how many dogs are there",
        "is there a cat? no, two",
    ] * 20
    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, vocab_size=60, hard_vocab_limit=False, pad_id=0, eos_id=1,
        unk_id=2, bos_id=-1, model_type="unigram", minloglevel=2,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("spiece")
    (folder / "spiece.model").write_bytes(model.getvalue())
    return folder


def test_its_ids_are_sentencepieces_own_and_those_of_the_fast_tokenizer(spiece: Path, tmp_path: Path) -> None:
    from sentencepiece import SentencePieceProcessor

    tokenizer = load_tokenizer(spiece)
    tokenizer.save_pretrained(tmp_path)
    assert (tmp_path / "tokenizer.json").is_file()
    fast = load_tokenizer(tmp_path)
    theirs = SentencePieceProcessor(str(spiece / "spiece.model"))
    for text in TEXTS:
        ids = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
        assert ids == fast.backend_tokenizer.encode(text, add_special_tokens=False).ids
        if "<" not in text:  # SentencePiece does not know T5's extra ids
            assert ids == theirs.encode(text)
    extras = [tokenizer.convert_tokens_to_ids(f"<extra_id_{i}>") for i in (0, 99)]
    assert extras == [len(tokenizer) - 1, len(tokenizer) - 100]


def test_without_the_libraries_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_text_codec().save_pretrained(tmp_path / "tokenizer", tmp_path / "text_encoder")
    shutil.rmtree(tmp_path / "tokenizer")
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "spiece.model").write_bytes(b"")
    monkeypatch.setattr("ddit.model.t5.is_sentencepiece_available", lambda: False)
    with pytest.raises(
        ValueError, match=r"no tokenizer\.json: .* pip install 'ddit\[sentencepiece\]'"
    ) as caught:
        load_text_codec(tmp_path)
    assert "\n" not in str(caught.value)
