"""A trained model with more words: its tokenizer, text encoder and text head get rows at their end, old ids keep.

Only a tokenizer of whole words lacks any. One of pieces can spell every word, and is told which ones are now known.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
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
