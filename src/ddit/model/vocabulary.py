"""Which words of a text a model was not trained on, by its tokenizer, for the warning and its near misses."""

import re
import unicodedata

from transformers import PreTrainedTokenizerFast

from ddit.errors import nearest

PUNCTUATION = ",.?"
KNOWN_WORDS = "known_words"
"""The setting of a tokenizer of pieces that lists the words it was learnt from, in lower case."""
ALL_WORDS_KNOWN = "all_words_known"
"""The setting of one whose list of words is complete: of further texts hardly any word is new."""
LARGEST_WORD_LIST = 4096
"""Tokens of a vocabulary beyond which they are pieces of words, T5's are 32,100."""
FEWEST_LETTERS_A_PIECE = 2
"""A word that was not among the texts is taken for unknown below this many letters a piece: it was spelt out."""


def list_words(text: str) -> list[str]:
    """The words of a text, letters alone, in lower case."""
    return re.findall(r"[^\W\d_]+", unicodedata.normalize("NFC", text).lower())


def unknown_words(tokenizer: PreTrainedTokenizerFast, text: str) -> list[str]:
    """The words of a text that the tokenizer cannot represent, in order, each once.

    A tokenizer of pieces, which can represent any word, has those that are not among the words it was learnt from, nor
    forms of one, and that it has to spell, in bytes or, if its texts may have had other words, in about single letters;
    and symbols that it has in bytes alone.
    """
    known = known_words(tokenizer)
    backend = tokenizer.backend_tokenizer
    if known is None:
        unknown = tokenizer.unk_token_id
        words = re.findall(rf"[^\s{re.escape(PUNCTUATION)}]+", text)
        return [w for w in dict.fromkeys(words) if unknown in backend.encode(w, add_special_tokens=False).ids]
    found, all_known = [], bool(tokenizer.init_kwargs.get(ALL_WORDS_KNOWN))
    for word in dict.fromkeys(re.findall(r"[^\W\d_]+|[^\w\s]+", unicodedata.normalize("NFC", text))):
        is_word, lower = word[0].isalpha(), word.lower()
        if lower in known:
            continue
        pieces = backend.encode(lower, add_special_tokens=False).tokens
        is_cut = all_known or len(lower) < FEWEST_LETTERS_A_PIECE * len(pieces)
        is_spelt = is_word and len(lower) > 2 and is_cut
        if is_spelt and _is_form(lower, known):
            continue
        if is_spelt or any(piece.startswith("<0x") for piece in pieces):
            found.append(word)
    return found


def _is_form(word: str, known: frozenset[str]) -> bool:
    """Whether a known word has the same beginning and another end of a few letters: looks, look; dogs, dog."""
    if word.removesuffix("s") in known:
        return True
    stem = word[: max(4, len(word) - 3)]
    return any(name.startswith(stem) and abs(len(name) - len(word)) <= 3 for name in known)


def similar_words(tokenizer: PreTrainedTokenizerFast, word: str) -> list[str]:
    """Known words that are spelt like it, where a list of whole words is known; at most two."""
    known = known_words(tokenizer)
    if known is None:
        vocabulary = tokenizer.get_vocab()
        if len(vocabulary) > LARGEST_WORD_LIST:
            return []
        special = set(tokenizer.all_special_tokens)
        known = frozenset(token.lstrip("▁") for token in vocabulary if token not in special)
    return nearest(word, known, most=2)


def known_words(tokenizer: PreTrainedTokenizerFast) -> frozenset[str] | None:
    """The words that a tokenizer of pieces was learnt from, the most frequent; None for other tokenizers."""
    listed = tokenizer.init_kwargs.get(KNOWN_WORDS)
    return None if listed is None else frozenset(listed)
