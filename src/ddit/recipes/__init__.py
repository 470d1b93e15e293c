"""Named runs: functions that return the configuration of one stage. Stages differ in numbers and data. Needs no torch.

Four families. `sd3-medium` and `sd3.5-medium` are the paper's stages with its values. `mini` has them on the small
world: autoencoder and text encoder, the teacher, the pool of latents, then image-only training (SD3's part) and the
stages proper. `tiny` is `mini` at a size that takes seconds a stage. `wide` is such a chain on the wide world.
"""

from collections.abc import Sequence
from pathlib import Path

from ddit.config.overrides import override_run
from ddit.config.runs import RunConfig
from ddit.errors import near_misses
from ddit.recipes.mini import EXTRA_STAGES, MINI_STAGES, make_tiny
from ddit.recipes.sd3 import SD3_STAGES, SIZES
from ddit.recipes.wide import WIDE_STAGES
from ddit.world import PRESETS


def list_recipes() -> list[str]:
    """Every single stage, big sizes first."""
    big = [f"{size}-{stage}" for size in SIZES for stage in SD3_STAGES]
    return [*big, *(f"mini-{stage}" for stage in MINI_STAGES), *(f"wide-{stage}" for stage in WIDE_STAGES)]


def build(name: str, root: str | Path, *, world: str = "fixed") -> RunConfig:
    """The configuration of stage `name` under folder `root`; "tiny-..." is the seconds-long variant of "mini-...".

    Raises `ValueError` for an unknown stage or an unknown preset of the world.
    """
    for size in SIZES.values():
        stage = name.removeprefix(f"{size.name}-")
        if stage != name and stage in SD3_STAGES:
            return SD3_STAGES[stage](Path(root), size)
    family, _, stage = name.partition("-")
    if family == "wide" and stage in WIDE_STAGES:
        return WIDE_STAGES[stage](Path(root))
    make = MINI_STAGES.get(stage)
    if family not in ("mini", "tiny") or make is None:
        known = ["mini", "tiny", "wide", *list_recipes()]
        near = near_misses(name, [*known, *(f"tiny-{stage}" for stage in MINI_STAGES)])
        raise ValueError(
            f"unknown recipe {name!r}; known: {', '.join(known)} (and tiny-... of each mini-...){near}"
        )
    if world not in PRESETS:
        raise ValueError(f"unknown world {world!r}; known: {', '.join(PRESETS)}{near_misses(world, PRESETS)}")
    config = make(Path(root), PRESETS[world])
    return make_tiny(config) if family == "tiny" else config


def plan_runs(
    name: str, root: str | Path, *, world: str = "fixed", overrides: Sequence[str] = ()
) -> list[RunConfig]:
    """The configurations of a stage or of a whole chain under folder `root`.

    Raises:
        ValueError: in one line, for an unknown name, a wrong override ("optimizer.lr=1e-3"), or overrides of a chain.
    """
    names = list_stages(name)
    if overrides and len(names) > 1:
        raise ValueError(f"overrides need one stage, but {name!r} stands for {', '.join(names)}")
    return [override_run(build(stage, root, world=world), overrides) for stage in names]


def list_stages(name: str) -> list[str]:
    """The stages that `name` stands for: "mini", "tiny" and "wide" are whole chains, anything else is one stage."""
    if name in ("mini", "tiny"):
        return [f"{name}-{stage}" for stage in MINI_STAGES if stage not in EXTRA_STAGES]
    return [f"wide-{stage}" for stage in WIDE_STAGES] if name == "wide" else [name]
