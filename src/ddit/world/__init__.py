"""The small world: 64 px scenes of emoji, their captions and questions, and a detector that judges."""

from .captions import Description, caption, caption_is_right, captions, parse_caption, vocabulary
from .detector import DetectorNet, detect, load_detector
from .geneval import TAGS, Detection, Prompt, geneval_prompts, judge
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
    held_out,
)
from .questions import QUESTION_KINDS, UNANSWERABLE, Question, question
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
    "DetectorNet",
    "Group",
    "Prompt",
    "Question",
    "Scene",
    "SceneObject",
    "WorldConfig",
    "caption",
    "caption_is_right",
    "captions",
    "detect",
    "enlarge",
    "geneval_prompts",
    "held_out",
    "judge",
    "load_detector",
    "make_scene",
    "parse_caption",
    "question",
    "relative_position",
    "render",
    "vocabulary",
]
