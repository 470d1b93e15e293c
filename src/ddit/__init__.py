"""D-DiT: one diffusion transformer that generates images from text and text from images."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ddit.pipeline import Pipeline

__all__ = ["Pipeline", "__version__"]

__version__ = "0.2.0"


def __getattr__(name: str) -> Any:
    """`ddit.Pipeline`, which loads torch, only where it is asked for."""
    if name == "Pipeline":
        from ddit.pipeline import Pipeline

        return Pipeline
    raise AttributeError(f"module 'ddit' has no attribute '{name}'", name=name)
