import re
import warnings
from dataclasses import replace

import pytest
import torch
from text_models import published_codec, word_codec

from ddit.model.encoders import TextCodec
from ddit.model.small_text import tiny_t5, train_tokenizer
from ddit.prompts import (
    MINI,
    PUBLISHED,
    PromptStyle,
    TokenizedPrompt,
    answer_prompt,
    caption_prompt,
    empty_prompt,
    infill_prompt,
    t2i_prompt,
    training_caption,
    training_conversation,
    training_prompt,
    training_question,
)
from ddit.schema import parse, to_data

CODECS = {"mini": (word_codec(), MINI), "published": (published_codec(), PUBLISHED)}


@pytest.fixture(params=list(CODECS))
def setting(request) -> tuple[TextCodec, PromptStyle]:
    return CODECS[request.param]


def shown(codec: TextCodec, prompt: TokenizedPrompt) -> list[str]:
    """Each row as tokens, with what is the model's to fill in brackets and the end-of-text token as a dot."""
    rows = []
    for ids, answer in zip(prompt.input_ids.tolist(), prompt.answer_mask.tolist(), strict=True):
        tokens = codec.tokenizer.convert_ids_to_tokens(ids)
        tokens = [{"</s>": "·", "<extra_id_0>": "#"}.get(token, token) for token in tokens]
        rows.append(" ".join(f"[{t}]" if a else t for t, a in zip(tokens, answer, strict=True)))
    return rows


# Snapshots


def test_mini_token_ids():
    codec, style = CODECS["mini"]
    question = {"questions": ["how many dog?"], "answers": ["two."]}
    prompts = {
        "training_caption": training_caption(codec, ["a red dog."], 8, style=style).input_ids,
        "training_question": training_question(codec, **question, length=14, style=style).input_ids,
        "caption": caption_prompt(codec, 1, 5, style=style).input_ids,
        "answer": answer_prompt(codec, question["questions"], 12, style=style).input_ids,
        "infill": infill_prompt(codec, ["a ___ dog."], 8, style=style).input_ids,
        "t2i": t2i_prompt(codec, ["A blue car"], 6, style=style),
        "empty": empty_prompt(codec, 1, 4, style=style),
    }
    assert {name: ids[0].tolist() for name, ids in prompts.items()} == {
        "training_caption": [6, 8, 9, 10, 4, 1, 1, 1],
        "training_question": [7, 13, 14, 10, 5, 6, 15, 4, 1, 1, 1, 1, 1, 1],
        "caption": [6, 22, 22, 22, 22],
        "answer": [7, 13, 14, 10, 5, 6, 22, 22, 22, 22, 22, 22],
        "infill": [6, 8, 22, 10, 4, 1, 1, 1],
        "t2i": [8, 11, 12, 1, 1, 1],
        "empty": [1, 1, 1, 1],
    }


def test_mini_templates():
    codec, style = CODECS["mini"]
    assert shown(codec, training_caption(codec, ["a red dog.", "a car"], 8, style=style)) == [
        "▁a: [▁a] [▁red] [▁dog] [▁.] [·] [·] [·]",
        "▁a: [▁a] [▁car] [·] [·] [·] [·] [·]",
    ]
    asked = training_question(codec, ["how many dog?", "is there"], ["two", "a red car"], 12, style=style)
    assert shown(codec, asked) == [
        "▁q: ▁how ▁many ▁dog ▁? ▁a: [▁two] [·] [·] [·] [·] [·]",
        "▁q: ▁is ▁there ▁a: [▁a] [▁red] [▁car] [·] [·] [·] [·] [·]",
    ]
    assert shown(codec, caption_prompt(codec, 2, 4, style=style)) == ["▁a: [#] [#] [#]"] * 2
    assert shown(codec, answer_prompt(codec, ["how many dog?"], 12, style=style)) == [
        "▁q: ▁how ▁many ▁dog ▁? ▁a: [#] [#] [#] [#] [#] [#]"
    ]


def test_published_templates():
    codec, style = CODECS["published"]
    assert shown(codec, training_caption(codec, ["a red dog."], 6, style=style)) == [
        "[▁a] [▁red] [▁dog] [.] [·] [·]"
    ]
    assert shown(codec, training_question(codec, ["Is there a cat?"], ["no"], 30, style=style)) == [
        "▁Q : ▁Is ▁there ▁a ▁cat ? ▁A : [▁no]" + " [·]" * 20
    ]
    assert shown(codec, caption_prompt(codec, 1, 3, style=style)) == ["[#] [#] [#]"]
    assert shown(codec, answer_prompt(codec, ["Is there a cat?"], 28, style=style)) == [
        "▁Q : ▁Is ▁there ▁a ▁cat ? ▁A :" + " [#]" * 19
    ]


def test_pieces_of_a_template_are_tokenized_as_the_whole_is(setting):
    codec, style = setting
    ids = answer_prompt(codec, ["how many dog?"], 40, style=style)
    whole = codec.token_ids(style.question_template.format(question="how many dog?"))
    assert ids.input_ids[0, : len(whole)].tolist() == whole
    assert ids.answer_mask[0].tolist() == [False] * len(whole) + [True] * (40 - len(whole))


# Invariants


def test_no_end_of_text_sits_before_an_answer_and_masks_are_where_the_answer_is(setting):
    codec, style = setting
    length = 32
    for prompt in (
        caption_prompt(codec, 2, length, style=style),
        answer_prompt(codec, ["how many red dog?", "a"], length, style=style),
    ):
        assert not (prompt.input_ids == codec.eos_token_id).any()
        assert torch.equal(prompt.input_ids == codec.mask_token_id, prompt.answer_mask)
    trained = training_question(codec, ["how many red dog?"], ["two"], length, style=style)
    assert codec.eos_token_id not in trained.input_ids[~trained.answer_mask]


def test_answer_mask_covers_the_answer_and_all_padding(setting):
    codec, style = setting
    prompt = training_question(codec, ["how many dog?"], ["two"], 40, style=style)
    answer, expected = prompt.input_ids[prompt.answer_mask].tolist(), codec.token_ids("two")
    assert answer == TextCodec.pad(expected, len(answer), codec.eos_token_id)
    first = int(prompt.answer_mask[0].int().argmax())
    assert prompt.answer_mask[0, first:].all()


def test_training_and_use_see_the_same_prompt(setting):
    codec, style = setting
    questions = ["how many dog?", "a red car"]
    asked = answer_prompt(codec, questions, 32, style=style)
    trained = training_question(codec, questions, ["two", "a"], 32, style=style)
    assert torch.equal(asked.answer_mask, trained.answer_mask)
    assert torch.equal(asked.input_ids[~asked.answer_mask], trained.input_ids[~asked.answer_mask])
    prompt = t2i_prompt(codec, ["a red dog"], 16, style=style)
    assert torch.equal(prompt, training_prompt(codec, ["a red dog"], 16, style=style))


def test_a_batch_is_its_singles(setting):
    codec, style = setting
    texts = ["a red dog ___", "how ___ dog", "____ two"]
    makers = (
        lambda given: infill_prompt(codec, given, 32, style=style),
        lambda given: answer_prompt(codec, given, 32, style=style),
        lambda given: training_question(codec, given, given, 32, style=style),
        lambda given: training_caption(codec, given, 32, style=style),
        lambda given: (t2i_prompt(codec, given, 32, style=style),),
    )
    for make in makers:
        batch, singles = make(texts), [make([text]) for text in texts]
        for i, tensor in enumerate(batch):
            assert torch.equal(tensor, torch.cat([single[i] for single in singles]))


# In-filling


def test_blanks_are_single_masked_tokens_and_the_rest_is_pinned():
    codec, style = CODECS["mini"]
    texts = ["a ___ dog, a __ car.", "a red ____.", "Q: how many ___? A: two", "___"]
    assert shown(codec, infill_prompt(codec, texts, 12, style=style)) == [
        "▁a: ▁a [#] ▁dog ▁, ▁a [#] ▁car ▁. · · ·",
        "▁a: ▁a ▁red [#] ▁. · · · · · · ·",
        "▁q: ▁how ▁many [#] ▁? ▁a: ▁two · · · · ·",
        "▁a: [#] · · · · · · · · · ·",
    ]


def test_published_infill_has_no_prefix_and_one_underscore_is_no_blank():
    codec, style = CODECS["published"]
    assert shown(codec, infill_prompt(codec, ["a ___ dog"], 6, style=style)) == ["▁a [#] ▁dog · · ·"]
    with pytest.raises(ValueError, match="no blank"):
        infill_prompt(codec, ["a _ dog"], 6, style=style)


def test_blanks_that_are_cut_off_are_an_error():
    codec, style = CODECS["mini"]
    with pytest.warns(UserWarning, match="only 5 fit"), pytest.raises(ValueError, match="first 5 tokens"):
        infill_prompt(codec, ["a red dog a blue car ___"], 6, style=style)


# Drawing


def test_t2i_prompts_are_closed_and_padded_with_the_end_of_text():
    codec, style = CODECS["published"]
    a, dog = codec.token_ids("a dog")
    assert t2i_prompt(codec, ["a dog"], 5, style=style).tolist() == [[a, dog, 1, 1, 1]]
    assert empty_prompt(codec, 2, 3, style=style).tolist() == [[1, 1, 1]] * 2


def test_prompt_padding_is_part_of_the_style():
    codec, style = CODECS["published"]
    style = PromptStyle(prompt_padding="<pad>")
    assert t2i_prompt(codec, ["a dog"], 5, style=style)[0, 2:].tolist() == [1, 0, 0]
    assert empty_prompt(codec, 1, 3, style=style).tolist() == [[1, 0, 0]]


# Bad and long input


@pytest.mark.parametrize("text", ["", "  ", "\n"])
def test_empty_texts_are_one_clear_error(setting, text):
    codec, style = setting
    with pytest.raises(ValueError, match=r"^the prompt is empty$"):
        t2i_prompt(codec, ["a dog", text], 8, style=style)
    with pytest.raises(ValueError, match=r"^the question is empty$"):
        answer_prompt(codec, [text], 32, style=style)
    with pytest.raises(ValueError, match=r"^the text to fill in is empty$"):
        infill_prompt(codec, [text], 8, style=style)


def test_truncation_warns_and_says_where(setting):
    codec, style = setting
    with pytest.warns(UserWarning, match=re.escape("has 7 tokens and only 4 fit: cut after 'a red dog a'")):
        ids = t2i_prompt(codec, ["a red dog a blue dog two"], 5, style=style)
    assert codec.decode(ids[0]) == "a red dog a"
    assert ids[0, -1] == codec.eos_token_id


def test_a_long_question_keeps_its_template_and_room_for_the_answer(setting):
    codec, style = setting
    length = 30
    with pytest.warns(UserWarning, match="cut after"):
        prompt = answer_prompt(codec, ["a dog " * 20], length, style=style)
    assert prompt.answer_mask.sum() == style.min_answer_tokens
    pinned = codec.decode(prompt.input_ids[0][~prompt.answer_mask[0]])
    assert pinned.startswith("Q: a dog")
    assert pinned.endswith("A:")


def test_training_texts_are_cut_silently(setting):
    codec, style = setting
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        caption = training_caption(codec, ["a dog " * 20], 8, style=style)
        question = training_question(codec, ["a dog " * 20], ["two " * 40], 30, style=style)
        prompt = training_prompt(codec, ["a dog " * 20], 8, style=style)
    assert caption.input_ids[0, -1] == prompt[0, -1] == codec.eos_token_id
    assert codec.eos_token_id not in question.input_ids


def test_a_length_without_room_is_named(setting):
    codec, style = setting
    with pytest.raises(ValueError, match="length of 5 tokens"):
        answer_prompt(codec, ["how many dog?"], 5, style=style)


def test_as_many_answers_as_questions(setting):
    codec, style = setting
    with pytest.raises(ValueError, match="shorter"):
        training_question(codec, ["a", "a"], ["two"], 30, style=style)


# Styles


@pytest.mark.parametrize("style", [MINI, PUBLISHED])
def test_style_round_trip(style):
    assert parse(PromptStyle, to_data(style)) == style


def test_unknown_settings_are_an_error():
    with pytest.raises(ValueError, match="unknown key 'prefix'"):
        parse(PromptStyle, {"prefix": "", "mask_token": 3})


@pytest.mark.parametrize("template", ["Q: A:", "{question} {question}"])
def test_a_template_holds_the_question_once(template):
    with pytest.raises(ValueError, match="once"):
        PromptStyle(question_template=template)


def test_short_answer_wording():
    short = "What is this? Answer the question using a single word or phrase."
    assert PUBLISHED.short_answer("What is this?") == short
    assert PUBLISHED.short_answer("What is this?", unanswerable=True) == (
        f"{short} Reply unanswerable if information is not present in the image."
    )
    assert MINI.short_answer("what is this?", unanswerable=True) == "what is this?"


def test_words_of_the_templates():
    assert MINI.words == ["A:", "Q:"]
    assert "unanswerable" in PUBLISHED.words


CONVERSATION = [("is there a red dog", "red"), ("how many", "two dog"), (None, "a blue car")]
SNAPSHOT = [13, 20, 3, 60, 25, 12, 4, 5, 6, 14, 20, 5, 1, 13, 20, 17, 18, 14, 20, 19, 6] + [1] * 27
SNAPSHOT_MASK = "." * 11 + "xx" + "." * 6 + "x" * 29


@pytest.mark.parametrize("style", [PUBLISHED, MINI])
@pytest.mark.parametrize("length", [32, 40])
def test_a_conversation_of_one_turn_is_a_training_question_or_caption(
    style: PromptStyle, length: int
) -> None:
    codec = published_codec()
    questions = ["Is there a dog?", "a red dog " * 30, "Is there a cat or a dog?"]
    answers = ["yes", "no " * 40, "a red dog " * 20]
    for question, answer in zip(questions, answers, strict=True):
        expected = training_question(codec, [question], [answer], length, style=style)
        found = training_conversation(codec, [[(question, answer)]], length, style=style)
        assert torch.equal(found.input_ids, expected.input_ids)
        assert torch.equal(found.answer_mask, expected.answer_mask)
        expected = training_caption(codec, [answer], length, style=style)
        found = training_conversation(codec, [[(None, answer)]], length, style=style)
        assert torch.equal(found.input_ids, expected.input_ids)
        assert torch.equal(found.answer_mask, expected.answer_mask)


def test_every_answer_of_a_conversation_is_scored_with_one_end_of_text() -> None:
    codec = word_codec()
    found = training_conversation(codec, [CONVERSATION], 24, style=MINI)
    assert [row.replace("▁", "") for row in shown(codec, found)] == [
        "q: is there a red dog a: [red] [·] q: how many a: [two] [dog] [·] a: [a] [blue] [car] [·] [·] [·] [·]"
    ]
    ids, mask = training_conversation(published_codec(), [CONVERSATION[:2]], 48, style=PUBLISHED)
    assert ids[0].tolist() == SNAPSHOT
    assert "".join("x" if ours else "." for ours in mask[0].tolist()) == SNAPSHOT_MASK


def test_turns_that_do_not_fit_whole_are_left_out() -> None:
    codec = word_codec()
    first = training_conversation(codec, [CONVERSATION[:1]], 32, style=MINI)
    two = training_conversation(codec, [CONVERSATION[:2]], 32, style=MINI)
    for length in range(14, 33):
        ids, mask = training_conversation(codec, [CONVERSATION], length, style=MINI)
        if length < 16:  # the second turn needs 16 tokens with its end
            assert torch.equal(ids, first.input_ids[:, :length])
        elif length < 21:
            assert torch.equal(ids, two.input_ids[:, :length])
            assert torch.equal(mask, two.answer_mask[:, :length])
        else:
            assert codec.decode(ids[0, 17:]) == "a blue car", length
    with pytest.raises(ValueError, match="at least one turn"):
        training_conversation(codec, [[]], 32, style=MINI)


def test_earlier_turns_are_laid_out_as_in_training_and_fill_half_at_most() -> None:
    codec = word_codec()
    turns = [("is there a red dog", "red"), ("how many", "two dog"), ("how many", "three")]
    trained = training_conversation(codec, [turns], 60, style=MINI)
    asked = answer_prompt(codec, ["how many"], 60, style=MINI, history=[turns[:2]])
    given = int((~asked.answer_mask[0]).sum())
    assert torch.equal(asked.input_ids[0, :given], trained.input_ids[0, :given])
    kept = []
    for length in range(14, 60):
        mask = answer_prompt(codec, ["how many"], length, style=MINI, history=[turns[:2]]).answer_mask[0]
        kept.append(int((~mask).sum()))
        assert kept[-1] <= max(4, length // 2)
    assert sorted(kept) == kept
    assert {4, 11, given} == set(kept)


def test_capitals_of_what_is_given_make_no_difference_and_those_of_what_is_written_are_kept() -> None:
    texts = ["What is a dog? a dog", "a photo of Paris", "Q: A:"] * 40
    tokenizer = train_tokenizer(texts, 512)
    codec = TextCodec(tokenizer, tiny_t5(512, d_model=24, num_layers=1, num_heads=2, d_ff=16))
    for make in (
        lambda text: answer_prompt(codec, [text], 24, style=MINI).input_ids,
        lambda text: training_question(codec, [text], ["Paris"], 24, style=MINI).input_ids,
        lambda text: t2i_prompt(codec, [text], 12, style=MINI),
        lambda text: training_prompt(codec, [text], 12, style=MINI),
        lambda text: infill_prompt(codec, [f"Q: {text} A: Paris __"], 24, style=MINI).input_ids,
    ):
        assert torch.equal(make("WHAT is a Dog?"), make("what is a dog?"))
        assert not torch.equal(make("what is a cat?"), make("what is a dog?"))
    for prompt in (
        training_question(codec, ["WHAT?"], ["Paris"], 24, style=MINI),
        infill_prompt(codec, ["Q: WHAT? A: Paris __"], 24, style=MINI),
        training_caption(codec, ["Paris"], 24, style=MINI),
    ):
        assert "Paris" in codec.decode(prompt.input_ids[0])
    asked = "WHAT IS A DOG? " * 9
    with pytest.warns(UserWarning, match=f"has {len(codec.token_ids(asked.lower()))} tokens and only"):
        answer_prompt(codec, [asked], 24, style=MINI)
    published = replace(MINI, lower_case_prompts=False)
    assert not torch.equal(
        t2i_prompt(codec, ["A"], 12, style=published), t2i_prompt(codec, ["a"], 12, style=published)
    )
