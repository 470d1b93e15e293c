"""Weights kept on the CPU except while they are used: frozen parts that a small card cannot hold all at once."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def visiting(module: nn.Module, device: torch.device | str) -> Iterator[None]:
    """Within this context the module is on `device`; afterwards its tensors are those of before, not copies.

    A visit within a visit costs nothing. For frozen weights: what is written to them meanwhile is lost.
    """
    tensors = [*module.parameters(), *module.buffers()]
    with torch.inference_mode(False):  # whose tensors cannot become another's data
        home = [tensor.data for tensor in tensors]
        for tensor, data in zip(tensors, home, strict=True):
            tensor.data = data.to(device)
    try:
        yield
    finally:
        with torch.inference_mode(False):
            for tensor, data in zip(tensors, home, strict=True):
                tensor.data = data
