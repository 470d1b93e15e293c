"""The keys of former versions that have another name or another form now."""

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
    """ValueError that names the new key, if `key` is or is within a former one."""
    for old, new in RENAMED.items():
        if key == old or key.startswith(f"{old}."):
            raise ValueError(f"{old} is {new} since 0.2")


def rename_keys(data: dict[str, Any]) -> dict[str, Any]:
    """A run's stored configuration with the names of today."""
    data = {name: dict(value) if isinstance(value, dict) else value for name, value in data.items()}
    _name_sources(data)
    for old, new in RENAMED.items():
        part, name = old.split(".")
        if isinstance(data.get(part), dict) and name in data[part]:
            node, (*way, last) = data, new.split(".")
            for step in way:
                node = node.setdefault(step, {})
            node[last] = data[part].pop(name)
    return data


def _name_sources(data: dict[str, Any]) -> None:
    """The small networks knew the small world alone: its split `train`, and `val` to be judged by."""
    kind = data.get("kind")
    if "world" not in data or kind not in ("autoencoder", "text_encoder"):
        return
    scenes = {"kind": "world", "world": data.pop("world")}
    if kind == "autoencoder":
        data["num_images"] = data.pop("num_scenes", 20_000)
        data["num_pca_images"] = data.pop("num_pca_scenes", 1000)
        data["sources"] = [scenes | {"num_scenes": data["num_images"]}]
        data["held_out"] = [scenes | {"split": "val", "num_scenes": data.get("num_held_out", 256)}]
    else:
        for name, split in (("sources", "train"), ("held_out", "val")):
            texts = scenes | {"split": split, "num_scenes": 2**31}
            data[name] = [texts | {"question_fraction": fraction} for fraction in (0.0, 1.0)]
