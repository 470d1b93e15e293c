"""The small world: 64 px scenes of emoji, with captions, questions and prompts. Without torch; see `world.detector`."""

from .captions import (
    Description,
    caption_is_right,
    list_captions,
    list_vocabulary,
    make_caption,
    parse_caption,
)
from .geneval import TAGS, Detection, Prompt, check_detections, find_faults, make_prompts
from .presets import (
    CLASSES,
    COLORS,
    HELD_OUT_CLASSES,
    HELD_OUT_COLORS,
    PRESETS,
    SPLITS,
    STYLES,
    WorldConfig,
    enlarge,
    is_held_out,
)
from .questions import QUESTION_KINDS, UNANSWERABLE, Question, make_question
from .scenes import Group, Scene, SceneObject, make_scene, relative_position, render

__all__ = [
    "CLASSES",
    "COLORS",
    "HELD_OUT_CLASSES",
    "HELD_OUT_COLORS",
    "PRESETS",
    "QUESTION_KINDS",
    "SPLITS",
    "STYLES",
    "TAGS",
    "UNANSWERABLE",
    "Description",
    "Detection",
    "Group",
    "Prompt",
    "Question",
    "Scene",
    "SceneObject",
    "WorldConfig",
    "caption_is_right",
    "check_detections",
    "enlarge",
    "find_faults",
    "is_held_out",
    "list_captions",
    "list_vocabulary",
    "make_caption",
    "make_prompts",
    "make_question",
    "make_scene",
    "parse_caption",
    "relative_position",
    "render",
]
