"""Sampling beside the published pipeline, diffusers' SD3 and an autoregressive decoder; see `__main__.py`."""
