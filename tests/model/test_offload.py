"""Weights that visit a device: there while they are used, the very same tensors afterwards.

Without a second device at hand, another dtype stands for it: the weights are copied all the same.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from text_models import word_codec
from tiny_models import tiny_pipeline
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef

from ddit.model import encoders, offload
from ddit.model.offload import visiting
from ddit.pipeline import Pipeline

ELSEWHERE: Any = torch.float64


def places(module: nn.Module) -> dict[str, int]:
    return {name: tensor.data_ptr() for name, tensor in module.state_dict().items()}


@pytest.mark.parametrize("fails", [False, True])
def test_the_weights_are_elsewhere_in_a_visit_and_the_same_tensors_after_it(fails: bool) -> None:
    encoder = word_codec().encoder
    before, names = places(encoder), set(encoder.state_dict())
    try:
        with torch.inference_mode(), visiting(encoder, ELSEWHERE):
            assert {tensor.dtype for tensor in encoder.state_dict().values()} == {ELSEWHERE}
            assert encoder(input_ids=torch.arange(6)[None]).last_hidden_state.dtype == ELSEWHERE
            within = places(encoder)
            with visiting(encoder, ELSEWHERE):
                assert places(encoder) == within
            assert places(encoder) == within
            if fails:
                raise KeyError
    except KeyError:
        assert fails
    assert not set(before.values()) & set(within.values())
    assert places(encoder) == before
    assert set(encoder.state_dict()) == names


def test_offloaded_parts_are_away_but_while_they_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline, there, log = tiny_pipeline(), [], []

    @contextmanager
    def recorded(module: nn.Module, device: torch.device) -> Iterator[None]:
        assert device == pipeline.device
        there.append(module)
        with visiting(module, device):
            yield
        there.remove(module)

    monkeypatch.setattr(encoders, "visiting", recorded)
    parts = {"text": pipeline.text_codec.encoder, "images": pipeline.image_codec.autoencoder}
    layers = (
        [*parts["text"].modules()][-1],
        [*parts["images"].modules()][-1],
        pipeline.transformer.pos_embed,
    )
    for name, layer in zip((*parts, "blocks"), layers, strict=True):
        layer.register_forward_pre_hook(lambda *_, name=name: log.append((name, list(there))))
    whole = pipeline.generate("a cat")
    log.clear()
    pipeline.text_codec.offload_device = pipeline.image_codec.offload_device = pipeline.device
    offloaded = pipeline.generate("a cat")
    assert offloaded[0].tobytes() == whole[0].tobytes()
    assert {name for name, _ in log} == {"text", "images", "blocks"}
    assert all(present == ([parts[name]] if name in parts else []) for name, present in log)


def test_an_encoder_in_8_bit_is_offloaded_too(tmp_path: Path) -> None:
    tiny_pipeline().save_pretrained(tmp_path / "model")
    whole = Pipeline.from_pretrained(tmp_path / "model")
    small = Pipeline.from_pretrained(tmp_path / "model", int8=True, offload=True)
    assert any(tensor.dtype == torch.int8 for tensor in small.text_codec.encoder.state_dict().values())
    assert small.text_codec.offload_device == small.image_codec.offload_device == small.device
    ids = torch.arange(1, 9)[None]
    states = whole.text_codec.states(ids)
    error = (small.text_codec.states(ids) - states).norm() / states.norm()
    assert 0 < error < 0.05
    assert small.generate("a cat")[0].size == (32, 32)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu_offloaded_parts_take_no_memory_between_uses(tmp_path: Path) -> None:
    tiny_pipeline().save_pretrained(tmp_path / "model")
    pipeline = Pipeline.from_pretrained(tmp_path / "model", device="cuda", offload=True)
    assert pipeline.generate("a cat")[0].size == (32, 32)
    assert pipeline.caption(None)
    assert pipeline.text_codec.device.type == pipeline.image_codec.device.type == "cpu"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch's compiler warns of its own parts
def test_compiled_blocks_generate_the_same_images() -> None:
    pipeline = tiny_pipeline()
    plain = pipeline.generate(["a cat", "two car"])
    for image, other in zip(plain, pipeline.compile().generate(["a cat", "two car"]), strict=True):
        assert max(abs(a - b) for a, b in zip(image.tobytes(), other.tobytes(), strict=True)) <= 1


@pytest.fixture
def most_copies(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How many copies of blocks there were at once. Without a second device, they stand for what is on it."""
    alive: list[StorageWeakRef] = []
    fetch, most = offload._Offloader._fetch, {"made": 0, "at once": 0}

    def counted(self: Any, index: int) -> torch.Tensor:
        buffer = fetch(self, index)
        alive[:] = [copy for copy in alive if not copy.expired()]
        alive.append(StorageWeakRef(buffer.untyped_storage()))
        most.update({"made": most["made"] + 1, "at once": max(most["at once"], len(alive))})
        return buffer

    monkeypatch.setattr(offload._Offloader, "_fetch", counted)
    return most


@pytest.mark.parametrize("image_attends_text", [True, False])
def test_offloaded_blocks_are_on_the_device_one_at_a_time(
    tmp_path: Path, most_copies: dict[str, int], image_attends_text: bool
) -> None:
    tiny_pipeline(image_attends_text=image_attends_text, depth=3).save_pretrained(tmp_path / "model")
    whole = Pipeline.from_pretrained(tmp_path / "model")
    pipeline = Pipeline.from_pretrained(tmp_path / "model", offload_blocks=True)
    image = whole.generate("a cat", num_steps=2)[0]
    assert most_copies["made"] == 0
    assert pipeline.generate("a cat", num_steps=2)[0].tobytes() == image.tobytes()
    assert most_copies == {
        "made": 1 + 2 * 3,
        "at once": 1,
    }  # T5's only block, then the transformer's in each step
    refreshed: dict[str, Any] = {"image_refresh": 2, "text_refresh": 2}
    for options in ({}, refreshed):
        assert pipeline.caption(image, **options) == whole.caption(image, **options)
    assert most_copies["at once"] == 1


def test_offloaded_blocks_write_texts_in_blocks(tmp_path: Path, most_copies: dict[str, int]) -> None:
    tiny_pipeline(image_attends_text=False, text_block_size=3).save_pretrained(tmp_path / "model")
    whole, pipeline = (
        Pipeline.from_pretrained(tmp_path / "model", offload_blocks=offloaded) for offloaded in (False, True)
    )
    assert pipeline.caption(None, length=10) == whole.caption(None, length=10)
    assert most_copies["at once"] == 1


def test_offloaded_blocks_keep_their_weights_and_stay_where_they_are(tmp_path: Path) -> None:
    tiny_pipeline().save_pretrained(tmp_path / "model")
    whole = Pipeline.from_pretrained(tmp_path / "model")
    pipeline = Pipeline.from_pretrained(tmp_path / "model", offload_blocks=True, int8=True)
    pipeline.generate("a cat", num_steps=1)
    for name, tensor in whole.transformer.state_dict().items():
        assert torch.equal(pipeline.transformer.state_dict()[name], tensor), name
    assert pipeline.to("cpu") is pipeline
    with pytest.raises(ValueError, match="offloaded blocks cannot be moved"):
        pipeline.to(torch.bfloat16)
    with pytest.raises(ValueError, match="offloaded blocks cannot be compiled"):
        Pipeline.from_pretrained(tmp_path / "model", offload_blocks=True, compile=True)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu_offloaded_blocks_give_the_same_images_in_less_memory(tmp_path: Path) -> None:
    tiny_pipeline(hidden_size=512, depth=12, num_heads=8).save_pretrained(tmp_path / "model")
    images, peaks = [], []
    for offload_blocks in (False, True):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        pipeline = Pipeline.from_pretrained(tmp_path / "model", device="cuda", offload_blocks=offload_blocks)
        images.append(pipeline.generate("a cat", num_steps=4)[0].tobytes())
        peaks.append(torch.cuda.max_memory_allocated() - before)
        del pipeline
    assert images[0] == images[1]
    assert peaks[1] < peaks[0] / 2
