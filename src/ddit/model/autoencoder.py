"""A patch autoencoder that is quick on a CPU, with the interface of diffusers' `AutoencoderKL`.

Pixels are folded, by 4 unless told otherwise (48 channels at a quarter of the side), so that every convolution runs at
the latents' own resolution. Encoder and decoder are each a linear map, which starts as the patches' principal
components, plus a small correction that starts at zero: training begins from the best linear code and only improves on
it.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

DOWNSAMPLE = 4
DOWNSAMPLES = (2, 4, 8, 16)
WEIGHTS_STEM = "diffusion_pytorch_model"


def downsample_of(config: Mapping[str, Any]) -> int:
    """Pixels a latent along a side, by the configuration of a `PatchAutoencoder` or of one of diffusers'."""
    if "downsample" in config:
        return config["downsample"]
    widths = (
        config.get("encoder_block_out_channels") or config["block_out_channels"]
    )  # AutoencoderTiny, AutoencoderKL
    return 2 ** (len(widths) - 1)


class DiagonalGaussian(NamedTuple):
    """A normal distribution of latents, mean and log-variance (B, C, h, w) each."""

    mean: Tensor
    logvar: Tensor

    def mode(self) -> Tensor:
        return self.mean

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        draw_on = generator.device if generator else self.mean.device
        noise = torch.randn(self.mean.shape, generator=generator, device=draw_on).to(self.mean)
        return self.mean + (0.5 * self.logvar).exp() * noise


class Encoded(NamedTuple):
    latent_dist: DiagonalGaussian


class Decoded(NamedTuple):
    sample: Tensor


class ResidualBlock(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.conv_in = nn.Conv2d(width, width, 3, padding=1)
        self.conv_out = _zero(nn.Conv2d(width, width, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv_out(F.silu(self.conv_in(F.silu(x))))


class PatchAutoencoder(nn.Module):
    """Pixels (B, 3, H, W) in [-1, 1] <-> latents (B, latent_channels, H/d, W/d), about N(0, 1) per channel.

    `H` and `W` are any multiples of d = `downsample`. The latents leave `encode` normalised per channel and `decode`
    takes them so: `scaling_factor` 1 and `shift_factor` 0 in the configuration tell code written for
    `AutoencoderKL` that nothing is left to scale. The statistics are buffers, set by `fit_normalization` and
    saved with the weights.
    """

    def __init__(
        self,
        latent_channels: int = 8,
        encoder_width: int = 64,
        decoder_width: int = 64,
        decoder_depth: int = 2,
        downsample: int = DOWNSAMPLE,
        scaling_factor: float = 1.0,
        shift_factor: float = 0.0,
    ):
        super().__init__()
        if downsample not in DOWNSAMPLES or (scaling_factor, shift_factor) != (1.0, 0.0):
            raise ValueError(
                f"a PatchAutoencoder has a downsample of {DOWNSAMPLES}, scaling_factor 1 and shift_factor 0, got "
                f"{downsample}, {scaling_factor} and {shift_factor}"
            )
        folded = 3 * downsample**2
        if latent_channels > folded:
            raise ValueError(f"latent_channels {latent_channels} is more than the {folded} values of a patch")
        self.downsample = downsample
        self.config = {
            "latent_channels": latent_channels,
            "encoder_width": encoder_width,
            "decoder_width": decoder_width,
            "decoder_depth": decoder_depth,
            "downsample": downsample,
            "scaling_factor": scaling_factor,
            "shift_factor": shift_factor,
        }
        moments = 2 * latent_channels
        self.encoder_linear = nn.Conv2d(folded, moments, 3, padding=1)
        self.encoder_correction = nn.Sequential(
            nn.Conv2d(folded, encoder_width, 3, padding=1),
            nn.SiLU(),
            _zero(nn.Conv2d(encoder_width, moments, 3, padding=1)),
        )
        self.decoder_linear = nn.Conv2d(latent_channels, folded, 3, padding=1)
        self.decoder_correction = nn.Sequential(
            nn.Conv2d(latent_channels, decoder_width, 3, padding=1),
            *(ResidualBlock(decoder_width) for _ in range(decoder_depth)),
            nn.SiLU(),
            _zero(nn.Conv2d(decoder_width, folded, 3, padding=1)),
        )
        self.latent_mean: Tensor
        self.latent_std: Tensor
        self.register_buffer("latent_mean", torch.zeros(latent_channels))
        self.register_buffer("latent_std", torch.ones(latent_channels))

    @property
    def dtype(self) -> torch.dtype:
        return self.decoder_linear.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.decoder_linear.weight.device

    def encode(self, pixels: Tensor) -> Encoded:
        """The latents' distribution for pixels (B, 3, H, W), as `.latent_dist` with `mode()` and `sample()`."""
        height, width = pixels.shape[-2:]
        d = self.downsample
        if height % d or width % d:
            raise ValueError(f"height and width must be multiples of {d}, got {height} x {width}")
        folded = F.pixel_unshuffle(pixels, d)  # (B, 3 d^2, H/d, W/d)
        mean, logvar = (self.encoder_linear(folded) + self.encoder_correction(folded)).chunk(2, dim=1)
        std = _per_channel(self.latent_std)
        mean = (mean - _per_channel(self.latent_mean)) / std
        return Encoded(DiagonalGaussian(mean, logvar - 2 * std.log()))

    def decode(self, latents: Tensor) -> Decoded:
        """The pixels (B, 3, H, W), about in [-1, 1], of normalised latents (B, C, H/d, W/d)."""
        raw = latents * _per_channel(self.latent_std) + _per_channel(self.latent_mean)
        folded = self.decoder_linear(raw) + self.decoder_correction(raw)
        return Decoded(F.pixel_shuffle(folded, self.downsample))

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes `config.json` and the weights as diffusers does (whose import takes seconds)."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        config = {"_class_name": type(self).__name__, **self.config}
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        save_file(self.state_dict(), folder / f"{WEIGHTS_STEM}.safetensors", metadata={"format": "pt"})

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, dtype: torch.dtype = torch.float32, *, variant: str | None = None
    ) -> Self:
        """Loads such a folder; `variant` as in `diffusion_pytorch_model.bf16.safetensors`.

        Raises `TypeError` for an unknown setting, and what torch and safetensors raise for broken weights.
        """
        folder = Path(folder)
        config = json.loads((folder / "config.json").read_text())
        model = cls(**{key: value for key, value in config.items() if not key.startswith("_")}).to(dtype)
        model.load_state_dict(
            load_file(folder / f"{WEIGHTS_STEM}{f'.{variant}' if variant else ''}.safetensors")
        )
        return model

    @torch.no_grad()
    def init_from_pca(self, pixels: Tensor, *, logvar: float = -6.0) -> None:
        """Makes the linear maps the whitened principal components of the patches of `pixels` (B, 3, H, W).

        The corrections stay as they are (zero in a new model), the encoder's log-variance becomes the
        constant `logvar`.
        """
        mean, values, vectors = _principal_components(pixels, self.downsample)
        channels = self.config["latent_channels"]
        std = values[-channels:].flip(0).clamp(min=1e-8).sqrt()
        basis = vectors[:, -channels:].flip(1)  # (3 d^2, C), largest component first
        project = basis.T / std[:, None]  # (C, 3 d^2)
        _set_linear(self.encoder_linear, project, -project @ mean, rest=logvar)
        _set_linear(self.decoder_linear, basis * std, mean)

    @torch.no_grad()
    def fit_normalization(self, pixels: Tensor, *, batch_size: int = 64) -> None:
        """Sets the per-channel mean and standard deviation such that the latents of `pixels` have 0 and 1."""
        self.latent_mean.zero_()
        self.latent_std.fill_(1.0)
        latents = torch.cat([self.encode(part).latent_dist.mode() for part in pixels.split(batch_size)])
        std, mean = torch.std_mean(latents.float(), dim=(0, 2, 3), correction=0)
        if not bool((std > 0).all()):
            raise ValueError("a latent channel is constant on these pixels: more varied ones are needed")
        self.latent_mean.copy_(mean)
        self.latent_std.copy_(std)


def autoencoder_loss(
    model: PatchAutoencoder,
    pixels: Tensor,
    *,
    kl_weight: float = 1e-4,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Reconstruction of `pixels` (B, 3, H, W) through a sampled latent, plus a little KL to N(0, I).

    The reconstruction term is the mean over the pixels of squared plus a tenth of absolute error; the KL
    term is the mean over the latents' elements. Returns (B,) in float32.
    """
    posterior = model.encode(pixels).latent_dist
    error = (model.decode(posterior.sample(generator)).sample - pixels).float()
    reconstruction = (error.square() + 0.1 * error.abs()).mean(dim=(1, 2, 3))
    mean, logvar = posterior.mean.float(), posterior.logvar.float()
    kl = 0.5 * (mean.square() + logvar.exp() - 1.0 - logvar).mean(dim=(1, 2, 3))
    return reconstruction + kl_weight * kl


def linear_psnr(pixels: Tensor, downsample: int) -> Tensor:
    """PSNR in dB of the best linear codes of `pixels` (B, 3, H, W) in [-1, 1]: entry c - 1 is that of c channels.

    (3 d^2,) float64. The last, a code without loss, is set to 100. A trained autoencoder lies a little above.
    """
    _, values, _ = _principal_components(pixels, downsample)
    left = values.flip(0).cumsum(0).clamp(max=values.sum())
    error = (values.sum() - left).clamp(min=0) / len(values)
    return 10 * (4 / error.clamp(min=4e-10)).log10()


def choose_channels(pixels: Tensor, downsample: int, target_psnr: float) -> int:
    """The fewest channels, of 4, 8, 12, ..., whose linear code of `pixels` comes to `target_psnr` dB."""
    psnr = linear_psnr(pixels, downsample)
    choices = [*range(4, len(psnr), 4), len(psnr)]
    return next((count for count in choices if psnr[count - 1] >= target_psnr), len(psnr))


def choose_downsample(image_size: int) -> int:
    """Pixels a latent along a side for images of `image_size`: the least that leaves 16 to 32 latents a side."""
    if image_size < 64 and image_size % 2 == 0:
        return 2
    fitting = [d for d in DOWNSAMPLES[1:] if image_size % d == 0 and image_size <= 32 * d]
    return fitting[0] if fitting else DOWNSAMPLES[-1]


def _principal_components(pixels: Tensor, downsample: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (D,), variances (D,) in ascending order and directions (D, D) of the folded patches, float64."""
    folded = F.pixel_unshuffle(pixels.double(), downsample)
    patches = folded.permute(0, 2, 3, 1).flatten(0, 2)  # (B*N, D)
    mean = patches.mean(0)
    centred = patches - mean
    values, vectors = torch.linalg.eigh(centred.T @ centred / len(centred))
    return mean, values, vectors


def _per_channel(statistics: Tensor) -> Tensor:
    return statistics.view(1, -1, 1, 1)


def _zero(conv: nn.Conv2d) -> nn.Conv2d:
    """`conv` with all its parameters zero."""
    for parameter in conv.parameters():
        nn.init.zeros_(parameter)
    return conv


def _set_linear(conv: nn.Conv2d, matrix: Tensor, bias: Tensor, *, rest: float = 0.0) -> None:
    """Makes a 3x3 convolution compute `matrix @ x + bias` at each place; further outputs are constantly `rest`."""
    assert conv.bias is not None
    conv.weight.zero_()
    conv.bias.fill_(rest)
    conv.weight[: len(matrix), :, 1, 1] = matrix.to(conv.weight)
    conv.bias[: len(matrix)] = bias.to(conv.bias)
