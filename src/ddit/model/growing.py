"""A trained model with more words, or with another text encoder.

With more words its tokenizer, text encoder and text head get rows at their end; old ids keep. Only a tokenizer of whole
words lacks any. One of pieces can spell every word, and is told which ones are now known.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor
from transformers import PreTrainedTokenizerFast, T5EncoderModel

from ddit.model.dual_dit import DualDiT
from ddit.model.encoders import TextCodec
from ddit.model.loading import ModelParts
from ddit.model.small_text import with_special_tokens
from ddit.model.vocabulary import KNOWN_WORDS, known_words, list_words, unknown_words

MOST_WORDS = 4000


def add_words(parts: ModelParts, texts: Iterable[str], *, seed: int = 0) -> ModelParts:
    """The model with the words of `texts` that it does not know; at most the `MOST_WORDS` most frequent.

    The new rows begin as the mean of the old ones, those of the text encoder with some noise; they are to be trained.
    """
    tokenizer = parts.text_codec.tokenizer
    counts = _unknown(tokenizer, texts)
    if not counts:
        return parts
    words = sorted(counts, key=lambda word: (-counts[word], word))[:MOST_WORDS]
    if not isinstance(tokenizer.backend_tokenizer.model, WordLevel):
        known = known_words(tokenizer) or frozenset()
        grown = _with_settings(tokenizer.backend_tokenizer, known | {word.lower() for word in words})
        return parts._replace(text_codec=TextCodec(grown, parts.text_codec.encoder))
    grown = _with_settings(_with_words(tokenizer.backend_tokenizer, words), None)
    num_tokens = max(grown.get_vocab().values()) + 1
    generator = torch.Generator().manual_seed(seed)
    encoder = _grown_encoder(parts.text_codec.encoder, parts.text_codec.vocab_size, num_tokens, generator)
    transformer = _grown_head(parts.transformer, num_tokens)
    return parts._replace(text_codec=TextCodec(grown, encoder), transformer=transformer)


def _unknown(tokenizer: PreTrainedTokenizerFast, texts: Iterable[str]) -> dict[str, int]:
    """The words that are new, and how often they are there; a tokenizer of T5's size has none."""
    is_whole = isinstance(tokenizer.backend_tokenizer.model, WordLevel)
    known = known_words(tokenizer)
    if not is_whole and known is None:
        return {}
    counts: dict[str, int] = {}
    for text in texts:
        words = unknown_words(tokenizer, text) if known is None else list_words(text)
        for word in words:
            if known is None or word not in known:
                counts[word.lower()] = counts.get(word.lower(), 0) + 1
    return counts


def _with_words(backend: Tokenizer, words: list[str]) -> Tokenizer:
    stored: dict[str, Any] = json.loads(backend.to_str())
    vocabulary: dict[str, int] = stored["model"]["vocab"]
    start = max(*vocabulary.values(), *(token["id"] for token in stored["added_tokens"])) + 1
    for number, word in enumerate(words):
        vocabulary[f"▁{word}"] = start + number
    return Tokenizer.from_str(json.dumps(stored))


def _with_settings(backend: Tokenizer, known: Iterable[str] | None) -> PreTrainedTokenizerFast:
    return with_special_tokens(backend, **({} if known is None else {KNOWN_WORDS: sorted(known)}))


@torch.no_grad()
def _grown_encoder(
    encoder: T5EncoderModel, num_before: int, num_tokens: int, generator: torch.Generator
) -> T5EncoderModel:
    config = type(encoder.config).from_dict(encoder.config.to_dict() | {"vocab_size": num_tokens})
    made = T5EncoderModel(config)
    state = encoder.state_dict()
    for name in ("shared.weight", "encoder.embed_tokens.weight"):
        if name in state:
            old = state[name][:num_before]
            noise = torch.randn(num_tokens - num_before, old.shape[1], generator=generator)
            state[name] = torch.cat([old, old.mean(0) + old.std(0) * noise.to(old)])
    made.load_state_dict(state)
    return made.eval()


@torch.no_grad()
def _grown_head(transformer: DualDiT, num_tokens: int) -> DualDiT:
    config = replace(transformer.config, vocab_size=num_tokens)
    with torch.device("meta"):
        made = DualDiT(config)
    state = transformer.state_dict()
    for name in ("text_proj_out.weight", "text_proj_out.bias"):
        old = state[name]
        rows = old.mean(0, keepdim=True).expand(num_tokens - len(old), *old.shape[1:])
        state[name] = torch.cat([old, rows])
    made.load_state_dict(state, assign=True)
    return made


@torch.no_grad()
def with_text_encoder(parts: ModelParts, codec: TextCodec, texts: Sequence[str], length: int) -> ModelParts:
    """The model with another tokenizer and text encoder, which goes on about where it was; it is to be trained.

    `context_embedder` is fitted by least squares to give for the other encoder's states of `texts` what it gave for its
    own encoder's, token by token where both tokenizers end one, and at the end-of-text and mask tokens behind them. The
    text head keeps the rows of tokens that are spelled alike; the others begin as the mean of the old ones.

    length: tokens that each text is cut and filled to.

    Raises:
        ValueError: if the tokenizers have no token in common, or no text is given.
    """
    inputs, targets = _states_alike(parts.text_codec, codec, texts, length)
    transformer, old_head = parts.transformer, parts.transformer.text_proj_out
    ones = torch.ones(len(inputs), 1)
    wanted = transformer.context_embedder(targets.to(transformer.context_embedder.weight)).float()
    found = torch.linalg.lstsq(torch.cat([inputs, ones], dim=1), wanted, driver="gelsd").solution
    config = replace(transformer.config, text_dim=codec.width, vocab_size=codec.vocab_size)
    with torch.device("meta"):
        made = DualDiT(config)
    state = transformer.state_dict()
    fitted = found.to(transformer.context_embedder.weight.dtype)
    state["context_embedder.weight"], state["context_embedder.bias"] = fitted[:-1].T.contiguous(), fitted[-1]
    pairs = _tokens_alike(parts.text_codec.tokenizer, codec.tokenizer)
    if not pairs:
        raise ValueError("the two tokenizers have no token in common")
    before, after = (torch.tensor(ids) for ids in zip(*pairs, strict=True))
    for name, old in (("text_proj_out.weight", old_head.weight), ("text_proj_out.bias", old_head.bias)):
        rows = old.mean(0, keepdim=True).repeat(codec.vocab_size, *[1] * (old.dim() - 1))
        rows[after] = old[before]
        state[name] = rows
    made.load_state_dict(state, assign=True)
    return parts._replace(transformer=made, text_codec=codec)


def _tokens_alike(one: PreTrainedTokenizerFast, other: PreTrainedTokenizerFast) -> list[tuple[int, int]]:
    """Ids of the tokens that both have: spelled alike, with the mark of a word's begin or else without."""
    vocabulary = other.get_vocab()
    found = {}
    for token, number in one.get_vocab().items():
        name = token if token in vocabulary else token.removeprefix("▁")
        if name in vocabulary:
            found[number] = vocabulary[name]
    return sorted(found.items())


def _states_alike(
    one: TextCodec, other: TextCodec, texts: Sequence[str], length: int, *, at_once: int = 200
) -> tuple[Tensor, Tensor]:
    """States of `other` and of `one` at places that mean the same, (n, D') and (n, D); half the texts end in masks."""
    if not texts:
        raise ValueError("there are no texts to fit a text encoder by")
    inputs, targets = [], []
    for start in range(0, len(texts), at_once):
        of_batch = texts[start : start + at_once]
        ids, ends = zip(*(_tokens_and_ends(codec, of_batch, length) for codec in (one, other)), strict=True)
        states = [codec.states(rows).float() for codec, rows in zip((one, other), ids, strict=True)]
        for row, (ends_one, ends_other) in enumerate(zip(*ends, strict=True)):
            for end in ends_one.keys() & ends_other.keys():
                targets.append(states[0][row, ends_one[end]])
                inputs.append(states[1][row, ends_other[end]])
    return torch.stack(inputs), torch.stack(targets)


def _tokens_and_ends(
    codec: TextCodec, texts: Sequence[str], length: int, num_behind: int = 4
) -> tuple[Tensor, list[dict[int, int]]]:
    """Ids (n, L) of texts, every second with masks behind it; and of each the token that ends at each character.

    The first tokens behind a text have negative numbers for characters.
    """
    rows, ends = [], []
    for number, text in enumerate(texts):
        found = codec.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids = found["input_ids"][: length - num_behind]
        of_text = {end: place for place, (_, end) in enumerate(found["offset_mapping"][: len(ids)]) if end}
        of_text |= {-1 - k: len(ids) + k for k in range(num_behind)}
        filler = codec.mask_token_id if number % 2 else codec.eos_token_id
        rows.append(codec.pad([*ids, *[filler] * num_behind], length, codec.eos_token_id))
        ends.append(of_text)
    return torch.tensor(rows), ends
