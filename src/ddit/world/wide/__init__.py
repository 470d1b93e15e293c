"""The wide world: free scenes of 48 classes in three styles on five kinds of ground, and a grammar of many wordings.

Without torch. A fifth of the wordings is held out of training, beside pairs of classes and of class and colour.
"""

from .descriptions import make_description, make_plain_description
from .dialogues import Exchange, make_dialogue, make_request, make_small_talk
from .geneval import WIDE_TAGS, make_prompts, say_plainly
from .presets import WIDE_CLASSES, WIDE_PRESETS, WideConfig, is_held_out
from .prompts import WIDE_PROMPT_FORMS, make_caption, make_prompt
from .questions import WIDE_QUESTION_KINDS, Asked, make_question
from .scenes import WideObject, WideScene, make_scene, render
from .statements import DescriptionScore, caption_is_right, read_statements, score_description
from .wordings import Part, Wording, list_wordings

__all__ = [
    "WIDE_CLASSES",
    "WIDE_PRESETS",
    "WIDE_PROMPT_FORMS",
    "WIDE_QUESTION_KINDS",
    "WIDE_TAGS",
    "Asked",
    "DescriptionScore",
    "Exchange",
    "Part",
    "WideConfig",
    "WideObject",
    "WideScene",
    "Wording",
    "caption_is_right",
    "is_held_out",
    "list_wordings",
    "make_caption",
    "make_description",
    "make_dialogue",
    "make_plain_description",
    "make_prompt",
    "make_prompts",
    "make_question",
    "make_request",
    "make_scene",
    "make_small_talk",
    "read_statements",
    "render",
    "say_plainly",
    "score_description",
]
