"""A device that is neither a CPU nor CUDA, played by the CPU: it has no float64, and shares no tensors with the CPU.

So are Apple's `mps` and many GPUs under `xpu`. Within `other_device` every operation of PyTorch passes by here, below
autograd, and what such a device would refuse is an error. The import makes the device known to this process: for one
of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

_setup_privateuseone_for_python_backend("other")
DEVICE = torch.device("other")
_BETWEEN_DEVICES = ("aten::_to_copy", "aten::copy_", "aten::_local_scalar_dense")
_INDEXING = ("aten::index.Tensor", "aten::index_put_", "aten::_index_put_impl_", "aten::index_put")


class OnDevice(torch.Tensor):
    """A tensor on the device; `elem` is the CPU's that holds its values."""

    elem: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, elem: torch.Tensor) -> OnDevice:
        if elem.dtype == torch.float64:
            raise TypeError("float64 on the device")
        with torch.inference_mode(False):  # views of tensors from elsewhere need a version
            made = torch.Tensor._make_wrapper_subclass(
                cls, elem.size(), strides=elem.stride(), storage_offset=elem.storage_offset(),
                dtype=elem.dtype, device=DEVICE,
            )  # fmt: skip
        made.elem = elem
        return made

    def tolist(self) -> Any:
        return self.elem.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Operations(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Constructors(TorchFunctionMode):
    """`torch.tensor`, and a list as an index, become tensors of the device in one, of which no operation is seen."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.tensor, torch.as_tensor) and kwargs.get("device") is not None:
            device = kwargs.pop("device")
            return func(*args, **kwargs).to(device)
        if func in (torch.Tensor.__getitem__, torch.Tensor.__setitem__) and isinstance(args[1], list):
            args = (args[0], torch.tensor(args[1]), *args[2:])
        return func(*args, **kwargs)


@contextmanager
def other_device() -> Iterator[torch.device]:
    """While it is on, `DEVICE` can be used."""
    with _Constructors(), _Operations():
        yield DEVICE


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    leaves = tree_flatten((args, kwargs))[0]
    ours = [leaf for leaf in leaves if isinstance(leaf, OnDevice)]
    _check_mixing(func, args, [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)], ours)
    wanted = [leaf.type == DEVICE.type for leaf in leaves if isinstance(leaf, torch.device)]
    is_on_device = wanted[0] if wanted else bool(ours)
    if str(func._schema.name) == "aten::copy_":
        is_on_device = isinstance(args[0], OnDevice)
    given = {id(tensor.elem): tensor for tensor in ours}
    inner, inner_kwargs = tree_map(_on_cpu, (args, kwargs))
    out = func(*inner, **inner_kwargs)

    def placed(value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or not is_on_device:
            return value
        return given[id(value)] if id(value) in given else OnDevice(value)

    return tree_map(placed, out)


def _on_cpu(value: Any) -> Any:
    if isinstance(value, torch.device):
        return torch.device("cpu")
    return value.elem if isinstance(value, OnDevice) else value


def _check_mixing(func: Any, args: Any, tensors: list[torch.Tensor], ours: list[Any]) -> None:
    name = str(func._schema.name)
    others = [tensor for tensor in tensors if not isinstance(tensor, OnDevice) and tensor.dim() > 0]
    if not ours or not others or name in _BETWEEN_DEVICES:
        return
    if name.startswith(_INDEXING) and isinstance(args[0], OnDevice):  # indices may be the CPU's
        values = [leaf for leaf in args[2:] if isinstance(leaf, torch.Tensor)]
        if all(isinstance(value, OnDevice) or value.dim() == 0 for value in values):
            return
    raise RuntimeError(f"{name}: tensors of the CPU and of the device")
