"""Weights kept on the CPU except while they are used: for cards that cannot hold all of a model at once.

`visiting` moves a whole part for a while, `offload_blocks` a stack of blocks one by one. diffusers' group offloading
hooks `forward` alone; here a block has several methods, and its weights are copied as one buffer.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

_ALIGNMENT = 256  # bytes
_CONTEXT = "on_device"


@contextmanager
def visiting(module: nn.Module, device: torch.device | str) -> Iterator[None]:
    """Within this context the module is on `device`; afterwards its tensors are those of before, not copies.

    A visit within a visit costs nothing. For frozen weights: what is written to them meanwhile is lost. Blocks that are
    offloaded stay where they are.
    """
    tensors = list(_tensors(module))
    with torch.inference_mode(False):  # whose tensors cannot become another's data
        home = [tensor.data for tensor in tensors]
        for tensor, data in zip(tensors, home, strict=True):
            tensor.data = data.to(device)
    try:
        yield
    finally:
        _put(tensors, home)


def offload_blocks(
    blocks: Sequence[nn.Module], device: torch.device, *, methods: Sequence[str] = ("forward",)
) -> None:
    """From now on the blocks' weights stay on the CPU, and each block's are on `device` while one of `methods` runs.

    There is one block on the device at a time; on CUDA also the one after it, whose copy hides behind the computation.
    For frozen weights. What reaches into a block otherwise does so within `present`.
    """
    offloader = _Offloader(blocks, device)
    for index, block in enumerate(blocks):
        setattr(block, _CONTEXT, functools.partial(offloader.present, index))
        for name in methods:
            setattr(block, name, _within(functools.partial(present, block), getattr(block, name)))


def move_rest(module: nn.Module, device: torch.device) -> None:
    """Moves everything but offloaded blocks."""
    tensors = list(_tensors(module))
    _put(tensors, [tensor.data.to(device) for tensor in tensors])


def is_offloaded(block: nn.Module) -> bool:
    return hasattr(block, _CONTEXT)


def present(block: nn.Module) -> AbstractContextManager[None]:
    """Within this context an offloaded block is on its device; any other block is where it is."""
    return getattr(block, _CONTEXT)() if is_offloaded(block) else nullcontext()


class _Home(NamedTuple):
    """A block's tensors, their values on the CPU, and where each begins in one buffer of `size` bytes.

    `buffer` holds the values where copies from pinned memory overlap with computation (CUDA); elsewhere they stay
    where they were, such as in a mapped file, and take no memory of their own.
    """

    tensors: list[Tensor]
    values: list[Tensor]
    starts: list[int]
    size: int
    buffer: Tensor | None

    @classmethod
    def of(cls, block: nn.Module, *, pinned: bool) -> "_Home":
        tensors, starts, size = list(_tensors(block)), [], 0
        for tensor in tensors:
            starts.append(size)
            size += -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT
        home = cls(tensors, [tensor.data for tensor in tensors], starts, size, None)
        if not pinned:
            return home
        buffer = torch.empty(size, dtype=torch.uint8, pin_memory=True)
        views = home.views(buffer)
        _copy(home.values, views)
        _put(tensors, views)
        return home._replace(values=views, buffer=buffer)

    def fetch(self, device: torch.device) -> Tensor:
        """The values in one buffer on the device."""
        if self.buffer is not None:
            return self.buffer.to(device, non_blocking=True, copy=True)
        buffer = torch.empty(self.size, dtype=torch.uint8, device=device)
        _copy(self.values, self.views(buffer))
        return buffer

    def views(self, buffer: Tensor) -> list[Tensor]:
        """The tensors as parts of a buffer like this one."""
        return [
            buffer[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
            for tensor, start in zip(self.tensors, self.starts, strict=True)
        ]


class _Offloader:
    """The blocks' homes, and copies that are on their way to the device."""

    def __init__(self, blocks: Sequence[nn.Module], device: torch.device) -> None:
        self._device = device
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None
        with torch.inference_mode(False), torch.no_grad():
            self._homes = [_Home.of(block, pinned=device.type == "cuda") for block in blocks]
        self._coming: dict[int, Tensor] = {}

    @contextmanager
    def present(self, index: int) -> Iterator[None]:
        home = self._homes[index]
        buffer = self._coming.pop(index, None)
        self._coming.clear()
        if buffer is None:
            buffer = self._fetch(index)
        if self._copies is not None:
            current = torch.cuda.current_stream(self._device)
            current.wait_stream(self._copies)
            buffer.record_stream(current)
            if index + 1 < len(self._homes):
                self._coming[index + 1] = self._fetch(index + 1)
        with torch.inference_mode(False):
            _put(home.tensors, home.views(buffer))
        del buffer
        try:
            yield
        finally:
            _put(home.tensors, home.values)

    def _fetch(self, index: int) -> Tensor:
        """A block's buffer on the device, where its copy may still be under way."""
        with torch.inference_mode(False), torch.cuda.stream(self._copies):
            return self._homes[index].fetch(self._device)


def _within(
    context: Callable[[], AbstractContextManager[None]], method: Callable[..., Any]
) -> Callable[..., Any]:
    @functools.wraps(method)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        with context():
            return method(*args, **kwargs)

    return wrapped


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    """Parameters and buffers, each once, without those of offloaded blocks below `module`."""
    inner = {id(t) for child in module.modules() if child is not module and is_offloaded(child)
             for t in (*child.parameters(), *child.buffers())}  # fmt: skip
    for tensor in (*module.parameters(), *module.buffers()):
        if id(tensor) not in inner:
            yield tensor


def _copy(values: Sequence[Tensor], into: Sequence[Tensor]) -> None:
    for value, view in zip(values, into, strict=True):
        view.copy_(value)


def _put(tensors: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    with torch.inference_mode(False):
        for tensor, value in zip(tensors, values, strict=True):
            tensor.data = value
