"""The class for VLMEvalKit answers as `Pipeline` does; its base class, of which it uses nothing, is a stand-in."""

import importlib.util
import sys
import types
from pathlib import Path

import pytest

from ddit import Pipeline
from ddit.world import PRESETS, make_scene, render

FILE = Path(__file__).parents[2] / "examples" / "vlmevalkit" / "ddit.py"


def test_it_answers_and_captions_as_the_pipeline_does(monkeypatch: pytest.MonkeyPatch) -> None:
    base = types.ModuleType("vlm.base")
    base.__dict__["BaseModel"] = type("BaseModel", (), {})
    monkeypatch.setitem(sys.modules, "vlm", types.ModuleType("vlm"))
    monkeypatch.setitem(sys.modules, "vlm.base", base)
    spec = importlib.util.spec_from_file_location("vlm.ddit", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    model = module.DDiT("mini", device="cpu", settings={"answer_steps": 4})
    pipeline = Pipeline.from_pretrained("mini", device="cpu")
    image = render(make_scene(PRESETS["fixed"], "test", 0))
    message = [{"type": "image", "value": image}, {"type": "text", "value": "is there a dog?"}]
    assert model.generate_inner(message) == pipeline.answer(image, "is there a dog?", num_steps=4)[0]
    assert model.generate_inner(message, "COCO_VAL") == pipeline.caption(image)[0]
