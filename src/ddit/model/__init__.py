"""The two-headed MM-DiT with its encoders, weights and folders. `DualDiT` is imported when it is first asked for."""

from typing import TYPE_CHECKING, Any

from ddit.model.config import DualDiTConfig

if TYPE_CHECKING:
    from ddit.model.dual_dit import DualDiT

__all__ = ["DualDiT", "DualDiTConfig"]


def __getattr__(name: str) -> Any:
    if name == "DualDiT":  # needs torch, the configuration does not
        from ddit.model.dual_dit import DualDiT

        return DualDiT
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
