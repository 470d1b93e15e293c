"""Requests of vLLM-Omni as jobs; and its loader and runner around our model: DDIT_VLLM_OMNI is its unpacked wheel."""

import os
import subprocess
import sys
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

import ddit
from ddit.serve import vllm_omni
from ddit.serve.vllm_omni import make_jobs

HERE = Path(__file__).parent
OMNI = os.environ.get("DDIT_VLLM_OMNI")
GROUP = "vllm_omni.general_plugins"
IMAGE = Image.new("RGB", (8, 6), "red")
NOT_GIVEN: dict[str, Any] = {
    "seed": 3,
    "num_outputs_per_prompt": 1,
    "num_inference_steps": None,
    "guidance_scale": 1.0,
    "guidance_scale_provided": False,
    "height": None,
    "width": None,
    "strength": None,
    "extra_args": {},
}


def request(prompt: Any, *, is_dummy: bool = False, **params: Any) -> Any:
    """As vLLM-Omni makes them."""
    return SimpleNamespace(
        prompt=prompt, sampling_params=SimpleNamespace(**NOT_GIVEN | params), is_dummy_run=lambda: is_dummy
    )


def entry_points() -> dict[str, str]:
    project = tomllib.loads((HERE.parents[1] / "pyproject.toml").read_text())["project"]
    return project["entry-points"][GROUP]


def test_the_entry_point_is_the_function_that_registers() -> None:
    [(name, value)] = entry_points().items()
    assert EntryPoint(name, value, GROUP).load() is vllm_omni.register


def test_what_is_not_given_is_the_models_own() -> None:
    [job] = make_jobs(request("a cat"))
    assert (job.verb, job.sample["prompt"], job.seed, job.options) == ("generate", "a cat", 3, ())


def test_an_image_request_has_ddits_names_and_a_seed_an_image() -> None:
    given = {"num_inference_steps": 4, "guidance_scale": 0.0, "guidance_scale_provided": True, "height": 32}
    extra = {"sampler": "dpm", "guidance_interval": [0.1, 0.9], "cfg_text_scale": 1.0, "batch_size": 9}
    prompt = {"prompt": "a cat", "negative_prompt": "a dog", "modalities": ["image"]}
    jobs = make_jobs(request(prompt, num_outputs_per_prompt=3, extra_args=extra, **given))
    assert [job.seed for job in jobs] == [3, 4, 5]
    assert jobs[0].sample["negative_prompt"] == "a dog"
    assert dict(jobs[0].options) == {
        "num_steps": 4,
        "guidance_scale": 0.0,
        "height": 32,
        "sampler": "dpm",
        "guidance_interval": (0.1, 0.9),
    }


def test_texts_are_answers_or_captions_and_alike_whatever_the_question() -> None:
    def ask(text: str, **params: Any) -> Any:
        data = {"image": IMAGE}
        return make_jobs(
            request({"prompt": text, "modalities": ["text"], "multi_modal_data": data}, **params)
        )

    [first], [second] = ask("what is it?"), ask("where?", seed=9, num_outputs_per_prompt=2, height=512)
    assert first.verb == "answer"
    assert first.kind == second.kind
    assert second.seed == 9
    [caption] = ask(" ", extra_args={"style": "detailed", "strength": 0.5})
    assert caption.verb == "caption"
    assert caption.options == (("style", "detailed"),)
    [blind] = make_jobs(request({"prompt": "why?", "modalities": ["text"]}))
    assert blind.sample == {"image": None, "question": "why?"}


def test_an_image_is_varied_and_with_a_mask_in_painted() -> None:
    [varied] = make_jobs(request({"prompt": "a cat", "multi_modal_data": {"img2img": IMAGE}}, strength=0.4))
    assert varied.verb == "vary"
    assert varied.options == (("strength", 0.4),)
    white_left = Image.fromarray(np.array([[255, 255, 0, 0]] * 4, np.uint8))
    clear_left = Image.new("RGBA", (4, 4), "white")
    clear_left.paste((255, 255, 255, 0), (0, 0, 2, 4))
    for mask in (white_left, clear_left):
        data = {"image": [IMAGE], "mask_image": mask}
        [painted] = make_jobs(request({"prompt": "a cat", "multi_modal_data": data}, strength=0.4))
        assert painted.verb == "inpaint"
        assert painted.options == ()
        assert painted.sample["mask"].tobytes() == white_left.tobytes()


def test_the_warm_up_is_of_the_models_own_size_without_an_image() -> None:
    data = {"image": Image.new("RGB", (512, 512))}
    dummy = request({"prompt": "dummy run", "multi_modal_data": data}, is_dummy=True, height=512, width=512)
    [job] = make_jobs(dummy)
    assert job.verb == "generate"
    assert job.options == ()


@pytest.mark.parametrize(
    ("data", "params", "says"),
    [
        ({"image": [IMAGE, IMAGE]}, {}, "one image a request, got 2"),
        ({"mask_image": IMAGE}, {}, "a mask needs an image"),
        ({"image": "missing.png"}, {}, "missing.png"),
        ({}, {"seed": None}, "give a seed"),
    ],
)
def test_what_cannot_be_taken_is_said_in_a_line(
    data: dict[str, Any], params: dict[str, Any], says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        make_jobs(request({"prompt": "a cat", "multi_modal_data": data}, **params))


@pytest.mark.slow
@pytest.mark.skipif(
    not OMNI, reason="DDIT_VLLM_OMNI is not set: the folder of an unpacked wheel of vllm-omni"
)
def test_vllm_omnis_own_classes_load_the_model_and_give_what_the_pipeline_gives(tmp_path: Path) -> None:
    found = tmp_path / "plugin-0.dist-info"
    found.mkdir()
    (found / "METADATA").write_text("Metadata-Version: 2.1\nName: plugin\nVersion: 0\n")
    lines = [f"{name} = {value}\n" for name, value in entry_points().items()]
    (found / "entry_points.txt").write_text(f"[{GROUP}]\n{''.join(lines)}")
    mini = Path(ddit.__file__).parent / "assets" / "mini"
    done = subprocess.run(
        [sys.executable, str(HERE / "vllm_omni_run.py"), str(OMNI), str(mini), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "all equal" in done.stdout
