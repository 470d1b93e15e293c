"""ComfyUI's nodes, loaded and executed by ComfyUI's own classes: DDIT_COMFYUI is the path of a checkout."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

COMFYUI = os.environ.get("DDIT_COMFYUI")
NODES = Path(__file__).parents[1] / "examples" / "comfyui"
SCRIPT = """
import asyncio, importlib.util, sys
from comfy.cli_args import args
args.cpu = True
import comfy.utils
import torch
from PIL import Image
from comfy_api.latest import io
from ddit import Pipeline

spec = importlib.util.spec_from_file_location("comfyui_ddit", sys.argv[1] + "/__init__.py")
module = importlib.util.module_from_spec(spec)
sys.modules["comfyui_ddit"] = module
spec.loader.exec_module(module)
listed = asyncio.run(asyncio.run(module.comfy_entrypoint()).get_node_list())
nodes = {}
for node in listed:
    schema = node.GET_SCHEMA()
    node.VALIDATE_CLASS()
    node.GET_NODE_INFO_V1()
    nodes[schema.node_id] = node.PREPARE_CLASS_CLONE({})


steps = []
comfy.utils.set_progress_bar_global_hook(lambda done, total, preview, **_: steps.append((done, total)))

def run(name, **inputs):
    return nodes[name].EXECUTE_NORMALIZED(**inputs).args[0]

sampling = {"seed": 3, "num_steps": 4, "guidance_scale": -1}
loaded = run("DditLoad", model="mini", dtype="float32")
size = {"height": 0, "width": 0, "negative_prompt": ""}
drawn = run("DditDraw", pipeline=loaded, prompt="a photo of a red car", num_images=2, **size, **sampling)
assert drawn.shape == (2, 64, 64, 3) and drawn.dtype == torch.float32 and 0 <= drawn.min() <= drawn.max() <= 1
assert steps == [(1, 4), (2, 4), (3, 4), (4, 4)]
pipeline = Pipeline.from_pretrained("mini", device="cpu", dtype="float32")
expected = pipeline.generate(["a photo of a red car"] * 2, seed=3, num_steps=4)
assert torch.equal(drawn, module.to_batch(expected))
assert run("DditCaption", pipeline=loaded, images=drawn, seed=0) == list(pipeline.caption(expected))
question = "what color is the car?"
answers = run("DditAsk", pipeline=loaded, images=drawn, question=question, seed=0)
assert answers == list(pipeline.answer(expected, question))
mask = torch.zeros(1, 64, 64)
mask[:, :, :32] = 1
painted = run("DditInpaint", pipeline=loaded, images=drawn[:1], mask=mask, prompt="a photo of a red car", **sampling)
left = Image.new("L", (64, 64))
left.paste(255, (0, 0, 32, 64))
expected = pipeline.inpaint(expected[0], left, "a photo of a red car", seed=3, num_steps=4)
assert torch.equal(painted, module.to_batch(expected))
print("nodes", sorted(nodes))
"""


@pytest.mark.slow
@pytest.mark.skipif(not COMFYUI, reason="DDIT_COMFYUI is not set: the path of a checkout of ComfyUI")
def test_the_nodes_load_and_give_what_the_pipeline_gives() -> None:
    assert COMFYUI is not None
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(NODES)],
        cwd=COMFYUI,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([COMFYUI, os.environ.get("PYTHONPATH", "")])},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "nodes ['DditAsk', 'DditCaption', 'DditDraw', 'DditInpaint', 'DditLoad']" in done.stdout
