import pytest
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from ddit.model.autoencoder import (
    PatchAutoencoder,
    autoencoder_loss,
    choose_channels,
    choose_downsample,
    linear_psnr,
)


def smooth_pixels(n: int, height: int = 32, width: int = 32, *, seed: int = 0) -> Tensor:
    """Images (n, 3, height, width) in [-1, 1] whose patches have a few strong components."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n, 3, height // 4 + 1, width // 4 + 1, generator=generator) * 2 - 1
    return torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear", align_corners=True)


@pytest.fixture
def model() -> PatchAutoencoder:
    torch.manual_seed(0)
    model = PatchAutoencoder()
    model.init_from_pca(smooth_pixels(64))
    return model


@pytest.mark.parametrize(("height", "width"), [(64, 64), (32, 16), (4, 40)])
def test_shapes_of_rectangular_images(model, height, width):
    pixels = torch.rand(2, 3, height, width)
    latents = model.encode(pixels).latent_dist.mode()
    assert latents.shape == (2, 8, height // 4, width // 4)
    assert model.decode(latents).sample.shape == pixels.shape


def test_a_side_that_is_no_multiple_of_4_is_named(model):
    with pytest.raises(ValueError, match="30 x 32"):
        model.encode(torch.zeros(1, 3, 30, 32))


def test_pca_start_is_the_best_linear_code_of_its_patches(model):
    pixels = smooth_pixels(64)
    decoded = model.decode(model.encode(pixels).latent_dist.mode()).sample
    folded = torch.nn.functional.pixel_unshuffle(pixels.double(), 4).permute(0, 2, 3, 1).flatten(0, 2)
    unexplained = torch.linalg.eigvalsh(torch.cov(folded.T, correction=0))[:-8].sum() / 48
    assert (decoded - pixels).square().mean().item() == pytest.approx(unexplained.item(), rel=1e-3)


def test_pca_start_with_all_components_is_exact():
    model = PatchAutoencoder(latent_channels=48)
    pixels = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    model.init_from_pca(pixels)
    decoded = model.decode(model.encode(pixels).latent_dist.mode()).sample
    torch.testing.assert_close(decoded, pixels, atol=1e-4, rtol=0)


def test_normalised_latents_have_mean_0_and_deviation_1_and_decode_to_the_same(model):
    for parameter in model.encoder_correction.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    pixels = smooth_pixels(48, seed=1)
    posterior = model.encode(pixels).latent_dist
    before, spread = model.decode(posterior.mode()).sample, posterior.logvar.exp().sqrt()
    model.fit_normalization(pixels, batch_size=20)
    posterior = model.encode(pixels).latent_dist
    std, mean = torch.std_mean(posterior.mode(), dim=(0, 2, 3), correction=0)
    torch.testing.assert_close(mean, torch.zeros(8), atol=1e-4, rtol=0)
    torch.testing.assert_close(std, torch.ones(8), atol=1e-4, rtol=0)
    torch.testing.assert_close(model.decode(posterior.mode()).sample, before, atol=1e-4, rtol=0)
    std = posterior.logvar.exp().sqrt()
    torch.testing.assert_close(std * model.latent_std.view(1, -1, 1, 1), spread)


def test_constant_images_cannot_be_normalised():
    with pytest.raises(ValueError, match="constant"):
        PatchAutoencoder().fit_normalization(torch.zeros(2, 3, 16, 16))


def test_round_trip_through_a_folder_keeps_weights_and_statistics(model, tmp_path):
    pixels = smooth_pixels(8, seed=2)
    model.fit_normalization(pixels)
    model.save_pretrained(tmp_path / "vae")
    assert {p.name for p in (tmp_path / "vae").iterdir()} == {
        "config.json",
        "diffusion_pytorch_model.safetensors",
    }
    loaded = PatchAutoencoder.from_pretrained(tmp_path / "vae")
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert loaded.config["latent_channels"] == 8
    assert (loaded.config["scaling_factor"], loaded.config["shift_factor"]) == (1.0, 0.0)
    assert loaded.config["downsample"] == 4


def test_loss_repeats_with_a_generator_and_falls_when_trained(model):
    pixels = smooth_pixels(16, seed=3)

    def loss() -> Tensor:
        return autoencoder_loss(model, pixels, kl_weight=1e-4, generator=torch.Generator().manual_seed(1))

    first = loss()
    assert first.shape == (16,)
    assert first.dtype == torch.float32
    assert torch.equal(first, loss())
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(20):
        optimizer.zero_grad()
        loss().mean().backward()
        optimizer.step()
    assert loss().mean() < 0.8 * first.mean()


def test_kl_term_is_that_of_the_normal_distribution(model):
    pixels = smooth_pixels(2)
    posterior = model.encode(pixels).latent_dist
    oracle = torch.distributions.Normal(posterior.mean, (0.5 * posterior.logvar).exp())
    kl = torch.distributions.kl_divergence(oracle, torch.distributions.Normal(0.0, 1.0)).mean(dim=(1, 2, 3))
    losses = [
        autoencoder_loss(model, pixels, kl_weight=weight, generator=torch.Generator().manual_seed(0))
        for weight in (0.0, 1.0)
    ]
    torch.testing.assert_close(losses[1] - losses[0], kl)


def test_unsupported_geometry_is_refused():
    with pytest.raises(ValueError, match=r"downsample of \(2, 4, 8, 16\)"):
        PatchAutoencoder(downsample=5)
    with pytest.raises(ValueError, match="latent_channels 13 is more than the 12 values of a patch"):
        PatchAutoencoder(13, downsample=2)


def _smooth_images() -> torch.Tensor:
    coarse = torch.rand(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(coarse, scale_factor=4, mode="bilinear") * 2 - 1


@pytest.mark.parametrize("downsample", [2, 8, 16])
def test_any_downsampling_starts_at_the_linear_code(downsample):
    """The PSNR of a new model on the images it was started from is the one that the components promise."""
    images = _smooth_images()
    model = PatchAutoencoder(6, downsample=downsample)
    model.init_from_pca(images)
    latents = model.encode(images).latent_dist.mode()
    assert latents.shape == (16, 6, 32 // downsample, 32 // downsample)
    error = (model.decode(latents).sample - images).square().mean()
    expected = linear_psnr(images, downsample)[5]
    torch.testing.assert_close(10 * (4 / error.double()).log10(), expected, atol=0.02, rtol=0)


def test_channels_are_the_fewest_that_come_to_the_target():
    images = _smooth_images()
    psnr = linear_psnr(images, 8)
    assert len(psnr) == 192
    assert bool((psnr.diff() >= -1e-6).all())
    count = choose_channels(images, 8, 30.0)
    assert count % 4 == 0
    assert psnr[count - 1] >= 30 > psnr[count - 5]
    assert choose_channels(torch.rand(4, 3, 16, 16), 4, 99.0) == 48


def test_downsampling_follows_the_size_of_the_images():
    assert [choose_downsample(size) for size in (32, 64, 128, 256, 512, 1024)] == [2, 4, 4, 8, 16, 16]


def test_it_speaks_like_diffusers_autoencoder(model):
    theirs = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=8)
    pixels = torch.rand(1, 3, 16, 16)
    for autoencoder in (model, theirs):
        posterior = autoencoder.encode(pixels).latent_dist
        assert posterior.sample(torch.Generator().manual_seed(0)).shape == posterior.mode().shape
        assert autoencoder.decode(posterior.mode()).sample.shape == pixels.shape
