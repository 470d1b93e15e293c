"""The small world: 64 px scenes of emoji sprites, with captions, questions, prompts and a detector that scores."""

from .config import (
    CLASSES,
    COLORS,
    HELD_OUT_CLASSES,
    HELD_OUT_COLORS,
    PRESETS,
    SPLITS,
    STYLES,
    WorldConfig,
    held_out,
)
from .scenes import Group, Scene, SceneObject, make_scene, relative_position, render

__all__ = [
    "CLASSES",
    "COLORS",
    "HELD_OUT_CLASSES",
    "HELD_OUT_COLORS",
    "PRESETS",
    "SPLITS",
    "STYLES",
    "Group",
    "Scene",
    "SceneObject",
    "WorldConfig",
    "held_out",
    "make_scene",
    "relative_position",
    "render",
]
