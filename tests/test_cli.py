"""The command line: every verb on a tiny model, and one clear line for every mistake."""

import io
import json
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import tqdm
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_models import tiny_pipeline

import ddit
from ddit.cli import main
from ddit.commands import progress
from ddit.images import read_image
from ddit.model.adapters import add_adapters, save_adapters
from ddit.pipeline import Pipeline

REFERENCE = Path(__file__).parent / "data" / "tiny"


class Result(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def fault(self) -> str:
        """The one line that a failed command says."""
        assert self.code == 1
        assert self.out == ""
        lines = [line for line in self.err.splitlines() if line.startswith("ddit: ")]
        assert len(lines) == 1
        assert "Traceback" not in self.err
        return lines[0].removeprefix("ddit: ")


Run = Callable[..., Result]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    monkeypatch.delenv("DDIT_DEBUG", raising=False)

    def call(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["ddit", *map(str, arguments)])
        capsys.readouterr()
        code = None
        with warnings.catch_warnings():
            warnings.simplefilter("default", UserWarning)
            try:
                main()
            except SystemExit as end:
                code = end.code
        said = capsys.readouterr()
        return Result(code if isinstance(code, int) else 0, said.out, said.err)

    return call


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image.png"
    Image.new("RGB", (40, 30), "red").save(path)
    return path


# --- the verbs ---


def test_generate_into_a_folder(run: Run, model: Path, tmp_path: Path):
    result = run(
        "generate", "a red dog", "a Cat?", "-o", tmp_path / "new" / "out", "--seed", 7, "--model", model
    )
    assert result.code == 0
    paths = [Path(line) for line in result.out.splitlines()]
    assert [path.name for path in paths] == ["a-red-dog-7.png", "a-cat-8.png"]
    assert {read_image(path).size for path in paths} == {(256, 256)}


def test_generate_one_file_as_json(run: Run, model: Path, tmp_path: Path):
    path = tmp_path / "dog.jpg"
    result = run("generate", "a dog", "-o", path, "--upscale", 2, "--json", "--num-steps", 1, "-m", model)
    assert json.loads(result.out) == {"prompt": "a dog", "seed": 0, "path": str(path)}
    assert read_image(path).size == (64, 64)


def test_generate_is_seeded_sample_by_sample(run: Run, model: Path, tmp_path: Path):
    run("generate", "a dog", "-n", 2, "-o", tmp_path / "two", "-m", model)
    run("generate", "a dog", "--seed", 1, "-o", tmp_path / "one", "-m", model)
    second, alone = (
        np.asarray(read_image(tmp_path / name / "a-dog-1.png"), dtype=int) for name in ("two", "one")
    )
    assert np.abs(second - alone).max() <= 2


def test_generate_takes_a_sampler_by_name_and_its_settings(run: Run, model: Path, tmp_path: Path):
    def generated(*options: object) -> np.ndarray:
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.png"
        assert run("generate", "a cat", "--model", model, "-o", path, *options).code == 0
        return np.asarray(Image.open(path))

    own, paper = generated(), generated("--sampler", "paper")
    assert not np.array_equal(own, paper)
    published = ("--num-steps", 28, "--guidance-scale", 7, "--shift", 3, "--guidance-interval", 0, 1)
    assert np.array_equal(generated(*published, "--guidance-rescale", 0, "--no-shift-by-size"), paper)
    for option in (("--sampler", "adams"), ("--guidance-interval", 0.4, 0.8), ("--guidance-rescale", 0.7)):
        assert not np.array_equal(generated(*option), own)


def test_generate_with_little_memory(run: Run, model: Path, tmp_path: Path):
    for name, options in (("whole", ()), ("offloaded", ("--offload",)), ("int8", ("--int8", "--offload"))):
        assert run("generate", "a cat", "-m", model, "-o", tmp_path / f"{name}.png", *options).code == 0
    whole, offloaded, int8 = ((tmp_path / f"{n}.png").read_bytes() for n in ("whole", "offloaded", "int8"))
    assert offloaded == whole
    assert int8 != whole


def test_inpaint_with_a_mask_or_a_box_gives_the_same_for_each_prompt(run: Run, model: Path, tmp_path: Path):
    generator = np.random.default_rng(0)
    Image.fromarray(generator.integers(0, 256, (128, 128, 3), dtype=np.uint8)).save(tmp_path / "in.png")
    mask = Image.new("L", (128, 128))
    mask.paste(255, (64, 0, 128, 128))
    mask.save(tmp_path / "mask.png")
    command = ("inpaint", tmp_path / "in.png", "a red dog", "a cat", "-m", model, "--upscale", 1, "--seed", 7)
    result = run(*command, "--mask", tmp_path / "mask.png", "-o", tmp_path / "masked")
    assert [Path(line).name for line in result.out.splitlines()] == ["a-red-dog-7.png", "a-cat-8.png"]
    run(*command, "--box", 64, 0, 128, 128, "-o", tmp_path / "boxed", "--json")
    for name in ("a-red-dog-7.png", "a-cat-8.png"):
        masked, boxed = (np.asarray(Image.open(tmp_path / form / name)) for form in ("masked", "boxed"))
        assert masked.shape == (32, 32, 3)
        assert np.array_equal(masked, boxed)
    whole = run(*command, "--box", 0, 0, 128, 128, "-o", tmp_path / "whole")
    generated = run(
        "generate", "a red dog", "-m", model, "--upscale", 1, "--seed", 7, "-o", tmp_path / "generated"
    )
    first, alone = (np.asarray(Image.open(r.out.splitlines()[0]), dtype=int) for r in (whole, generated))
    assert np.abs(first - alone).max() <= 2
    assert (
        np.abs(first - np.asarray(Image.open(tmp_path / "boxed" / "a-red-dog-7.png"), dtype=int)).max() > 10
    )


def test_vary_by_strength_with_its_steps_in_a_strip(run: Run, model: Path, image: Path, tmp_path: Path):
    command = ("vary", image, "a red dog", "-m", model, "--json", "--num-steps", 3)
    film = tmp_path / "film.png"
    result = run(*command, "-o", tmp_path / "weak.png", "--strength", 0.001, "--watch", film)
    assert json.loads(result.out) == {
        "image": str(image), "strength": 0.001, "prompt": "a red dog", "seed": 0, "path": str(tmp_path / "weak.png")
    }  # fmt: skip
    assert read_image(film).width > 256
    run(*command, "-o", tmp_path / "weaker.png", "--strength", 0.0001)
    run(*command, "-o", tmp_path / "strong.png", "--strength", 1)
    weak, weaker, strong = (
        np.asarray(Image.open(tmp_path / f"{name}.png"), dtype=int) for name in ("weak", "weaker", "strong")
    )
    assert np.abs(weak - weaker).mean() < np.abs(strong - weaker).mean() / 4


def test_the_input_image_is_not_overwritten(run: Run, image: Path, tmp_path: Path):
    mask = ("--box", 0, 0, 8, 8)
    for command in (("inpaint", image, "a dog", *mask), ("vary", image, "a dog")):
        fault = run(*command, "-o", image, "--model", "never/loaded").fault
        assert fault == f"'{image}' is the input image: give another --output"


def test_generate_with_a_grid_and_the_steps_on_the_way(run: Run, model: Path, tmp_path: Path):
    words = ("generate", "a red dog", "a cat", "-m", model, "-o", tmp_path / "out", "--batch-size", 1,
             "--overwrite")  # fmt: skip
    plain = [Path(line).read_bytes() for line in run(*words).out.splitlines()]
    grid, film, animation = tmp_path / "new" / "grid.png", tmp_path / "film.png", tmp_path / "film.gif"
    result = run(*words, "--grid", grid, "--watch", film, "--num-steps", 3)
    assert [Path(line).read_bytes() for line in result.out.splitlines()] == plain
    assert read_image(grid).size[0] == 2 * (128 + 8) + 8
    assert read_image(film).size[0] == 3 * (128 + 8) + 8
    assert run(*words, "--watch", animation, "--num-steps", 4).code == 0
    with Image.open(animation) as image:
        assert getattr(image, "n_frames", 1) == 4


def test_captions_in_a_grid_and_step_by_step(run: Run, model: Path, image: Path, tmp_path: Path):
    grid = tmp_path / "grid.png"
    result = run("caption", image, "-m", model, "--grid", grid, "--watch")
    assert read_image(grid).size[0] == 120 + 16  # 40 pixels, enlarged three times
    steps = [line for line in result.err.splitlines() if line.split()[:1] and line.split()[0].isdecimal()]
    assert steps[-1].endswith(result.out.strip())
    filled = run("infill", image, "the ___ is red", "-m", model, "--watch")
    assert filled.err.rstrip().endswith(filled.out.strip())


def test_info(run: Run, model: Path):
    assert "float32 --int8 --offload" in run("info", model).out
    assert json.loads(run("info", model, "--json").out)["settings"]["image_size"] == 32


def test_unknown_words_get_the_nearest_ones(run: Run, model: Path, tmp_path: Path):
    result = run("generate", "a photo of a dogg", "-o", tmp_path / "a.png", "-m", model)
    assert "does not know the word 'dogg' (did you mean 'dog'?)" in result.err


def test_an_image_that_is_missing_gets_the_nearest_file(run: Run, model: Path, image: Path):
    fault = run("caption", image.with_name("imag.png"), "-m", model).fault
    assert fault.endswith("; did you mean image.png?")
    fault = run("ask", image, "is it?", "--order", "entropi", "-m", model).fault
    assert fault.endswith("; did you mean entropy?")


def test_a_bar_goes_to_a_terminal_alone_and_never_with_quiet(
    run: Run, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    words = ("generate", "a dog", "-o", tmp_path, "-m", model, "--overwrite")
    assert run(*words).err == ""  # a pipe
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setattr(progress, "_is_hidden", False)
    bars: list[bool | None] = []
    real = tqdm.tqdm

    def watched(*arguments: Any, **options: Any) -> Any:
        bars.append(options["disable"])
        return real(*arguments, **options)

    monkeypatch.setattr("tqdm.tqdm", watched)
    assert run(*words).code == 0
    assert run(*words, "--quiet").err == ""
    assert bars == [None, True]


@pytest.mark.parametrize("name", ["images", "one.png"])
def test_images_that_exist_are_overwritten_on_request_alone(run: Run, model: Path, tmp_path: Path, name: str):
    out = tmp_path / name
    words = ("generate", "a dog", "-m", model, "-o", out)
    path = Path(run(*words).out.strip())
    first = path.read_bytes()
    fault = run(*words, "--model", "never/loaded").fault
    assert fault == f"'{path}' exists: give --overwrite, another --output or another --seed"
    assert path.read_bytes() == first
    assert run(*words, "--overwrite", "--num-steps", 1).code == 0
    assert path.read_bytes() != first


def test_a_grid_of_captions_is_overwritten_on_request_alone(
    run: Run, model: Path, image: Path, tmp_path: Path
):
    grid = tmp_path / "grid.png"
    grid.write_bytes(b"mine")
    words = ("caption", image, "--grid", grid)
    assert run(*words, "-m", "never/loaded").fault == f"'{grid}' exists: give --overwrite"
    assert grid.read_bytes() == b"mine"
    assert run(*words, "-m", model, "--overwrite").code == 0
    assert read_image(grid).width > 100


def test_prompts_come_from_a_file_or_standard_input(
    run: Run, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    file = tmp_path / "prompts.txt"
    file.write_text("\ufeffa red dog\n\n  a cat \r\n", encoding="utf-8")
    words = ("generate", "-m", model, "--num-steps", 1, "--json")
    direct = run(*words, "a hat", "a red dog", "a cat", "-o", tmp_path / "direct").out
    prompts = [json.loads(line)["prompt"] for line in direct.splitlines()]
    assert prompts == ["a hat", "a red dog", "a cat"]

    def same(name: str, *arguments: object) -> bool:
        monkeypatch.setattr("sys.stdin", io.StringIO("a red dog\na cat\n"))
        out = run(*words, *arguments, "-o", tmp_path / name).out
        paths = [json.loads(line)["path"] for line in out.splitlines()]
        wanted = [json.loads(line)["path"] for line in direct.splitlines()]
        assert [Path(path).name for path in paths] == [Path(path).name for path in wanted]
        return [Path(p).read_bytes() for p in paths] == [Path(p).read_bytes() for p in wanted]

    assert same("file", "a hat", "--prompts", file)
    assert same("dash", "a hat", "-")
    assert same("both", "a hat", "--prompts", "-")
    file.write_text("\n")
    assert run("generate", "--prompts", file, "-m", "never/loaded").fault == "no prompts: every line is empty"
    file.write_bytes(b"caf\xe9")
    assert "is not a text file in UTF-8" in run("generate", "--prompts", file, "-m", "never/loaded").fault


def test_a_random_seed_is_printed_and_gives_the_same_again(run: Run, model: Path, tmp_path: Path):
    words = ("generate", "a dog", "-m", model, "--num-steps", 1)
    first = run(*words, "--seed", "random", "-o", tmp_path / "first")
    seed = first.err.removeprefix("ddit: seed ").strip()
    path = Path(first.out.strip())
    assert path.name == f"a-dog-{seed}.png"
    again = Path(run(*words, "--seed", seed, "-o", tmp_path / "again").out.strip())
    assert again.read_bytes() == path.read_bytes()


def test_where_the_images_are_is_noted_on_a_terminal_alone(
    run: Run, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    words = ("generate", "a dog", "-m", model, "--overwrite", "--num-steps", 1)
    assert run(*words) == (0, "a-dog-0.png\n", "")
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setattr(progress, "_is_hidden", False)
    assert f"ddit: wrote 1 image to {tmp_path}" in run(*words).err
    assert run(*words, "--quiet").err == ""


@pytest.mark.parametrize("name", ["x.gif", "x.TIFF", "a/b.pdf", "y.json"])
def test_an_ending_that_is_no_folders_makes_no_folder(run: Run, tmp_path: Path, name: str):
    fault = run("generate", "a dog", "-m", "never/loaded", "-o", tmp_path / name).fault
    assert (
        fault
        == f"'{tmp_path / name}': images are written as .png, .jpg or .webp; a folder has no such ending"
    )
    assert not (tmp_path / name).exists()
    assert run("generate", "a dog", "-m", "never/loaded", "-o", tmp_path / "v1.2").fault.startswith(
        "unknown model"
    )


def test_a_chains_configuration_is_one_json_value(run: Run, tmp_path: Path):
    stages = json.loads(run("train", "mini", "--dry-run", "--root", tmp_path).out)
    assert len(stages) > 5
    assert stages[0]["kind"] == "autoencoder"
    assert json.loads(run("train", "mini-stage1", "--dry-run", "--root", tmp_path).out)["kind"] == "dual"


def test_caption(run: Run, model: Path, image: Path):
    alone = run("caption", image, "-m", model)
    assert alone.code == 0
    assert len(alone.out.splitlines()) == 1
    both = run("caption", image, image, "-m", model)
    assert both.out.splitlines()[0] == f"{image}\t{alone.out.strip()}"
    as_json = run("caption", image, "-m", model, "--json")
    assert json.loads(as_json.out) == {"image": str(image), "caption": alone.out.strip()}


def test_of_several_images_those_that_can_be_read_are_captioned(
    run: Run, model: Path, image: Path, tmp_path: Path
):
    torn, gone = tmp_path / "torn.png", tmp_path / "gone.png"
    torn.write_bytes(image.read_bytes()[:60])
    alone = run("caption", image, "-m", model).out
    result = run("caption", torn, image, gone, "-m", model)
    assert result.code == 1
    assert result.out == f"{image}\t{alone}"
    said = [line for line in result.err.splitlines() if line.startswith("ddit: ")]
    assert [line.split("'")[1] for line in said] == [str(torn), str(gone)]
    as_json = [
        json.loads(line) for line in run("caption", torn, image, "-m", model, "--json").out.splitlines()
    ]
    assert [sorted(entry) for entry in as_json] == [["error", "image"], ["caption", "image"]]
    assert "is a broken image" in as_json[0]["error"]
    none = run("caption", torn, gone, "-m", "no-such-model")  # which is not loaded
    assert (none.code, none.out, len(none.err.splitlines())) == (1, "", 2)


def test_a_path_that_is_no_text_is_printed_as_it_was_given(model: Path, image: Path, tmp_path: Path):
    strange = os.path.join(os.fsencode(tmp_path), b"caf\xe9.png")
    shutil.copy(image, strange)
    command = [sys.executable, "-m", "ddit", "caption", strange, strange, "-m", model]
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    plain = subprocess.run(command, check=True, capture_output=True, env=environment).stdout
    assert all(line.startswith(strange + b"\t") for line in plain.splitlines())
    as_json = subprocess.run([*command, "--json"], check=True, capture_output=True, env=environment).stdout
    assert json.loads(as_json.splitlines()[0])["image"] == os.fsdecode(strange)


def test_an_argument_that_is_no_text_is_one_line(run: Run, model: Path, image: Path):
    fault = run("ask", image, os.fsdecode(b"is it a caf\xe9?"), "-m", model).fault
    assert "holds a lone surrogate (\\udce9), which is no character (the byte 0xe9, not UTF-8)" in fault


def test_ask(run: Run, model: Path, image: Path):
    result = run("ask", image, "is there a dog?", "what color is the cat?", "-m", model, "--json")
    answers = [json.loads(line) for line in result.out.splitlines()]
    assert [answer["question"] for answer in answers] == ["is there a dog?", "what color is the cat?"]
    assert run("ask", image, "is there a dog?", "-m", model).out.strip() == answers[0]["answer"]


def test_infill(run: Run, model: Path, image: Path):
    result = run("infill", image, "the ___ is red", "-m", model)
    assert result.out.startswith("the")
    assert result.out.endswith(" is red\n")
    values = json.loads(run("infill", image, "the ___ is red", "-m", model, "--json").out)
    assert values["filled"] == result.out.strip()


def test_text_verbs_load_and_read_as_image_verbs_do(run: Run, model: Path, image: Path):
    pipeline = Pipeline.from_pretrained(model)
    size = ("--height", 16, "--width", 24, "--batch-size", 1, "--seed", 3, "-m", model)
    asked = pipeline.answer(image, "is there a dog?", height=16, width=24, seed=3)
    assert run("ask", image, "is there a dog?", *size).out.splitlines() == asked
    captions = pipeline.caption([image, image], height=16, width=24, seed=3)
    lines = run("caption", image, image, *size).out.splitlines()
    assert [line.partition("\t")[2] for line in lines] == captions
    plain = run("rank", image, "a dog", "a cat", "-m", model).out
    assert run("rank", image, "a dog", "a cat", "-m", model, "--offload").out == plain
    assert run("infill", image, "the ___ is red", "-m", model, "--int8", "--offload").code == 0


def test_mask_embedding(run: Run, model: Path, image: Path, tmp_path: Path):
    torch.save(torch.ones(24), tmp_path / "mask.pth")
    assert run("caption", image, "--mask-embedding", tmp_path / "mask.pth", "-m", model).code == 0


def test_world(run: Run, tmp_path: Path):
    result = run(
        "world", tmp_path / "scenes", "--num", 3, "--preset", "free", "--split", "val", "--upscale", 2
    )
    assert result.out.strip() == str(tmp_path / "scenes" / "scenes.jsonl")
    scenes = [json.loads(line) for line in Path(result.out.strip()).read_text().splitlines()]
    assert len(scenes) == 3
    for scene in scenes:
        assert read_image(tmp_path / "scenes" / scene["image"]).size == (128, 128)
        assert scene["objects"]
        assert scene["captions"]
        assert {"question", "answer", "kind"} == set(scene["questions"][0])
    first = (tmp_path / "scenes" / "scenes.jsonl").read_bytes()
    run("world", tmp_path / "again", "--num", 3, "--preset", "free", "--split", "val", "--upscale", 2)
    assert (tmp_path / "again" / "scenes.jsonl").read_bytes() == first


def test_verify(run: Run):
    result = run("verify", REFERENCE, "--atol", 5e-5)
    assert result.code == 0
    lines = result.out.splitlines()
    listed = json.loads((REFERENCE / "reference.json").read_text())["keys"]
    assert {line.split()[1] for line in lines} < set(listed)
    assert all(line.startswith("ok") for line in lines)


def test_verify_names_a_tampered_tensor(run: Run, tmp_path: Path):
    for item in REFERENCE.iterdir():
        (tmp_path / item.name).symlink_to(item)
    tensors = load_file(REFERENCE / "reference.safetensors")
    tensors["forward.1.velocity"][0, 0, 0, 0] += 1e-2
    (tmp_path / "reference.safetensors").unlink()
    save_file(tensors, tmp_path / "reference.safetensors")
    result = run("verify", tmp_path, "--json")
    assert result.code == 1
    rows = [json.loads(line) for line in result.out.splitlines()]
    assert [row["name"] for row in rows if not row["within"]] == ["forward.1.velocity"]


@pytest.mark.parametrize(
    "file", ["reference.safetensors", "text_encoder/model.safetensors", "transformer/config.json"]
)
def test_verify_of_a_broken_folder_gets_one_line(run: Run, tmp_path: Path, file: str):
    folder = shutil.copytree(REFERENCE, tmp_path / "reference")
    (folder / file).write_text("garbage")
    assert str(folder) in run("verify", folder).fault


def test_train_dry_run(run: Run, tmp_path: Path):
    result = run(
        "train",
        "mini-stage1",
        "--root",
        tmp_path / "runs",
        "--set",
        "max_steps=7",
        "--init",
        "x",
        "--dry-run",
    )
    config = json.loads(result.out)
    assert config["max_steps"] == 7
    assert config["init"] == "x"
    assert not (tmp_path / "runs").exists()


def test_train_refuses_a_change_that_nothing_would_read(run: Run):
    fault = run("train", "mini-stage1", "--set", "lora.alpha=2", "--dry-run").fault
    assert fault == "lora.alpha would never be read: lora.rank is 0"


def test_train_plots_several_runs(run: Run, tmp_path: Path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "log.jsonl").write_text('{"step": 1, "total": 2.0}\n{"step": 2, "total": 1.0}\n')
    result = run("train", "--plot", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "both.png")
    assert result.out.strip() == str(tmp_path / "both.png")
    assert read_image(tmp_path / "both.png").size[0] > 100


def test_a_merged_model_says_what_the_base_says_with_the_adapter(
    run: Run, model: Path, image: Path, tmp_path: Path
):
    transformer = tiny_pipeline().transformer
    add_adapters(transformer, rank=2, alpha=4.0)
    with torch.no_grad():
        transformer.text_proj_out.bias += torch.randn(transformer.text_proj_out.bias.shape).mul(20)
    save_adapters(tmp_path / "adapter", transformer)
    said = run("caption", image, "--model", model, "--adapter", tmp_path / "adapter").out
    assert said != run("caption", image, "--model", model).out
    merged = run("merge", model, tmp_path / "adapter", tmp_path / "merged", "--dtype", "float32")
    assert merged.out.strip() == str(tmp_path / "merged")
    assert run("caption", image, "--model", tmp_path / "merged").out == said


# --- mistakes ---


def test_bad_images(run: Run, model: Path, tmp_path: Path):
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"0" * 30)
    (tmp_path / "huge.pgm").write_bytes(b"P5 20000 20000 255\n")
    for name, fault in {
        "missing.png": "no such image: ",
        "text.png": "is not an image of a known format",
        "broken.png": "image",
        "huge.pgm": "is larger than the limit of 16,384 pixels a side and 64 million in all",
    }.items():
        for command in (("caption",), ("ask", "what is this?"), ("infill", "a ___")):
            message = run(command[0], tmp_path / name, *command[1:], "-m", model).fault
            assert fault in message
            assert name in message


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (("generate", ""), "the prompt is empty"),
        (("generate", "a dog", "--height", "33"), "height 33 is not a multiple of 8"),
        (
            ("generate", "a dog", "--dtype", "float7"),
            "unknown dtype 'float7': use float32, bfloat16 or float16",
        ),
        (
            ("generate", "a dog", "--sampler", "heun"),
            "sampler must be euler, adams, dpm or paper, got 'heun'",
        ),
        (("generate", "a dog", "--sampler", "dpn"), "; did you mean dpm?"),
        (("generate", "a dog", "--dtype", "bfloat"), "; did you mean bfloat16?"),
        (("generate", "a dog", "--model", "minii"), "; did you mean mini?"),
        (("generate", "a dog", "--watch", "a.jpg"), "'a.jpg' should end in .gif or .png"),
        (("generate", "a dog", "--grid", "a.gif"), "'a.gif' should end in .jpeg or .jpg or .png or .webp"),
        (("world", "w", "--preset", "gird"), "; did you mean grid?"),
        (("train", "mini-stag1", "--dry-run"), "; did you mean mini-stage1"),
        (("train", "mini-stage1", "--set", "optimizer.lrr=1", "--dry-run"), "did you mean optimizer.lr"),
        (("eval", "vqav"), "; did you mean vqav2?"),
        (("info", "minii"), "; did you mean mini?"),
        (("info", "owner/never-downloaded"), "it has not been downloaded"),
        (("generate", "a dog", "--shift", "0"), "--shift must be above 0, got 0"),
        (("generate", "a dog", "--num-steps", "0"), "--num-steps must be at least 1, got 0"),
        (("generate", "a dog", "--guidance-rescale", "2"), "--guidance-rescale must be 0 to 1, got 2"),
        (("generate", "a dog", "--best-of", "0"), "--best-of must be at least 1, got 0"),
        (("generate", "--prompts", "nowhere.txt"), "No such file or directory: 'nowhere.txt'"),
        (("generate", "a dog", "--device", "abacus"), "device 'abacus' cannot be used here"),
        (("generate", "a dog", "--model", "maxi"), "unknown model 'maxi'"),
        (("world", "w", "--preset", "mars"), "unknown preset 'mars': use fixed-1, "),
        (("world", "w", "--split", "half"), "unknown split 'half': use train, "),
        (("train", "maxi", "--dry-run"), "unknown recipe 'maxi'"),
        (("train", "mini-vae", "mini-text"), "one recipe at a time, got mini-vae and mini-text"),
        (("train", "mini-vae", "--out", "x.png"), "--out is the file of --plot"),
        (("train", "--plot", "nowhere"), "'nowhere' is not a run: it has no log.jsonl"),
        (("merge", "mini", "nowhere", "merged"), "'nowhere' is incomplete: it has no adapter_config.json"),
        (("train", "mini-stage1", "--set", "max_stepz=3", "--dry-run"), "unknown key 'max_stepz'"),
        (("verify", "nowhere"), "nowhere"),
        (("verify", "nowhere", "--dtype", "int8"), "unknown dtype 'int8'"),
    ],
)
def test_mistakes_get_one_line(
    run: Run,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    fault: str,
):
    monkeypatch.chdir(tmp_path)
    default = ("--model", model) if arguments[0] == "generate" and "--model" not in arguments else ()
    assert fault in run(*arguments, *default).fault


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (("inpaint",), "which part is to be generated? give either --mask or --box"),
        (("inpaint", "--box", 0, 0, 4, 4, "--mask", "image.png"), "give either --mask or --box"),
        (("inpaint", "--mask", "nowhere.png"), "no such image: 'nowhere.png'"),
        (("inpaint", "--mask", "black.png"), "the mask is empty"),
        (("inpaint", "--mask", "small.png"), "a mask of 20x20 does not fit an image of 40x30"),
        (("inpaint", "--box", 30, 0, 50, 10), "the box 30 0 50 10 (left, top, right, bottom) is not within"),
        (("vary", "--strength", 1.5), "strength must be above 0 and at most 1, got 1.5"),
        (("vary", "--shift", 0), "--shift must be above 0, got 0"),
    ],
)
def test_mistakes_about_changes_are_found_before_the_model_is_loaded(
    run: Run, image: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], fault: str
):
    monkeypatch.chdir(image.parent)
    Image.new("L", (40, 30)).save("black.png")
    Image.new("L", (20, 20), 255).save("small.png")
    verb, *rest = arguments
    assert fault in run(verb, image, "a dog", *rest, "-o", "out", "--model", "never/loaded").fault


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (("caption", "--order", "entropi"), "; did you mean entropy?"),
        (("ask", "is it?", "--top-p", 0), "--top-p must be above 0, at most 1, got 0"),
        (("infill", "a ___", "--threshold", 0), "--threshold must be above 0, at most 1, got 0"),
        (("chat", "--commit-above", 0), "--commit-above must be above 0, at most 1, got 0"),
        (("caption", "--grid", "a.gif"), "'a.gif' should end in"),
    ],
)
def test_mistakes_about_texts_are_found_before_the_model_is_loaded(
    run: Run, image: Path, arguments: tuple[str, ...], fault: str
):
    verb, *rest = arguments
    assert fault in run(verb, image, *rest, "--model", "never/loaded").fault


def test_an_output_that_cannot_be_written_is_found_before_the_model_is_loaded(run: Run, tmp_path: Path):
    (tmp_path / "file").write_text("")
    for output in (tmp_path / "file", tmp_path / "file" / "deeper", tmp_path / "file" / "a.png"):
        fault = run("generate", "a dog", "-o", output, "--model", "never/loaded").fault
        assert fault.startswith(f"cannot write to '{tmp_path / 'file'}")
    fault = run("generate", "a dog", "a cat", "-o", tmp_path / "a.png", "--model", "never/loaded").fault
    assert "is one file for 2 images" in fault


def test_an_incomplete_checkpoint_names_what_is_missing(run: Run, tmp_path: Path, image: Path):
    tiny_pipeline().save_pretrained(tmp_path / "model")
    file = tmp_path / "model" / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    del tensors["text_proj_out.weight"]
    save_file(tensors, file)
    assert "1 missing (text_proj_out.weight)" in run("caption", image, "-m", tmp_path / "model").fault


def test_a_long_prompt_is_cut_with_a_warning(run: Run, model: Path, tmp_path: Path):
    result = run("generate", "a dog " * 9, "-o", tmp_path / "a.png", "-m", model)
    assert result.code == 0
    (warning,) = (line for line in result.err.splitlines() if line.startswith("ddit: warning: "))
    assert "cut after" in warning


def test_debug_shows_the_traceback(model: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DDIT_DEBUG", "1")
    monkeypatch.setattr(sys, "argv", ["ddit", "caption", "missing.png", "--model", str(model)])
    with pytest.raises(ValueError, match="no such image"):
        main()


def test_version(run: Run):
    assert run("--version").out == f"ddit {ddit.__version__}\n"


def test_help_imports_nothing_heavy():
    code = "import sys, ddit.cli; sys.exit(any(name in sys.modules for name in ('torch', 'numpy', 'PIL')))"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_module_is_the_command():
    environment = {**os.environ, "PYTHONWARNINGS": "error"}
    done = subprocess.run(
        [sys.executable, "-m", "ddit", "--help"], check=True, capture_output=True, text=True, env=environment
    )
    for verb in ("generate", "caption", "ask", "infill", "train", "merge", "verify", "world"):
        assert f"  {verb} " in done.stdout
