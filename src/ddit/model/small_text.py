"""The small models' text side, made from nothing: a tokenizer and a T5 encoder with fresh weights.

One kind of tokenizer has whole words, for the closed vocabulary of the small world, the other has pieces of words,
for any text.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

from ddit.model.encoders import MASK_TOKEN
from ddit.model.vocabulary import ALL_WORDS_KNOWN, KNOWN_WORDS, PUNCTUATION, list_words

SPECIAL_TOKENS = ("<pad>", "</s>", "<unk>")
BYTES = tuple(f"<0x{value:02X}>" for value in range(256))
CAPITAL = "⇧"
"""A piece of its own before a word (or within one, a letter) that is written with a capital."""
MIN_PIECES, MAX_PIECES = 512, 8192
MAX_KNOWN_WORDS = 20_000
MOST_NEW_WORDS = 1e-4
"""Up to this share of new words in further texts, by Good and Turing's estimate from the words that were there once, a
list of words is complete."""


def build_tokenizer(words: Iterable[str]) -> PreTrainedTokenizerFast:
    """A tokenizer of whole words with T5's special tokens: <pad> 0, </s> 1, <unk> 2, ..., <extra_id_0> last.

    Text is lower-cased (`Q:` and `A:` are words like any other), and `, . ?` are tokens of their own,
    whether glued to a word or not; they are always in the vocabulary. An unknown word becomes one <unk>.
    Decoding puts no space before punctuation. Raises ValueError for a word that the tokenizer could not
    produce.
    """
    marks = [*PUNCTUATION]
    entries = dict.fromkeys(word.lower() for word in words)
    for word in entries:
        if word not in marks and (not word or re.search(rf"[\s▁{re.escape(PUNCTUATION)}]", word)):
            raise ValueError(f"not a single word: {word!r}")
    pieces = [f"▁{word}" for word in dict.fromkeys([*marks, *entries])]
    tokens = [*SPECIAL_TOKENS, *pieces, MASK_TOKEN]
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Split(Regex(f"[{re.escape(PUNCTUATION)}]"), "isolated"),
            pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always"),
        ]
    )
    shown = {**{f"▁{mark}": mark for mark in marks}, "▁q:": "▁Q:", "▁a:": "▁A:"}
    tokenizer.decoder = decoders.Sequence(
        [*(decoders.Replace(piece, text) for piece, text in shown.items()), decoders.Metaspace()]
    )
    return with_special_tokens(tokenizer)


def train_tokenizer(texts: Iterable[str], num_pieces: int) -> PreTrainedTokenizerFast:
    """A tokenizer of pieces of words (byte-pair encoding), learnt from `texts`; no text has an unknown token.

    Ids as in `build_tokenizer`: <pad> 0, </s> 1, <unk> 2 (never produced), then 256 bytes, letters and pieces, and
    <extra_id_0> last. A character that `texts` do not have, or have seldom, becomes its bytes in UTF-8.

    Words are lower-cased, and a capital is a piece of its own before the word: `What` and `what` have the same piece,
    and decoding gives back what was written. Punctuation and digits are single characters. As from T5's tokenizer,
    white space becomes single spaces; the characters are composed (NFC).

    Args:
        num_pieces: at most so many tokens in all, from 512 to 8,192; fewer where the texts have no more to join.

    Raises:
        ValueError: if `num_pieces` is out of range or there is no text at all.
    """
    if not MIN_PIECES <= num_pieces <= MAX_PIECES:
        raise ValueError(f"num_pieces must be from {MIN_PIECES} to {MAX_PIECES}, got {num_pieces}")
    counts: Counter[str] = Counter()

    def counted() -> Iterable[str]:
        for text in texts:
            counts.update(list_words(text))
            yield text

    learner = Tokenizer(models.BPE())
    _split_into_words(learner)
    first = [*SPECIAL_TOKENS, *BYTES, CAPITAL]
    trainer = trainers.BpeTrainer(
        vocab_size=num_pieces - 1,
        min_frequency=2,
        special_tokens=first,
        initial_alphabet=["▁", *(chr(code) for code in range(33, 127) if not chr(code).isupper())],
        limit_alphabet=max(80, (num_pieces - len(first)) // 4),
        show_progress=False,
    )
    learner.train_from_iterator(counted(), trainer)
    learnt = json.loads(learner.to_str())["model"]
    if not learnt["merges"]:
        raise ValueError("there are too few texts to learn a tokenizer from")
    vocabulary = {**learnt["vocab"], MASK_TOKEN: len(learnt["vocab"])}
    merges = [(left, right) for left, right in learnt["merges"]]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True))
    _split_into_words(tokenizer)
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Replace(f"{CAPITAL}▁", f"▁{CAPITAL}"),
            *(decoders.Replace(f"{CAPITAL}{letter.lower()}", letter) for letter in _capitals()),
            decoders.Replace(CAPITAL, ""),
            decoders.Replace("▁", " "),
        ]
    )
    known = [word for word, _ in counts.most_common(MAX_KNOWN_WORDS)]
    num_once = sum(num == 1 for num in counts.values())
    all_known = len(known) == len(counts) and num_once <= MOST_NEW_WORDS * counts.total()
    return with_special_tokens(tokenizer, **{KNOWN_WORDS: sorted(known), ALL_WORDS_KNOWN: all_known})


def _split_into_words(tokenizer: Tokenizer) -> None:
    """Sets the steps before the pieces: `What 42?` -> `⇧`, `▁what`, `▁4`, `2`, `?`."""
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFC(),
            normalizers.Replace(CAPITAL, "↑"),
            normalizers.Replace(Regex(r"[\s▁]+"), " "),
            normalizers.Strip(),
            normalizers.Prepend("▁"),
            normalizers.Replace(" ", "▁"),
            normalizers.Replace(Regex(r"(?=\p{Lu})"), CAPITAL),
            normalizers.Lowercase(),
            normalizers.Replace(f"▁{CAPITAL}", f"{CAPITAL}▁"),  # so that a word begins as in lower case
        ]
    )
    words = rf"{CAPITAL}|▁?[\p{{L}}\p{{M}}]+|▁?\p{{N}}|▁|[^\p{{L}}\p{{M}}\p{{N}}▁]"
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(words), "isolated")


def _capitals() -> list[str]:
    """The Latin, Greek and Cyrillic capitals that lower case and back leaves as they are."""
    letters = map(chr, range(0x530))
    return [letter for letter in letters if letter.isupper() and letter.lower().upper() == letter]


def with_special_tokens(tokenizer: Tokenizer, **settings: Any) -> PreTrainedTokenizerFast:
    """T5's conventions; `settings` are kept in the tokenizer's folder."""
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=[MASK_TOKEN],
        clean_up_tokenization_spaces=False,
        **settings,
    )


def tiny_t5(
    vocab_size: int, *, d_model: int = 192, num_layers: int = 4, num_heads: int = 6, d_ff: int = 448
) -> T5EncoderModel:
    """A small T5 encoder of the published kind (gated GELU, relative positions), with fresh weights.

    Its 64 position buckets tell every distance up to 32 tokens apart (T5's own 32 merge those above 8),
    since a short masked text has little else to go by. The draw uses torch's global generator.
    """
    config = T5Config(
        vocab_size=vocab_size,
        d_model=d_model,
        d_kv=d_model // num_heads,
        d_ff=d_ff,
        num_layers=num_layers,
        num_heads=num_heads,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        relative_attention_num_buckets=64,
        relative_attention_max_distance=32,
        is_encoder_decoder=False,
        use_cache=False,
    )
    return T5EncoderModel(config)
