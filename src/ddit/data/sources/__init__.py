"""Sources of training samples, one file for each form."""

from __future__ import annotations

from ddit.config.data import (
    FoldersData,
    HuggingFaceData,
    JsonData,
    LlavaData,
    QuestionsData,
    SourceConfig,
    TarData,
    TextData,
    WideData,
    WorldData,
)
from ddit.data.parts import PartSource
from ddit.data.samples import LeftOut, Source

from .folders import FoldersSource
from .huggingface import HuggingFaceSource
from .json_list import JsonSource
from .llava import LlavaSource
from .questions import QuestionsSource
from .tar import TarSource
from .text import TextSource
from .wide import WideSource
from .world import WorldSource

__all__ = [
    "FoldersSource",
    "HuggingFaceSource",
    "JsonSource",
    "LlavaSource",
    "QuestionsSource",
    "TarSource",
    "TextSource",
    "WideSource",
    "WorldSource",
    "find_left_out",
    "open_source",
]


def open_source(cfg: SourceConfig) -> Source:
    """The source of a configuration, or its part of one.

    Raises:
        ValueError: in one line, if what it names is missing or of another form, or the part has no sample.
    """
    source = _open_whole(cfg)
    return source if cfg.part == "all" else PartSource(source, cfg)


def _open_whole(cfg: SourceConfig) -> Source:
    match cfg:
        case WorldData():
            return WorldSource(cfg)
        case WideData():
            return WideSource(cfg)
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
        case FoldersData():
            return FoldersSource(cfg)
        case TextData():
            return TextSource(cfg)


def find_left_out(source: Source) -> dict[str, LeftOut]:
    """What a source holds and no sample of it uses, by cause: only tars and folders of images have such."""
    whole = source.source if isinstance(source, PartSource) else source
    return whole.left_out() if isinstance(whole, TarSource | FoldersSource) else {}
