"""The pipeline: seeds and batches, folders of every layout, limits and bad inputs."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_models import SD3_SIZES, SD35_SIZES, publish, save_sd3_folder, tiny_pipeline

from ddit.model import DualDiT
from ddit.model.folders import load_settings
from ddit.pipeline import Pipeline
from ddit.settings import ImageSampling, ModelSettings, TextSampling, UnmaskingRule

PROMPTS = ["a photo of the red dog", "a cat", "two car"]


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return tiny_pipeline()


@pytest.fixture(scope="module", params=[True, False], ids=["joint", "cached"])
def reader(request: pytest.FixtureRequest) -> Pipeline:
    """Models whose image tokens see the text, and not: the latter read through the cache."""
    return tiny_pipeline(image_attends_text=request.param)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_pipeline().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def noise_images(count: int = 3, side: int = 32) -> list[Image.Image]:
    values = np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    return [Image.fromarray(value) for value in values]


def difference(a: Image.Image, b: Image.Image) -> int:
    return int(np.abs(np.asarray(a, dtype=int) - np.asarray(b, dtype=int)).max())


# --- generating ---


def test_same_seed_same_image(pipeline: Pipeline):
    first, again = pipeline.generate(PROMPTS[0], seed=5), pipeline.generate(PROMPTS[0], seed=5)
    other = pipeline.generate(PROMPTS[0], seed=6)
    assert first[0].size == (32, 32)
    assert difference(first[0], again[0]) == 0
    assert difference(first[0], other[0]) > 10


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_a_batch_of_images_is_the_single_calls(pipeline: Pipeline, batch_size: int):
    batch = pipeline.generate(PROMPTS, seed=5, batch_size=batch_size)
    for i, prompt in enumerate(PROMPTS):
        assert difference(batch[i], pipeline.generate(prompt, seed=5 + i)[0]) <= 1


def test_guidance_and_negative_prompt_matter(pipeline: Pipeline):
    plain = pipeline.generate(PROMPTS[0], guidance_scale=1)[0]
    guided = pipeline.generate(PROMPTS[0], guidance_scale=4)[0]
    negative = pipeline.generate(PROMPTS[0], guidance_scale=4, negative_prompt="a cat")[0]
    assert difference(plain, guided) > 0
    assert difference(guided, negative) > 0


@pytest.mark.parametrize("sampler", ["adams", "dpm"])
def test_a_batch_of_images_is_the_single_calls_with_every_option_on(pipeline: Pipeline, sampler: str):
    options = {
        "num_steps": 6, "guidance_scale": 4.0, "shift": 2.0, "sampler": sampler, "guidance_interval": (0.3, 0.9),
        "guidance_rescale": 0.5, "shift_by_size": True, "width": 24,
    }  # fmt: skip
    batch = pipeline.generate(PROMPTS, seed=5, **options)
    for i, prompt in enumerate(PROMPTS):
        alone = pipeline.generate(prompt, seed=5 + i, **options)[0]
        assert difference(batch[i], alone) <= 1


def test_guidance_that_is_off_is_no_guidance(pipeline: Pipeline):
    unguided = pipeline.generate(PROMPTS, guidance_scale=1)
    for off in ({"guidance_scale": 0.5}, {"guidance_scale": 7.0, "guidance_interval": (0.0, 0.0)}):
        for image, other in zip(unguided, pipeline.generate(PROMPTS, **off), strict=True):
            assert difference(image, other) == 0


def test_a_prompt_is_encoded_once_a_batch_and_the_empty_one_only_for_guidance(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
):
    rows = []
    states = pipeline.text_codec.states
    monkeypatch.setattr(pipeline.text_codec, "states", lambda ids: rows.append(len(ids)) or states(ids))
    pipeline.generate([PROMPTS[0]] * 3 + [PROMPTS[1]])
    pipeline.generate([PROMPTS[0]] * 3 + [PROMPTS[1]], guidance_scale=1)
    assert rows == [3, 2]


def test_the_shift_follows_the_size_where_that_is_asked_for(pipeline: Pipeline):
    by_size = {"shift": 2.0, "shift_by_size": True}
    for side, shift in ((16, 1.0), (32, 2.0)):
        image = pipeline.generate("a cat", height=side, width=side, **by_size)[0]
        shifted = pipeline.generate("a cat", shift=shift, height=side, width=side)[0]
        assert difference(image, shifted) == 0
    assert difference(image, pipeline.generate("a cat", shift=1.0)[0]) > 0


def test_rectangular_images(pipeline: Pipeline):
    assert pipeline.generate("a cat", height=16, width=48)[0].size == (48, 16)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ({"height": 33}, r"height 33 is not a multiple of 8 between 8 and 48: try 32 or 40"),
        ({"width": 4}, r"width 4 is not a multiple of 8"),
        ({"width": 64}, r"width 64 is not .* try 48"),
    ],
)
def test_sizes_that_do_not_fit_name_those_that_do(pipeline: Pipeline, size: dict, message: str):
    with pytest.raises(ValueError, match=message):
        pipeline.generate("a cat", **size)
    with pytest.raises(ValueError, match=message):
        pipeline.caption(noise_images(1), **size)


def test_steps_are_counted_over_all_batches(pipeline: Pipeline):
    seen = []
    pipeline.generate(
        PROMPTS, num_steps=2, batch_size=2, on_step=lambda step: seen.append((step.done, step.total))
    )
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_each_sample_may_have_a_seed_of_its_own(pipeline: Pipeline, reader: Pipeline):
    drawn = pipeline.generate(PROMPTS, seed=[7, 7, 2], batch_size=2)
    assert all(
        difference(image, pipeline.generate(prompt, seed=seed)[0]) <= 1
        for image, prompt, seed in zip(drawn, PROMPTS, [7, 7, 2], strict=True)
    )
    images = noise_images(3)
    written = reader.caption(images, seed=[9, 1, 9])
    assert written == [reader.caption(images[i], seed=seed)[0] for i, seed in enumerate([9, 1, 9])]
    with pytest.raises(ValueError, match="2 seeds do not match 3 samples"):
        pipeline.generate(PROMPTS, seed=[1, 2])


def test_the_last_step_of_sampling_shows_the_image(pipeline: Pipeline):
    steps = []
    images = pipeline.generate(PROMPTS, num_steps=2, batch_size=2, on_step=steps.append)
    assert [step.rows for step in steps] == [range(2), range(2), range(2, 3), range(2, 3)]
    shown = [image for step in (steps[1], steps[3]) for image in pipeline.decode(step.state.latents)]
    assert all(difference(a, b) == 0 for a, b in zip(shown, images, strict=True))
    clean = pipeline.decode(steps[3].state.clean)[0]  # the last step of the published times is a short one
    assert difference(clean, images[2]) <= 8


def test_the_last_step_shows_the_texts_and_their_rows(reader: Pipeline):
    steps = []
    texts = reader.answer(
        noise_images(2), ["what color", "is there a dog"], length=4, batch_size=1, on_step=steps.append
    )
    last = {step.rows[0]: step.state for step in steps}
    shown = [reader.text_codec.decode(last[row].ids[0][last[row].answer_mask[0]]) for row in (0, 1)]
    assert shown == texts


# --- reading ---


def test_a_batch_of_captions_is_the_single_calls(reader: Pipeline):
    images = noise_images()
    batch = reader.caption(images, seed=5, batch_size=2)
    assert batch == [reader.caption(image, seed=5 + i)[0] for i, image in enumerate(images)]
    assert len(set(batch)) > 1


def test_a_batch_of_answers_is_the_single_calls(reader: Pipeline):
    images, questions = noise_images(2), ["what color is the dog?", "is there a cat?"]
    batch = reader.answer(images, questions, seed=5)
    assert batch == [reader.answer(images[i], questions[i], seed=5 + i)[0] for i in range(2)]


def test_one_image_serves_many_questions_and_the_reverse(pipeline: Pipeline):
    image, question = noise_images(1)[0], "is there a cat?"
    assert len(pipeline.answer(image, [question] * 3)) == 3
    assert len(pipeline.answer(noise_images(2), question)) == 2
    with pytest.raises(ValueError, match="2 questions do not match 3 images"):
        pipeline.answer(noise_images(3), [question] * 2)


def test_infilling_keeps_what_is_given(reader: Pipeline):
    filled = reader.infill(noise_images(1), "a ___ dog is the ____ cat")[0]
    assert re.fullmatch(r"a.*\S+ dog is the.*\S+ cat", filled)
    assert len(reader.text_codec.token_ids(filled)) == 7
    filled = reader.infill(noise_images(1), "Q: is there a ___? A: yes")[0]
    assert re.fullmatch(r"Q: is there a.*\S+\? A: yes", filled)


def test_the_image_and_its_absence_matter(reader: Pipeline):
    images = noise_images(2)
    assert len({reader.caption(source)[0] for source in (*images, None)}) == 3
    assert len(reader.caption(None)) == len(reader.answer(None, "is there a cat?")) == 1
    assert len(reader.infill(None, ["a ___", "the ___"])) == 2


def test_tokens_beyond_the_tokenizer_are_never_filled_in():
    pipeline = tiny_pipeline()
    with torch.no_grad():
        pipeline.transformer.text_proj_out.bias[pipeline.text_codec.vocab_size :] = 50.0
    assert pipeline.caption(noise_images(1), num_steps=2)[0]


def test_images_are_fitted_to_the_model(pipeline: Pipeline):
    large = noise_images(1, side=100)
    assert pipeline.caption(large) == pipeline.caption(large[0].resize((32, 32), Image.Resampling.BICUBIC))


# --- limits ---


@pytest.mark.parametrize("text", ["", "  "])
def test_empty_texts_are_refused(pipeline: Pipeline, text: str):
    for call in (pipeline.generate, lambda t: pipeline.answer(None, t), lambda t: pipeline.infill(None, t)):
        with pytest.raises(ValueError, match="is empty"):
            call(text)


def test_nothing_to_do_is_refused(pipeline: Pipeline):
    with pytest.raises(ValueError, match="no text given"):
        pipeline.generate([])
    with pytest.raises(ValueError, match="no images given"):
        pipeline.caption([])


def test_a_long_prompt_is_cut_with_a_warning_that_says_where(pipeline: Pipeline):
    with pytest.warns(UserWarning, match="12 tokens and only 9 fit: cut after 'a dog"):
        images = pipeline.generate("a dog " * 6)
    with pytest.warns(UserWarning, match="cut after"):
        assert difference(images[0], pipeline.generate("a dog " * 9)[0]) == 0


def test_unknown_words_are_named(pipeline: Pipeline):
    with pytest.warns(UserWarning, match="does not know the words 'zebra', 'hat'"):
        pipeline.generate("a zebra is the hat")
    with pytest.warns(UserWarning, match="does not know the word 'hat'"):
        pipeline.infill(None, "the ___ hat")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_steps": 0}, "num_steps must be at least 1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"seed": -1}, "seed must be at least 0"),
    ],
)
def test_numbers_out_of_range(pipeline: Pipeline, options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        pipeline.generate("a cat", **options)
    with pytest.raises(ValueError, match=message):
        pipeline.caption(noise_images(1), **options)


# --- folders ---


def test_what_is_saved_loads_in_turn(pipeline: Pipeline, tmp_path: Path):
    pipeline.save_pretrained(tmp_path / "model")
    loaded = Pipeline.from_pretrained(tmp_path / "model", device="cpu")
    assert loaded.settings == pipeline.settings
    assert difference(loaded.generate("a cat")[0], pipeline.generate("a cat")[0]) == 0
    assert loaded.caption(noise_images()) == pipeline.caption(noise_images())


def test_saving_again_replaces_a_model_folder_and_nothing_else(pipeline: Pipeline, tmp_path: Path):
    for _ in range(2):
        pipeline.save_pretrained(tmp_path / "model", dtype="bfloat16")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert Pipeline.from_pretrained(tmp_path / "model").dtype == torch.float32
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("!")
    with pytest.raises(ValueError, match="is not a model folder: it is left alone"):
        pipeline.save_pretrained(tmp_path / "other")
    assert (tmp_path / "other" / "thesis.txt").read_text() == "!"


def test_saving_does_not_touch_the_live_model(pipeline: Pipeline, tmp_path: Path):
    before = pipeline.image_codec.autoencoder.state_dict()
    pipeline.save_pretrained(tmp_path / "model", dtype="float16")
    assert {tensor.dtype for tensor in before.values()} == {torch.float32}
    assert (
        load_file(tmp_path / "model/vae/diffusion_pytorch_model.safetensors").popitem()[1].dtype
        == torch.float16
    )


@pytest.mark.parametrize("dtype", ["bfloat16", torch.float16])
def test_low_precision(folder: Path, dtype):
    loaded = Pipeline.from_pretrained(folder, dtype=dtype)
    assert loaded.generate("a cat")[0].size == (32, 32)
    assert len(loaded.caption(noise_images(2))) == 2
    assert loaded.to(dtype="float32").dtype == torch.float32


def test_a_folder_laid_out_like_the_published_checkpoints(tmp_path: Path):
    original = publish(tmp_path / "model")
    loaded = Pipeline.from_pretrained(tmp_path / "model")
    assert loaded.settings == ModelSettings(image_size=32)
    assert loaded.style.caption_prefix == ""
    for name, tensor in original.transformer.state_dict().items():
        assert torch.equal(loaded.transformer.state_dict()[name], tensor)
    assert loaded.generate("a cat", num_steps=2)[0].size == (32, 32)
    assert loaded.caption(noise_images(1), num_steps=2)


@pytest.mark.parametrize("variant", ["fp16", "bf16"])
def test_variants_of_every_part(tmp_path: Path, variant: str):
    publish(tmp_path / "model")
    for file in list((tmp_path / "model").rglob("*.safetensors")):
        file.rename(file.with_name(file.name.replace(".safetensors", f".{variant}.safetensors")))
    assert Pipeline.from_pretrained(tmp_path / "model").generate("a cat", num_steps=1)


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_sharded_parts(tmp_path: Path, variant: str | None):
    original = publish(tmp_path / "model")
    for part in ("vae", "text_encoder"):
        for file in (tmp_path / "model" / part).glob("*.safetensors"):
            file.unlink()
    options = {"max_shard_size": "10KB", "variant": variant}
    original.text_codec.encoder.save_pretrained(tmp_path / "model" / "text_encoder", **options)
    original.image_codec.autoencoder.save_pretrained(tmp_path / "model" / "vae", **options)
    assert len(list((tmp_path / "model" / "text_encoder").glob("*.safetensors"))) > 1
    loaded = Pipeline.from_pretrained(tmp_path / "model")
    for name, tensor in original.text_codec.encoder.state_dict().items():
        assert torch.equal(loaded.text_codec.encoder.state_dict()[name], tensor)


@pytest.mark.parametrize("sizes", [SD3_SIZES, SD35_SIZES], ids=["sd3", "sd3.5"])
def test_an_sd3_folder_gives_a_model_to_train(tmp_path: Path, sizes: dict):
    save_sd3_folder(tmp_path, sizes)
    pipeline = Pipeline.from_pretrained(tmp_path)
    assert pipeline.settings == ModelSettings(image_size=32)
    assert pipeline.generate("a cat", num_steps=2)[0].size == (32, 32)
    pipeline.save_pretrained(tmp_path / "ours")
    again = Pipeline.from_pretrained(tmp_path / "ours")
    assert (
        difference(pipeline.generate("a cat", num_steps=2)[0], again.generate("a cat", num_steps=2)[0]) == 0
    )


def test_the_trained_mask_embedding_is_used(folder: Path, tmp_path: Path):
    vector = torch.linspace(-1, 1, 24)
    torch.save(vector, tmp_path / "mask.pth")
    codec = Pipeline.from_pretrained(folder, mask_embedding=tmp_path / "mask.pth").text_codec
    assert torch.equal(codec.encoder.get_input_embeddings().weight[codec.mask_token_id], vector)
    torch.save(torch.zeros(7), tmp_path / "mask.pth")
    with pytest.raises(ValueError, match=r"has shape \(24,\)"):
        Pipeline.from_pretrained(folder, mask_embedding=tmp_path / "mask.pth")


@pytest.mark.parametrize(
    ("part", "stem", "name"),
    [
        ("transformer", "diffusion_pytorch_model", "null_image_embd"),
        ("vae", "diffusion_pytorch_model", "decoder.conv_out.weight"),
        ("text_encoder", "model", "encoder.block.0.layer.0.SelfAttention.q.weight"),
    ],
)
def test_an_incomplete_part_names_what_is_missing(folder: Path, part: str, stem: str, name: str):
    file = folder / part / f"{stem}.safetensors"
    tensors = load_file(file)
    del tensors[name]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"{part}.*1 missing .{name}") as caught:
        Pipeline.from_pretrained(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "path", ["vae/config.json", "tokenizer/tokenizer.json", "text_encoder/model.safetensors"]
)
def test_a_missing_or_broken_file_gets_one_line(folder: Path, path: str):
    (folder / path).write_text("?")
    with pytest.raises(ValueError, match=path.split("/")[0]) as caught:
        Pipeline.from_pretrained(folder)
    assert "\n" not in str(caught.value)
    (folder / path).unlink()
    with pytest.raises(ValueError, match=path.split("/")[0]) as caught:
        Pipeline.from_pretrained(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder", "tokenizer"])
def test_a_missing_part_gets_one_line(folder: Path, part: str):
    (folder / part).rename(folder / "elsewhere")
    with pytest.raises(ValueError, match=f"it has no (folder )?{part}/?") as caught:
        Pipeline.from_pretrained(folder)
    assert "\n" not in str(caught.value)


def test_parts_that_do_not_fit_each_other(pipeline: Pipeline):
    config = pipeline.transformer.config
    for change, message in {
        ("text_dim", 40): "wants text states of 40, the encoder has 24",
        ("in_channels", 8): "wants 8 latent channels",
        ("vocab_size", 5): "the text head has 5 rows",
    }.items():
        other = DualDiT(replace(config, **dict([change])))
        with pytest.raises(ValueError, match=message):
            Pipeline(other, pipeline.image_codec, pipeline.text_codec, pipeline.settings)


def test_settings_are_kept(folder: Path, pipeline: Pipeline):
    settings = replace(
        pipeline.settings,
        image_sampling=ImageSampling(sampler="dpm", guidance_interval=(0.2, 0.9), shift_by_size=True),
        text_sampling=TextSampling(rule=UnmaskingRule(order="entropy", edit_above=0.8), text_refresh=2),
        answer_length=4,
    )
    Pipeline(pipeline.transformer, pipeline.image_codec, pipeline.text_codec, settings).save_pretrained(
        folder
    )
    assert load_settings(folder) == settings


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "float8"}, "unknown dtype 'float8': use float32, bfloat16 or float16"),
        ({"dtype": torch.int64}, "unknown dtype 'torch.int64'"),
        ({"device": "tpu9"}, "device 'tpu9' cannot be used here"),
        ({"device": "meta"}, "device 'meta' cannot be used here"),
    ],
)
def test_a_wrong_dtype_or_device_gets_one_line(folder: Path, options: dict, message: str):
    with pytest.raises(ValueError, match=message) as caught:
        Pipeline.from_pretrained(folder, **options)
    assert "\n" not in str(caught.value)
