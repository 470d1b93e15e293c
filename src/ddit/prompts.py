"""Every string that the model is shown: templates -> token ids and the mask of what is the model's to fill.

Padding is the end-of-text token, which is a target like any other. None sits between a prompt and its answer.
"""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ddit.errors import warn_user
from ddit.schema import strict

if TYPE_CHECKING:  # transformers takes seconds to import
    from ddit.model.encoders import TextCodec

BLANK = re.compile(r"_{2,}")
DETAILED_QUESTION = "Describe the image in detail."
"""Asks for a detailed caption; one of LLaVA's."""


@strict
class PromptStyle:
    """The templates of one family of models; saved in the model's folder.

    Attributes:
        caption_prefix: comes before the caption of an image (i2t). T5 has relative positions only,
            so in a text that is masked throughout every position looks the same: a small model needs an anchor.
        question_template: holds `{question}` once and ends where the answer begins.
        short_answer_suffix: what a question of a short-answer benchmark ends with.
        unanswerable_suffix: what it ends with besides where questions may have no answer (VizWiz).
        empty_prompt: stands in for a caption that is dropped, for guidance.
        prompt_padding: the token that fills up a t2i prompt. The published training replaces T5's own padding
            by the end-of-text token in both directions.
        min_answer_tokens: the room that a long question is cut to leave.
        lower_case_prompts: show questions and t2i prompts in lower case, so that "WHAT IS THIS" is "what is this".
    """

    caption_prefix: str = ""
    question_template: str = "Q: {question} A: "
    short_answer_suffix: str = "Answer the question using a single word or phrase."
    unanswerable_suffix: str = "Reply unanswerable if information is not present in the image."
    empty_prompt: str = " "
    prompt_padding: str = "</s>"
    min_answer_tokens: int = 16
    lower_case_prompts: bool = False

    def __post_init__(self):
        if self.question_template.count("{question}") != 1:
            raise ValueError(f"question_template must hold {{question}} once, got {self.question_template!r}")
        if self.prompt_padding not in ("</s>", "<pad>"):
            raise ValueError(f"prompt_padding must be </s> or <pad>, got {self.prompt_padding!r}")
        if self.min_answer_tokens < 1:
            raise ValueError(f"min_answer_tokens must be at least 1, got {self.min_answer_tokens}")

    @property
    def words(self) -> list[str]:
        """The words of the templates, for a tokenizer of whole words."""
        texts = [
            self.caption_prefix,
            self.question_template.replace("{question}", " "),
            self.short_answer_suffix,
            self.unanswerable_suffix,
        ]
        return list(dict.fromkeys(word for text in texts for word in re.findall(r"[^\s,.?]+", text)))

    def given(self, text: str) -> str:
        """A question or a t2i prompt as the model is shown it."""
        return text.lower() if self.lower_case_prompts else text

    def short_answer(self, question: str, *, unanswerable: bool = False) -> str:
        """The question as a short-answer benchmark asks it; `unanswerable` if it may have no answer."""
        suffixes = [self.short_answer_suffix, self.unanswerable_suffix if unanswerable else ""]
        return " ".join(part for part in (question, *suffixes) if part)


PUBLISHED = PromptStyle()
MINI = PromptStyle(
    caption_prefix="A:",
    short_answer_suffix="",
    unanswerable_suffix="",
    min_answer_tokens=4,
    lower_case_prompts=True,
)


class TokenizedPrompt(NamedTuple):
    """`input_ids` (B, L), and `answer_mask` (B, L), which is True where the token is the model's to fill."""

    input_ids: Tensor
    answer_mask: Tensor


def training_caption(
    codec: "TextCodec", captions: Sequence[str], length: int, *, style: PromptStyle
) -> TokenizedPrompt:
    """Prefix, caption and padding; the answer is the caption and the padding after it.

    A caption that is too long is cut and still ends with the end-of-text token, as published.
    """
    prefix = codec.token_ids(style.caption_prefix)
    room = length - len(prefix) - 1
    return _stack(codec, [(prefix, codec.token_ids(caption)[:room]) for caption in captions], length)


def training_question(
    codec: "TextCodec", questions: Sequence[str], answers: Sequence[str], length: int, *, style: PromptStyle
) -> TokenizedPrompt:
    """Template, question, answer and padding; the answer mask covers the answer and the padding after it.

    A question is cut to leave `min_answer_tokens`; an answer that is too long is cut without an end-of-text
    token.
    """
    rows = []
    for question, answer in zip(questions, answers, strict=True):
        prompt, _ = _question_ids(codec, question, length, style)
        rows.append((prompt, codec.token_ids(answer)[: length - len(prompt)]))
    return _stack(codec, rows, length)


def training_conversation(
    codec: "TextCodec",
    conversations: Sequence[Sequence[tuple[str | None, str]]],
    length: int,
    *,
    style: PromptStyle,
) -> TokenizedPrompt:
    """Conversations, one a row: each turn is a question in its template (or None, for a caption) and the answer.

    The answer mask covers every answer, one end-of-text token after each, and the padding after the last. A row of one
    turn is that of `training_question` or `training_caption`, and the first turn is cut as there; of the others, those
    from the first that does not fit whole are left out. (The published code trains on the first turn alone.)
    Raises ValueError for a conversation without turns.
    """
    ids, mask = zip(*[_conversation(codec, turns, length, style) for turns in conversations], strict=True)
    return TokenizedPrompt(torch.tensor(ids), torch.tensor(mask))


def _conversation(
    codec: "TextCodec", turns: Sequence[tuple[str | None, str]], length: int, style: PromptStyle
) -> tuple[list[int], list[bool]]:
    if not turns:
        raise ValueError("a conversation needs at least one turn")
    ids: list[int] = []
    mask: list[bool] = []
    for question, answer in turns:
        kept = None
        if question is None:
            prompt, room = codec.token_ids(style.caption_prefix), length - 1
        else:
            (prompt, kept), room = _question_ids(codec, question, length, style), length
        answer_ids = codec.token_ids(answer)
        is_first = not ids
        if not is_first and (kept is not None or len(ids) + len(prompt) + len(answer_ids) >= length):
            break
        answer_ids = [*answer_ids[: room - len(ids) - len(prompt)], codec.eos_token_id]
        ids += prompt + answer_ids
        mask += [False] * len(prompt) + [True] * len(answer_ids)
    return codec.pad(ids[:length], length, codec.eos_token_id), (mask + [True] * length)[:length]


def knows_detailed(codec: "TextCodec") -> bool:
    """Whether the model was trained on the words that ask for a detailed caption."""
    return not codec.unknown_words(DETAILED_QUESTION)


def caption_prompt(
    codec: "TextCodec", n: int, length: int, *, style: PromptStyle, detailed: bool = False
) -> TokenizedPrompt:
    """`n` captions to be written: the prefix, or the question for a detailed one, then masked positions up to `length`.

    Raises ValueError for detailed captions by a model that does not know that question.
    """
    if not detailed:
        return _masked(codec, [codec.token_ids(style.caption_prefix)] * n, length)
    if not knows_detailed(codec):
        raise ValueError(f"the model writes no detailed captions: it does not know {DETAILED_QUESTION!r}")
    return _masked(codec, [_question_ids(codec, DETAILED_QUESTION, length, style)[0]] * n, length)


def answer_prompt(
    codec: "TextCodec",
    questions: Sequence[str],
    length: int,
    *,
    style: PromptStyle,
    history: Sequence[Sequence[tuple[str, str]]] = (),
) -> TokenizedPrompt:
    """Questions in their template, then masked positions for the answers.

    history: the earlier questions and answers of each question's conversation, laid out as in training. The newest are
        kept, as many as leave half of `length` for the answer.

    Warns if a question is cut to leave `min_answer_tokens`. Raises ValueError for an empty question.
    """
    prompts = []
    for question, turns in zip(questions, history or [()] * len(questions), strict=True):
        ids, kept = _question_ids(codec, _checked(question, "question"), length, style)
        if kept is not None:
            _warn_truncation(codec, style.given(question), kept)
        for earlier, answer in reversed(turns):
            turn = [
                *_question_ids(codec, earlier, length, style)[0],
                *codec.token_ids(answer),
                codec.eos_token_id,
            ]
            if len(turn) + len(ids) > length // 2:
                break
            ids = turn + ids
        prompts.append(ids)
    return _masked(codec, prompts, length)


def infill_prompt(
    codec: "TextCodec", texts: Sequence[str], length: int, *, style: PromptStyle
) -> TokenizedPrompt:
    """Texts with blanks: two or more underscores are one masked token, the rest (padding too) stays as given.

    A text that does not begin like the question template is a caption and gets the caption's prefix. Warns
    if a text is cut; raises ValueError for an empty text, for one without a blank, and for one whose blanks
    are all cut off.
    """
    opening, _, closing = (part.strip() for part in style.question_template.partition("{question}"))
    rows = []
    for text in texts:
        if not BLANK.search(_checked(text, "text to fill in")):
            raise ValueError(f"the text has no blank (two or more underscores): {text!r}")
        is_question = bool(opening) and text.lstrip().lower().startswith(opening.lower())
        ids = [] if is_question else codec.token_ids(style.caption_prefix)
        if is_question and style.lower_case_prompts:
            asked, *answer = text.lstrip()[len(opening) :].partition(closing or "\n")
            text = "".join([opening, style.given(asked), *answer])
        ids += _ids_with_blanks(codec, text)
        if len(ids) > length - 1:
            _warn_truncation(codec, text, length - 1, ids=ids)
        ids = codec.pad(ids[: length - 1], length, codec.eos_token_id)
        if codec.mask_token_id not in ids:
            raise ValueError(f"no blank of the text is within the first {length - 1} tokens: {text!r}")
        rows.append(ids)
    input_ids = torch.tensor(rows)
    return TokenizedPrompt(input_ids, input_ids == codec.mask_token_id)


class GivenText(NamedTuple):
    """Token ids of a text to be scored: what comes before it, the text, and the row's length with the padding."""

    prompt: tuple[int, ...]
    text: tuple[int, ...]
    length: int


def given_text(
    codec: "TextCodec",
    text: str,
    question: str | None,
    length: int,
    *,
    window: int | None,
    style: PromptStyle,
) -> GivenText:
    """A text laid out as in training: as a caption, or as the answer to a question.

    window: positions of the text and its padding; None is what a row of `length` leaves. Warns if the question is cut;
    raises ValueError for an empty text or question, and for a text that does not fit with its end-of-text token.
    """
    if window is not None and window < 1:
        raise ValueError(f"length must be at least 1, got {window}")
    ids, kept = codec.token_ids(_checked(text, "text")), None
    if question is None:
        prompt = codec.token_ids(style.caption_prefix)
    else:
        prompt, kept = _question_ids(codec, _checked(question, "question"), length, style)
        if kept is not None:
            _warn_truncation(codec, style.given(question), kept)
    window = length - len(prompt) if window is None else window
    if len(ids) + 1 > window:
        raise ValueError(f"the text has {len(ids)} tokens and only {window - 1} fit: {text[:80]!r}")
    return GivenText(tuple(prompt), tuple(ids), len(prompt) + window)


def set_window(
    prompt: TokenizedPrompt, window: int | None, *, eos_token_id: int
) -> tuple[TokenizedPrompt, list[int]]:
    """The prompt with `window` positions after what is given of each row, and the rows' lengths.

    These positions are the model's to fill where the answer runs to the end of the row, else they are padding. None
    leaves every row at its length. Rows that end earlier than others hold end-of-text tokens from there on, which are
    not to be shown to the model. Raises ValueError for a window of less than 1.
    """
    ids, mask = prompt
    if window is None:
        return prompt, [ids.shape[1]] * len(ids)
    if window < 1:
        raise ValueError(f"length must be at least 1, got {window}")
    is_open = mask[:, -1:]
    is_given = torch.where(is_open, ~mask, ids != eos_token_id)
    positions = torch.arange(ids.shape[1])
    given = torch.where(is_given, positions + 1, 0).amax(1)  # (B,)
    length = int(given.max()) + window
    resized = torch.full((len(ids), length), eos_token_id)
    kept = min(length, ids.shape[1])
    resized[:, :kept] = torch.where(positions < given[:, None], ids, eos_token_id)[:, :kept]
    positions = torch.arange(length)
    answer = is_open & (positions >= given[:, None]) & (positions < given[:, None] + window)
    answer[:, :kept] |= mask[:, :kept] & ~is_open
    return TokenizedPrompt(resized, answer), (given + window).tolist()


def t2i_prompt(codec: "TextCodec", texts: Sequence[str], length: int, *, style: PromptStyle) -> Tensor:
    """Ids (B, length) of prompts of t2i samples, each closed by an end-of-text token and padded with `prompt_padding`.

    Warns if a prompt is cut; raises ValueError for an empty one (`empty_prompt` is what guidance needs).
    """
    rows = []
    for text in texts:
        ids = codec.token_ids(style.given(_checked(text, "prompt")))
        if len(ids) > length - 1:
            _warn_truncation(codec, text, length - 1, ids=ids)
        rows.append(_closed(codec, ids, length, style))
    return torch.tensor(rows)


def empty_prompt(codec: "TextCodec", n: int, length: int, *, style: PromptStyle) -> Tensor:
    """Ids (n, length) of the prompt that says nothing, for guidance and for captions dropped in training."""
    return torch.tensor([_closed(codec, codec.token_ids(style.empty_prompt), length, style)] * n)


def training_prompt(
    codec: "TextCodec", captions: Sequence[str], length: int, *, style: PromptStyle
) -> Tensor:
    """As `t2i_prompt`, for captions in training: long ones are cut without a warning."""
    rows = (codec.token_ids(style.given(caption)) for caption in captions)
    return torch.tensor([_closed(codec, ids, length, style) for ids in rows])


def _closed(codec: "TextCodec", ids: list[int], length: int, style: PromptStyle) -> list[int]:
    filler = codec.tokenizer.convert_tokens_to_ids(style.prompt_padding)
    assert isinstance(filler, int)
    return codec.pad([*ids[: length - 1], codec.eos_token_id], length, filler)


def _stack(codec: "TextCodec", rows: list[tuple[list[int], list[int]]], length: int) -> TokenizedPrompt:
    """Prompts and answers (together at most `length` tokens) as padded ids, and the mask of the answers."""
    input_ids = torch.tensor(
        [codec.pad([*prompt, *answer], length, codec.eos_token_id) for prompt, answer in rows]
    )
    starts = torch.tensor([len(prompt) for prompt, _ in rows])
    return TokenizedPrompt(input_ids, torch.arange(length) >= starts[:, None])


def _masked(codec: "TextCodec", prompts: list[list[int]], length: int) -> TokenizedPrompt:
    """Prompts followed by mask tokens."""
    return _stack(codec, [(ids, [codec.mask_token_id] * (length - len(ids))) for ids in prompts], length)


def _question_ids(
    codec: "TextCodec", question: str, length: int, style: PromptStyle
) -> tuple[list[int], int | None]:
    """The ids of the filled template, and how many of the question's tokens were kept if it had to be cut.

    Tokens never span a space, so the template's two halves and the question are tokenized one by one: a long
    question is cut inside the template.
    """
    before, after = (codec.token_ids(part) for part in style.question_template.split("{question}"))
    ids = codec.token_ids(style.given(question))
    room = length - len(before) - len(after) - style.min_answer_tokens
    if room < 1:
        raise ValueError(f"a length of {length} tokens leaves no room for a question and its answer")
    kept = room if len(ids) > room else None
    return [*before, *ids[:room], *after], kept


def _ids_with_blanks(codec: "TextCodec", text: str) -> list[int]:
    ids: list[int] = []
    for i, part in enumerate(BLANK.split(text)):
        if i:
            ids.append(codec.mask_token_id)
        ids += codec.token_ids(part) if part.strip() else []
    return ids


def _checked(text: str, what: str) -> str:
    if not text.strip():
        raise ValueError(f"the {what} is empty")
    return text


def _warn_truncation(codec: "TextCodec", text: str, kept: int, *, ids: list[int] | None = None) -> None:
    ids = codec.token_ids(text) if ids is None else ids
    warn_user(
        f"the text has {len(ids)} tokens and only {kept} fit: cut after {codec.decode(ids[:kept])[-40:]!r}",
        about=text,
        stacklevel=3,
    )
