"""The keys of version 0.1 that have another name now."""

from typing import Any

RENAMED = {
    "data.draw": "data.t2i",
    "data.read": "data.i2t",
    "data.draw_length": "data.t2i_length",
    "data.read_length": "data.i2t_length",
    "data.max_broken_share": "data.max_corrupt_share",
    "objective.read_fraction": "objective.i2t_fraction",
    "report.num_sheet": "report.num_grid",
    "report.sheet_every": "report.grid_every",
    "report.sheet_steps": "report.grid_sampling.num_steps",
    "report.sheet_guidance": "report.grid_sampling.guidance_scale",
    "report.sheet_shift": "report.grid_sampling.shift",
}


def refuse_old_key(key: str) -> None:
    """ValueError that names the new key, if `key` is or is within one of version 0.1."""
    for old, new in RENAMED.items():
        if key == old or key.startswith(f"{old}."):
            raise ValueError(f"{old} is {new} since 0.2")


def rename_keys(data: dict[str, Any]) -> dict[str, Any]:
    """A run's stored configuration with the names of today."""
    data = {name: dict(value) if isinstance(value, dict) else value for name, value in data.items()}
    for old, new in RENAMED.items():
        part, name = old.split(".")
        if isinstance(data.get(part), dict) and name in data[part]:
            node, (*way, last) = data, new.split(".")
            for step in way:
                node = node.setdefault(step, {})
            node[last] = data[part].pop(name)
    return data
