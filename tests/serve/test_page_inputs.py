"""What a user enters on the page is checked by ours: a sentence, and no traceback in the log."""

import json
import math

import pytest
from pages import act, fault, run_apart

INPUTS = """
import json

from gradio.data_classes import ImageData
from tiny_models import tiny_pipeline

from ddit.serve.engine import Engine
from ddit.serve.page import build_page

blocks = list(build_page(Engine(tiny_pipeline())).blocks.values())
found = {
    kind: [block for block in blocks if type(block).__name__ == kind] for kind in ("Number", "Image")
}
print(json.dumps({
    "numbers": [[block.preprocess(value) for value in (0, -5, 10**6, None)] for block in found["Number"]],
    "images": [block.preprocess(ImageData(path="/etc/hostname"))
               for block in found["Image"]],
    "missing": [block.preprocess(None) for block in found["Image"]],
}))
"""


@pytest.mark.parametrize(
    ("numbers", "sentence"),
    [
        ((0, 0, 2.0), "Steps must be 1 to 50, got 0."),
        ((0, 51, 2.0), "Steps must be 1 to 50, got 51."),
        ((0, math.nan, 2.0), "Steps must be 1 to 50, got nan."),
        ((0, 3, -1), "Guidance must be 0 to 20, got -1."),
        ((0, 3, math.inf), "Guidance must be 0 to 20, got inf."),
        ((0, 3, math.nan), "Guidance must be 0 to 20, got nan."),
        ((math.nan, 3, 2.0), "Seed must be 0 to 9007199254740991, got nan."),
        ((2**62, 3, 2.0), "Seed must be 0 to 9007199254740991, got 4611686018427387904."),
    ],
)
def test_a_number_out_of_range_is_answered_in_a_sentence(
    numbers: tuple[float, ...], sentence: str, caplog: pytest.LogCaptureFixture
) -> None:
    ((html, image),) = act(lambda runs: runs.generate("a photo of the dog", *numbers))
    assert (fault(html), image) == (sentence, None)
    assert caplog.text == ""


@pytest.mark.slow
def test_gradio_passes_numbers_and_files_on_as_they_are() -> None:
    found = json.loads(run_apart(INPUTS).splitlines()[-1])
    assert found["numbers"] == [[0, -5, 10**6, None]] * 7
    assert found["images"] == ["/etc/hostname"] * 3
    assert found["missing"] == [None] * 3
