"""From your own images and texts to a model, by one call or `ddit fit`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ddit.fit.run import fit

__all__ = ["fit"]


def __getattr__(name: str) -> Any:
    """`fit`, which loads torch, only where it is asked for."""
    if name == "fit":
        from ddit.fit.run import fit

        return fit
    raise AttributeError(f"module 'ddit.fit' has no attribute '{name}'", name=name)
