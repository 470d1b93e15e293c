"""Images and texts of any sources for the small networks, and what is set aside of them."""

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from PIL import Image
from text_models import with_encoder, word_codec

from ddit.config.data import JsonData, LlavaData, WorldData
from ddit.config.runs import AutoencoderRun, TextEncoderRun, from_json, to_json
from ddit.model.autoencoder import PatchAutoencoder
from ddit.model.encoders import ImageCodec, TextCodec
from ddit.model.small_text import train_tokenizer
from ddit.prompts import MINI
from ddit.recipes import build
from ddit.train.log import read_log
from ddit.train.small_data import Texts, open_parts, read_pixels
from ddit.train.small_nets import train_autoencoder, train_text_encoder

NUM = 60


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of many sizes with captions in German and with emoji, one of them broken; and questions about them."""
    folder = tmp_path_factory.mktemp("own")
    rng = np.random.default_rng(0)
    captions, talks = [], []
    for number in range(NUM):
        height, width = rng.integers(20, 90, 2)
        colour = rng.integers(0, 255, 3, dtype=np.uint8)
        pixels = np.broadcast_to(colour, (height, width, 3)).copy()
        pixels[: height // 2] //= 2
        Image.fromarray(pixels).save(folder / f"{number}.png")
        captions.append({"image_path": f"{number}.png", "caption": f"Ein schönes Bild 🐶 Nummer {number}."})
        talk = [
            {"from": "human", "value": "<image>\nWhat colour is it?"},
            {"from": "gpt", "value": f"colour {number}"},
        ]
        talks.append({"id": str(number), "image": f"{number}.png", "conversations": talk})
    (folder / "7.png").write_bytes(b"not an image")
    (folder / "captions.json").write_text(json.dumps(captions))
    (folder / "talks.json").write_text(json.dumps(talks))
    return folder


@pytest.fixture
def sources(folder: Path) -> tuple[JsonData, LlavaData]:
    return JsonData(str(folder / "captions.json")), LlavaData(str(folder / "talks.json"), images=str(folder))


def codec_of(*texts: str) -> TextCodec:
    return with_encoder(train_tokenizer([*texts] * 3, 512))


def test_a_part_is_set_aside_and_never_trained_on(sources: tuple[JsonData, LlavaData]) -> None:
    trained, judged = open_parts([replace(sources[0], held_out_share=0.2)], ())
    names = [{part.name(index) for index in range(len(part))} for ((part, _),) in (trained, judged)]
    assert 4 <= len(names[1]) <= 20
    assert len(names[0] | names[1]) == len(names[0]) + len(names[1]) == NUM
    named, _ = open_parts(sources[:1], sources[1:])
    assert len(named[0][0]) == NUM


def test_images_are_fitted_or_cut_and_corrupt_ones_left_out(sources: tuple[JsonData, LlavaData]) -> None:
    opened, _ = open_parts(sources, sources)
    whole = read_pixels(opened, 1000, image_size=32)
    assert whole.shape == (2 * (NUM - 1), 3, 32, 32)
    assert whole.dtype == torch.uint8
    parts = read_pixels(opened, 20, image_size=32, crop_size=16, seed=1)
    assert parts.shape[1:] == (3, 16, 16)
    assert 18 <= len(parts) <= 20


def test_no_readable_image_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text('[{"image_path": "none.png", "caption": "x"}]')
    opened, _ = open_parts([JsonData(str(tmp_path / "c.json"))], [WorldData()])
    with pytest.raises(ValueError, match=r"no image can be read: .*none\.png"):
        read_pixels(opened, 5, image_size=32)
    with pytest.raises(ValueError, match=r"of the 1 samples .* none is in the part"):
        open_parts([JsonData(str(tmp_path / "c.json"))], [])


def test_a_third_are_prompts_and_sources_without_captions_give_none(
    sources: tuple[JsonData, LlavaData],
) -> None:
    codec = codec_of("Ein schönes Bild 🐶 Nummer 1.", "Q: What colour is it? A: colour 1")
    opened, _ = open_parts(sources, sources)
    rows = Texts(opened, MINI).batch(codec, 40, seed=0, step=0, size=12)
    shown = [codec.decode(row) for row in rows]
    assert sum(text.startswith("ein schönes bild 🐶") for text in shown) == 4
    assert sum(text.startswith("A: Ein") for text in shown) == 4
    assert sum(text.startswith("Q: what colour is it? A: colour") for text in shown) == 4
    alone = Texts(opened[1:], MINI).batch(codec, 40, seed=0, step=0, size=12)
    assert all(codec.decode(row).startswith("Q:") for row in alone)


def test_sources_are_mixed_by_weight(folder: Path) -> None:
    captions = JsonData(str(folder / "captions.json"), weight=0.75)
    talks = LlavaData(str(folder / "talks.json"), images=str(folder), weight=0.25)
    codec = codec_of("Ein schönes Bild 🐶 Nummer 1.", "Q: What colour is it? A: colour 1")
    opened, _ = open_parts((captions, talks), (captions,))
    texts = Texts(opened, MINI)
    rows = [row for step in range(20) for row in texts.batch(codec, 40, seed=0, step=step, size=30)[10:]]
    share = sum(codec.decode(row).startswith("Q:") for row in rows) / len(rows)
    assert share == pytest.approx(0.25, abs=0.02)


def test_the_tokenizer_is_learnt_from_captions_questions_and_templates(
    sources: tuple[JsonData, LlavaData],
) -> None:
    opened, _ = open_parts(sources, sources)
    found = list(Texts(opened, MINI).iterate(1000))
    assert "ein schönes bild 🐶 nummer 3." in found
    assert "A: Ein schönes Bild 🐶 Nummer 3." in found
    assert "Q: what colour is it? A: colour 3" in found


def test_the_worlds_texts_are_those_of_its_scenes() -> None:
    """The small model's own data: a caption as a prompt, a complete caption, a question; scenes drawn by number."""
    run = build("mini-text", "runs")
    assert isinstance(run, TextEncoderRun)
    trained, _ = open_parts(run.sources, run.held_out)
    rows = Texts(trained, MINI).batch(word_codec(), 24, seed=0, step=3, size=6)
    rng = random.Random((3 << 24) ^ 0)
    source = trained[0][0]
    caption = source.sample(rng.randrange(2**31), rng, i2t=False, with_image=False).caption
    assert caption is not None
    assert rows[0].tolist() == word_codec().tokenize([caption], 24)[0].tolist()


def test_an_autoencoder_that_falls_apart_goes_back_to_its_best(
    sources: tuple[JsonData, LlavaData], tmp_path: Path
) -> None:
    run = AutoencoderRun(
        str(tmp_path / "vae"), sources[:1], image_size=16, downsample=8, latent_channels=12, batch_size=2,
        max_steps=400, warmup_steps=0, lr=3.0,
    )  # fmt: skip
    train_autoencoder(run)
    events = read_log(tmp_path / "vae" / "log.jsonl")
    assert not events[-2]["psnr"] >= events[0]["psnr"] - 1
    assert events[-1]["back_to_psnr"] == events[0]["psnr"]


def test_both_networks_are_trained_on_files(
    sources: tuple[JsonData, LlavaData], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vae = AutoencoderRun(
        str(tmp_path / "vae"), sources[:1], image_size=32, crop_size=16, downsample=8, latent_channels=12,
        target_psnr=90.0, batch_size=4, max_steps=2,
    )  # fmt: skip
    codec = ImageCodec.from_pretrained(train_autoencoder(vae) / "export" / "vae")
    assert (codec.downsample, codec.channels) == (8, 12)
    assert isinstance(codec.autoencoder, PatchAutoencoder)
    assert "the target of 90 dB is missed" in capsys.readouterr().err
    text = TextEncoderRun(
        str(tmp_path / "text"), sources, num_pieces=512, hidden_size=24, depth=1, num_heads=2, mlp_size=32,
        batch_size=6, max_steps=2, num_held_out=6, warmup_steps=1,
    )  # fmt: skip
    export = train_text_encoder(text) / "export"
    texts = TextCodec.from_pretrained(export / "tokenizer", export / "text_encoder")
    assert texts.width == 24
    assert texts.decode(texts.token_ids("Ein schönes Bild 🐶")) == "Ein schönes Bild 🐶"
    assert texts.unknown_words("ein Bild xylophon") == ["xylophon"]
    for run in (vae, text):
        assert from_json(to_json(run)) == run


def test_the_text_encoder_learns_in_bfloat16_what_it_learns_in_float32(
    sources: tuple[JsonData, LlavaData], tmp_path: Path
) -> None:
    def held_out(dtype: Literal["float32", "bfloat16"]) -> float:
        run = TextEncoderRun(
            str(tmp_path / dtype), sources, num_pieces=512, hidden_size=24, depth=1, num_heads=2, mlp_size=32,
            batch_size=8, max_steps=30, num_held_out=6, warmup_steps=1, lr=1e-2, compute_dtype=dtype,
        )  # fmt: skip
        log = train_text_encoder(run) / "log.jsonl"
        return [line for line in map(json.loads, log.read_text().splitlines()) if "held_out" in line][-1][
            "held_out"
        ]

    losses = {"float32": held_out("float32"), "bfloat16": held_out("bfloat16")}
    assert losses["bfloat16"] != losses["float32"]
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.05)


@pytest.mark.parametrize("stage", ["vae", "text"])
def test_a_run_that_knew_the_world_alone_is_still_read(stage: str) -> None:
    run = build(f"mini-{stage}", "runs")
    assert isinstance(run, AutoencoderRun | TextEncoderRun)
    old = json.loads(to_json(run))
    new = ["sources", "held_out", "image_size", "crop_size", "downsample", "latent_channels", "target_psnr"]
    new += ["num_pieces", "num_tokenizer_texts", "hidden_size", "depth", "num_heads", "mlp_size"]
    old["world"] = old["sources"][0]["world"]
    old |= {
        before: old[now]
        for before, now in (("num_scenes", "num_images"), ("num_pca_scenes", "num_pca_images"))
        if now in old
    }
    old = {key: value for key, value in old.items() if key not in (*new, "num_images", "num_pca_images")}
    assert from_json(json.dumps(old)) == run
