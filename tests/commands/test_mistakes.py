"""One clear line for every mistake, before a model is loaded where that can be."""

from pathlib import Path

import pytest
from command_line import Run
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_models import tiny_pipeline


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
    assert (
        run("world", tmp_path / "file").fault
        == f"cannot write to '{tmp_path / 'file'}': it is a file, not a folder"
    )
    fault = run("generate", "a dog", "a cat", "-o", tmp_path / "a.png", "--model", "never/loaded").fault
    assert "is one file for 2 images" in fault


def test_an_incomplete_checkpoint_names_what_is_missing(run: Run, tmp_path: Path, image: Path):
    tiny_pipeline().save_pretrained(tmp_path / "model")
    file = tmp_path / "model" / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    del tensors["text_proj_out.weight"]
    save_file(tensors, file)
    assert "1 missing (text_proj_out.weight)" in run("caption", image, "-m", tmp_path / "model").fault
