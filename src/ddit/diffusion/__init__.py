"""The two diffusion processes: flow matching of images, masked diffusion of text. Torch and callables only."""
