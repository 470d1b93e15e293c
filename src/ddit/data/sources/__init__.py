"""Sources of training samples, one file for each form."""

from __future__ import annotations

from ddit.config.data import (
    HuggingFaceData,
    JsonData,
    LlavaData,
    QuestionsData,
    SourceConfig,
    TarData,
    WorldData,
)
from ddit.data.samples import LeftOut, Source

from .huggingface import HuggingFaceSource
from .json_list import JsonSource
from .llava import LlavaSource
from .questions import QuestionsSource
from .tar import TarSource
from .world import WorldSource

__all__ = [
    "HuggingFaceSource",
    "JsonSource",
    "LlavaSource",
    "QuestionsSource",
    "TarSource",
    "WorldSource",
    "find_left_out",
    "open_source",
]


def open_source(cfg: SourceConfig) -> Source:
    """The source of a configuration; `ValueError` in one line if what it names is missing or of another form."""
    match cfg:
        case WorldData():
            return WorldSource(cfg)
        case JsonData():
            return JsonSource(cfg)
        case TarData():
            return TarSource(cfg)
        case LlavaData():
            return LlavaSource(cfg)
        case QuestionsData():
            return QuestionsSource(cfg)
        case HuggingFaceData():
            return HuggingFaceSource(cfg)


def find_left_out(source: Source) -> dict[str, LeftOut]:
    """What a source holds and no sample of it uses, by cause: only a tar has such."""
    return source.left_out() if isinstance(source, TarSource) else {}
