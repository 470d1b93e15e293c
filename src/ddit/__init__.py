"""D-DiT: one diffusion transformer that generates images from text and text from images."""

__version__ = "0.2.0"
