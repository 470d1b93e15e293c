"""Small text codecs for the tests: one of whole words, as in the mini model, one like the published T5's."""

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import Unigram
from transformers import PreTrainedTokenizerFast

from ddit.model.encoders import TextCodec
from ddit.model.small_text import build_tokenizer, tiny_t5
from ddit.prompts import MINI

WORDS = [*MINI.words, "a", "red", "dog", "blue", "car", "how", "many", "two", "three", "photo", "of", "is"]
WORDS += ["there", "left"]
PIECES = [
    "▁",
    "▁a",
    "▁red",
    "▁dog",
    "▁cat",
    "▁blue",
    "▁yes",
    "▁no",
    "▁Is",
    "▁there",
    "▁Q",
    "▁A",
    "▁or",
    "▁not",
]
PIECES += ["▁how", "▁many", "▁two", ":", ",", ".", "?", "!", "s"]


def with_encoder(tokenizer: PreTrainedTokenizerFast) -> TextCodec:
    """A codec with a tiny random encoder."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = tiny_t5(len(tokenizer), d_model=24, num_layers=2, num_heads=2, d_ff=32)
    return TextCodec(tokenizer, encoder)


def word_codec() -> TextCodec:
    return with_encoder(build_tokenizer(WORDS))


def published_codec() -> TextCodec:
    """Pieces and single letters, spaces as T5 treats them, `<extra_id_99>` to `<extra_id_0>` as the last ids."""
    letters = [chr(code) for code in (*range(65, 91), *range(97, 123)) if chr(code) != "s"]
    extras = [f"<extra_id_{i}>" for i in range(99, -1, -1)]
    scores = [(special, 0.0) for special in ("<pad>", "</s>", "<unk>")]
    scores += [(piece, -2.0) for piece in PIECES] + [(letter, -8.0) for letter in letters]
    scores += [(extra, 0.0) for extra in extras]
    tokenizer = Tokenizer(Unigram(scores, unk_id=2, byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")]
    )
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return with_encoder(
        PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            pad_token="<pad>",
            eos_token="</s>",
            unk_token="<unk>",
            additional_special_tokens=extras[::-1],
        )
    )
