"""`ddit generate`, `inpaint` and `vary`, on a tiny model."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tqdm
from command_line import Run
from PIL import Image

from ddit.commands import progress
from ddit.images import read_image


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


def test_the_input_image_is_not_overwritten(run: Run, image: Path, tmp_path: Path):
    mask = ("--box", 0, 0, 8, 8)
    for command in (("inpaint", image, "a dog", *mask), ("vary", image, "a dog")):
        fault = run(*command, "-o", image, "--model", "never/loaded").fault
        assert fault == f"'{image}' is the input image: give another --output"


def test_unknown_words_get_the_nearest_ones(run: Run, model: Path, tmp_path: Path):
    result = run("generate", "a photo of a dogg", "-o", tmp_path / "a.png", "-m", model)
    assert "does not know the word 'dogg' (did you mean 'dog'?)" in result.err


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


def test_a_long_prompt_is_cut_with_a_warning(run: Run, model: Path, tmp_path: Path):
    result = run("generate", "a dog " * 9, "-o", tmp_path / "a.png", "-m", model)
    assert result.code == 0
    (warning,) = (line for line in result.err.splitlines() if line.startswith("ddit: warning: "))
    assert "cut after" in warning
