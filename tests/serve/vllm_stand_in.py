"""A thin stand-in for vLLM, which needs CUDA: enough to run vLLM-Omni's loading of models and its requests on the CPU.

What it has to do is written here; everything else of vLLM is an empty class by the name that was asked for.
"""

import importlib
import json
import logging
import sys
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any, TypedDict

import torch


class Named(type):
    """Of classes whose attributes, such as an enumeration's, are classes by their name."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        value = Named(name, (Empty,), {})
        setattr(cls, name, value)
        return value


class Empty(metaclass=Named):
    """Stands for a class of vLLM that is only imported, or made and passed on."""

    def __init__(self, *args: Any, **options: Any) -> None:
        for name, value in options.items():
            setattr(self, name, value)

    def __class_getitem__(cls, item: Any) -> Any:
        return cls

    def __enter__(self) -> "Empty":
        return self

    def __exit__(self, *fault: object) -> None:
        pass


class Prompt(TypedDict):
    prompt: str


class Registry:
    """Of model classes by name, "module:class" or (module, class)."""

    def __init__(self, models: dict[str, Any]) -> None:
        self.models = models

    def register_model(self, name: str, place: str) -> None:
        module, _, class_name = place.partition(":")
        self.models[name] = Lazy(module_name=module, class_name=class_name)

    def get_supported_archs(self) -> set[str]:
        return set(self.models)

    def _try_load_model_cls(self, name: str) -> Any:
        found = self.models.get(name)
        return found and getattr(importlib.import_module(found.module_name), found.class_name)


class Lazy(Empty):
    module_name: str
    class_name: str


class Logger(logging.Logger):
    info_once = logging.Logger.info
    warning_once = logging.Logger.warning
    debug_once = logging.Logger.debug


@contextmanager
def default_dtype(dtype: torch.dtype) -> Any:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def read_json(name: str, folder: str, revision: Any = None) -> Any:
    path = Path(folder) / name
    return json.loads(path.read_text()) if path.is_file() else None


def qualified(name: str) -> Any:
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


def config(cls: Any = None, **options: Any) -> Any:
    from pydantic.dataclasses import dataclass

    decorate = dataclass(config={"arbitrary_types_allowed": True})
    return decorate if cls is None else decorate(cls)


PACKAGES = {"vllm", "modelscope", "cache_dit", "prettytable", "omegaconf"}
LEFT_OUT = ("vllm_omni.distributed", "vllm_omni.worker")
"""Parts of vLLM-Omni that only models in several stages need: they import much more of vLLM."""

OWN = {
    "vllm.__version__": "0.0.dev",
    "vllm.__version_tuple__": (0, 0, "dev"),
    "vllm.envs.VLLM_PLUGINS": None,
    "vllm.plugins.load_general_plugins": lambda: None,
    "vllm.logger.init_logger": Logger,
    "vllm.config.utils.config": config,
    "vllm.config.config": config,
    "vllm.model_executor.models.registry._ModelRegistry": Registry,
    "vllm.model_executor.models.registry._VLLM_MODELS": {},
    "vllm.model_executor.models.registry._LazyRegisteredModel": Lazy,
    "vllm.utils.torch_utils.set_default_torch_dtype": default_dtype,
    "vllm.transformers_utils.config.get_hf_file_to_dict": read_json,
    "vllm.utils.import_utils.resolve_obj_by_qualname": qualified,
    "vllm.utils.network_utils.get_open_port": lambda: 1,
    "vllm.inputs.TextPrompt": Prompt,
    "vllm.inputs.TokensPrompt": Prompt,
    "vllm.inputs.EmbedsPrompt": Prompt,
    "vllm.inputs.engine.TokensInput": Prompt,
    "vllm.model_executor.layers.quantization.QUANTIZATION_METHODS": [],
}


class StandIn(MetaPathFinder, Loader):
    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        is_ours = name.partition(".")[0] in PACKAGES or name.startswith(LEFT_OUT)
        return ModuleSpec(name, self, is_package=True) if is_ours else None

    def exec_module(self, module: ModuleType) -> None:
        def get(name: str) -> Any:
            full = f"{module.__name__}.{name}"
            if name.startswith("__") and full not in OWN:
                raise AttributeError(name)
            value = OWN[full] if full in OWN else Named(name, (Empty,), {"__module__": module.__name__})
            setattr(module, name, value)
            return value

        module.__getattr__ = get  # pyright: ignore[reportAttributeAccessIssue]


def install(folder: str) -> None:
    """Makes `vllm` this stand-in, and `vllm_omni` the package in `folder` without its __init__, which patches vLLM."""
    sys.meta_path.insert(0, StandIn())
    package = ModuleType("vllm_omni")
    package.__path__ = [str(Path(folder) / "vllm_omni")]
    sys.modules["vllm_omni"] = package
