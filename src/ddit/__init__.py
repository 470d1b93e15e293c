"""D-DiT: one diffusion transformer that draws pictures from text and reads text from pictures."""

__version__ = "0.1.0"
