"""Judges of drawings: whether they show what their prompts ask for, and how well.

A single net is soon deceived by what is trained to please it. So several may have to agree, a second net may check what
the first one finds (`ddit.world.wide.checked`), and with `likeness` a right drawing is worth more the more its objects
look like true sprites, which no net decides. None of the nets may be one that evaluation uses.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from ddit.config.runs import RewardConfig
from ddit.world import PRESETS, Prompt
from ddit.world.detector import DetectorNet, detect, load_detector
from ddit.world.geneval import Detection, check_detections
from ddit.world.wide import WIDE_PRESETS
from ddit.world.wide.checked import detect_checked, load_check
from ddit.world.wide.matching import match_sprites

_THRESHOLD = 0.3
"""Score from which a net counts an object."""
_WORTHLESS, _WORTH_ONE = 14.0, 20.0
"""PSNR, in dB, of objects that are worth nothing and one; the best are worth two."""


class Judge:
    """The detectors of a reward, and what they give for drawings.

    Raises:
        ValueError: in one line, for a detector that is missing or does not know the prompts' classes.
    """

    def __init__(self, cfg: RewardConfig, device: torch.device) -> None:
        self.likeness = cfg.likeness
        self.nets = [_load(path, cfg).to(device) for path in cfg.detectors]
        self.check = load_check(_find("check", cfg.check)).to(device) if cfg.check else None

    def rewards(self, prompts: Sequence[Prompt], images: np.ndarray) -> list[float]:
        """The reward of each image (B, H, W, 3), uint8: 0 for those that some net finds wrong.

        Likeness is that of what the first net finds.
        """
        seen = [detect(images, net=net, threshold=_THRESHOLD) for net in self.nets]
        if self.check is not None:
            seen.append(detect_checked(images, net=self.nets[0], check=self.check, threshold=_THRESHOLD))
        rewards = [
            min(reward_of(prompt, found) for found in views)
            for prompt, *views in zip(prompts, *seen, strict=True)
        ]
        if not self.likeness:
            return rewards
        right = [found if reward else [] for found, reward in zip(seen[0], rewards, strict=True)]
        matched = match_sprites(images, right)
        return [reward * worth_of(values) for reward, values in zip(rewards, matched, strict=True)]


def reward_of(prompt: Prompt, found: Sequence[Detection]) -> float:
    """0 for a picture that does not show what is asked for, or something else beside it; else the score of the object
    that the detector is least sure of.
    """
    asked = {clause["class"] for clause in prompt.include}
    if not check_detections(prompt, list(found)) or any(one.class_name not in asked for one in found):
        return 0.0
    return min(one.score for one in found)


def worth_of(matched: Sequence[float]) -> float:
    """By how much the likeness of a picture's objects, in dB, multiplies its reward: from 0.05 to 2."""
    if not matched:
        return 1.0
    return float(np.clip((np.mean(matched) - _WORTHLESS) / (_WORTH_ONE - _WORTHLESS), 0.05, 2.0))


def _find(setting: str, file: str) -> Path:
    path = Path(file)
    if not path.is_file():
        raise ValueError(f"reward.{setting}: '{path}' is not there; ddit train wide-judge makes one")
    return path


def _load(file: str, cfg: RewardConfig) -> DetectorNet:
    path = _find("detectors", file)
    net = load_detector(path, classes=None)
    for name, share in cfg.presets.items():
        unknown = set({**PRESETS, **WIDE_PRESETS}[name].classes) - set(net.classes)
        if share and unknown:
            raise ValueError(f"reward.detectors: '{path}' does not know {min(unknown)}, of the preset {name}")
    return net
