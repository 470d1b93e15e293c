"""The small models' text side, made from nothing: a tokenizer of whole words and a T5 encoder with fresh weights."""

import re
from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

from ddit.model.encoders import MASK_TOKEN, PUNCTUATION


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
    tokens = ["<pad>", "</s>", "<unk>", *pieces, MASK_TOKEN]
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
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=[MASK_TOKEN],
        clean_up_tokenization_spaces=False,
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
