"""GenEval's second detector: a graph in ONNX whose answer is known, with transformers' own settings beside it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from transformers.models.rt_detr.image_processing_pil_rt_detr import RTDetrImageProcessorPil
from typer.testing import CliRunner

from ddit.cli import app
from ddit.eval.detectors import ColorModel
from ddit.eval.geneval import write_metadata
from ddit.eval.onnx_detector import OnnxDetector
from ddit.world import Prompt

SIDE = 32
CAR, DOG, SURE = 2, 16, 3.0
BOXES = [[0.5, 0.5, 0.5, 0.25], [0.9, 0.5, 0.4, 0.2]]
"""Centre and size; the second reaches beyond the image."""


def write_detector(
    folder: Path, *, classes: int = 80, outputs: tuple[str, str] = ("logits", "pred_boxes")
) -> Path:
    """Two queries: a car, as sure as the image is red, and a dog, as sure as it is blue."""
    weights = np.zeros((3, 2 * classes), np.float32)
    weights[0, CAR], weights[2, classes + DOG] = 2 * SURE, 2 * SURE
    bias = np.full(2 * classes, -20, np.float32)
    bias[[CAR, classes + DOG]] = -SURE
    constants = {
        "weights": weights,
        "bias": bias,
        "shape": np.array([1, 2, classes], np.int64),
        "boxes": np.array([BOXES], np.float32),
        "axes": np.array([2, 3], np.int64),
    }
    graph = helper.make_graph(
        [
            helper.make_node("ReduceMean", ["pixel_values", "axes"], ["mean"], keepdims=0),
            helper.make_node("MatMul", ["mean", "weights"], ["product"]),
            helper.make_node("Add", ["product", "bias"], ["flat"]),
            helper.make_node("Reshape", ["flat", "shape"], [outputs[0]]),
            helper.make_node("Identity", ["boxes"], [outputs[1]]),
        ],
        "detector",
        [helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, [1, 3, SIDE, SIDE])],
        [
            helper.make_tensor_value_info(outputs[0], TensorProto.FLOAT, [1, 2, classes]),
            helper.make_tensor_value_info(outputs[1], TensorProto.FLOAT, [1, 2, 4]),
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    folder.mkdir(parents=True, exist_ok=True)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    onnx.save(model, str(folder / "model.onnx"))
    labels = {str(index): f"class {index}" for index in range(classes)}
    (folder / "config.json").write_text(json.dumps({"model_type": "rt_detr", "id2label": labels}))
    RTDetrImageProcessorPil(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    return folder / "model.onnx"


def test_objects_have_their_names_scores_and_boxes_in_the_images_own_pixels(tmp_path: Path) -> None:
    detector = OnnxDetector.from_file(write_detector(tmp_path))
    half = Image.new("RGB", (80, 40), (255, 0, 128))
    car, dog = detector.find(half, threshold=0.3)
    assert (car.class_name, dog.class_name) == ("car", "dog")
    assert car.score == pytest.approx(1 / (1 + np.exp(-SURE)), abs=1e-4)
    assert dog.score == pytest.approx(1 / (1 + np.exp(-2 * SURE * (128 / 255 - 0.5))), abs=1e-4)
    assert car.box == pytest.approx((20, 15, 60, 25))
    assert dog.box == pytest.approx((56, 16, 80, 24))
    assert car.mask is None
    assert [one.class_name for one in detector.find(half, threshold=0.6)] == ["car"]
    assert detector.find(Image.new("RGB", (20, 20)), threshold=0.3) == []


def test_the_command_takes_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ColorModel, "from_pretrained", lambda *_: None)  # no prompt names a colour
    path = write_detector(tmp_path / "detector" / "onnx")
    for name in ("config.json", "preprocessor_config.json"):  # as on the hub
        (path.parent / name).rename(path.parent.parent / name)
    prompts = [Prompt(name, "single_object", [{"class": name, "count": 1}]) for name in ("car", "dog")]
    for index, prompt in enumerate(prompts):
        Image.new("RGB", (40, 40), "red").save(
            write_metadata(tmp_path / "images", index, prompt) / "0000.png"
        )
    out = tmp_path / "results.jsonl"
    command = ["score-images", "geneval", str(tmp_path / "images"), "--detector", str(path), "-o", str(out)]
    result = CliRunner().invoke(app, command, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert [json.loads(line)["correct"] for line in out.read_text().splitlines()] == [True, False]


def test_what_is_missing_or_of_another_kind_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.onnx' does not exist: give --detector the file"):
        OnnxDetector.from_file(tmp_path / "none.onnx")
    with pytest.raises(ValueError, match="knows 20 classes: GenEval's detector knows COCO's 80"):
        OnnxDetector.from_file(write_detector(tmp_path / "twenty", classes=20))
    with pytest.raises(ValueError, match="is no detector as transformers exports it"):
        OnnxDetector.from_file(write_detector(tmp_path / "other", outputs=("scores", "pred_boxes")))
    path = write_detector(tmp_path / "torn")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="cannot be loaded"):
        OnnxDetector.from_file(path)
    (tmp_path / "torn" / "preprocessor_config.json").unlink()
    with pytest.raises(ValueError, match=r"no config\.json and preprocessor_config\.json beside it"):
        OnnxDetector.from_file(path)
