"""Embeddings of the MM-DiT's inputs: the image's time, and patches of latents with their positions.

B batch, C H W latent channels, height, width, N image tokens, D hidden size.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NUM_FREQUENCIES = 256
TIMESTEP_SCALE = 1000.0


class TimestepEmbedder(nn.Module):
    """Sinusoid of 1000 t, then a two-layer MLP."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(NUM_FREQUENCIES, dim)
        self.linear_2 = nn.Linear(dim, dim)

    def forward(self, t: Tensor) -> Tensor:
        half = NUM_FREQUENCIES // 2
        steps = torch.arange(half, dtype=torch.float32, device=t.device)
        angles = (
            TIMESTEP_SCALE * t.float()[:, None] * torch.exp(-math.log(10000.0) / half * steps)
        )  # (B, half)
        sinusoid = torch.cat([angles.cos(), angles.sin()], dim=-1).to(self.linear_1.weight.dtype)
        return self.linear_2(F.silu(self.linear_1(sinusoid)))  # (B, D)


class TimeEmbed(nn.Module):
    """Holds the timestep embedder under its published name; SD3's pooled-text half is dropped."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.timestep_embedder = TimestepEmbedder(dim)

    def forward(self, t: Tensor) -> Tensor:
        return self.timestep_embedder(t)


def is_meta() -> bool:
    """Whether what is made here has no data, so that nothing need be computed.

    Arithmetic on the meta device imports torch's decompositions and its compiler, at the start of every command.
    """
    return torch.get_default_device().type == "meta"


def sincos_positions(dim: int, table_size: int, base_size: int) -> Tensor:
    """Two-dimensional sin-cos position table of SD3, (1, table_size**2, dim), float32.

    The first half of the channels encodes the column, the second the row; `base_size` tokens span the
    unit-spaced grid.
    """
    if is_meta():
        return torch.empty(1, table_size**2, dim)
    coordinates = torch.arange(table_size, dtype=torch.float64) * base_size / table_size
    frequencies = 10000.0 ** (-torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    angles = coordinates[:, None] * frequencies  # (table_size, dim / 4)
    axis = torch.cat([angles.sin(), angles.cos()], dim=1)  # (table_size, dim / 2)
    columns = axis[None, :, :].expand(table_size, -1, -1)
    rows = axis[:, None, :].expand(-1, table_size, -1)
    return torch.cat([columns, rows], dim=-1).reshape(1, table_size**2, dim).float()


def position_sinusoids(positions: Tensor, dim: int) -> Tensor:
    """Sines and cosines of positions (B, S) in a text of any length: (B, S, dim) in float32."""
    half = dim // 2
    frequencies = 10000.0 ** (-torch.arange(half, device=positions.device) / half)
    angles = positions.float()[..., None] * frequencies
    return F.pad(torch.cat([angles.sin(), angles.cos()], dim=-1), (0, dim - 2 * half))


class ConvLayer(nn.Module):
    """A 3x3 convolution, normalised, through SiLU; added to its input where the widths agree."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm = nn.GroupNorm(math.gcd(8, out_channels), out_channels)

    def forward(self, x: Tensor) -> Tensor:
        y = F.silu(self.norm(self.conv(x)))
        return x + y if x.shape == y.shape else y


def make_stem(in_channels: int, widths: Sequence[int], dim: int, patch_size: int) -> nn.Sequential:
    """Two convolutions a width, the side halved between two widths, then patches: latents -> (B, D, rows, columns)."""
    layers: list[nn.Module] = []
    for index, width in enumerate(widths):
        if index:
            layers.append(nn.AvgPool2d(2))
        layers += [ConvLayer(in_channels, width), ConvLayer(width, width)]
        in_channels = width
    rest = patch_size // 2 ** (len(widths) - 1)
    return nn.Sequential(*layers, nn.Conv2d(in_channels, dim, rest, rest))


class Refiner(nn.Module):
    """What is added to a velocity, zero at first: latents and features of the tokens (n, F, H, W) -> (n, C, H, W)."""

    def __init__(self, in_channels: int, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(ConvLayer(in_channels + width, width), ConvLayer(width, width))
        self.out = nn.Conv2d(width, in_channels, 3, padding=1)

    def forward(self, latents: Tensor, features: Tensor) -> Tensor:
        both = torch.cat([latents, features], dim=1).contiguous(memory_format=torch.channels_last)
        return self.out(self.layers(both))


class PatchEmbed(nn.Module):
    """Latents to image tokens, plus the central crop of a sin-cos position table.

    stem: widths of a convolutional stem, whose tokens are added to the linear ones; none, as in SD3.
    """

    pos_embed: Tensor

    def __init__(
        self,
        dim: int,
        in_channels: int,
        patch_size: int,
        table_size: int,
        sample_size: int,
        stem: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.patch_size, self.table_size = patch_size, table_size
        self.proj = nn.Conv2d(in_channels, dim, patch_size, patch_size)
        self.stem = make_stem(in_channels, stem, dim, patch_size) if stem else None
        self.register_buffer("pos_embed", sincos_positions(dim, table_size, sample_size // patch_size))

    def forward(self, latents: Tensor) -> Tensor:
        height, width = latents.shape[-2:]
        if height % self.patch_size or width % self.patch_size:
            raise ValueError(
                f"latents of {height}x{width} are not divisible by the patch size {self.patch_size}"
            )
        rows, columns = height // self.patch_size, width // self.patch_size
        if max(rows, columns) > self.table_size:
            raise ValueError(f"{rows}x{columns} tokens exceed the position table of {self.table_size} a side")
        tokens = self.proj(latents)
        if self.stem is not None:  # beside the patches, which alone keep every detail of what is to be drawn
            tokens = tokens + self.stem(latents.contiguous(memory_format=torch.channels_last))
        tokens = tokens.flatten(2).transpose(1, 2)  # (B, N, D)
        top, left = (self.table_size - rows) // 2, (self.table_size - columns) // 2
        table = self.pos_embed.view(self.table_size, self.table_size, -1)
        positions = table[top : top + rows, left : left + columns].reshape(1, rows * columns, -1)
        return tokens + positions.to(tokens.dtype)
