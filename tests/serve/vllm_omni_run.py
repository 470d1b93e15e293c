"""vLLM-Omni's own plugins, configuration, loader, runner and output formatting around our model, without vLLM.

python vllm_omni_run.py OMNI FOLDER ENTRY: the folders of vLLM-Omni, of a model, and of a distribution's entry points.
"""

import sys
from functools import partial
from typing import Any

import torch
import vllm_stand_in

omni, folder, entry = sys.argv[1:]
vllm_stand_in.install(omni)
sys.path.insert(0, entry)

from vllm.config.load import LoadConfig  # noqa: E402 # pyright: ignore[reportMissingImports]
from vllm_omni.diffusion import diffusion_engine as engines  # noqa: E402 # pyright: ignore[reportMissingImports]
from vllm_omni.diffusion.cancellation import (  # noqa: E402 # pyright: ignore[reportMissingImports]
    RequestCancellationRegistry,
)
from vllm_omni.diffusion.data import OmniDiffusionConfig  # noqa: E402 # pyright: ignore[reportMissingImports]
from vllm_omni.diffusion.model_loader.diffusers_loader import (  # noqa: E402 # pyright: ignore[reportMissingImports]
    DiffusersPipelineLoader,
)
from vllm_omni.diffusion.registry import DiffusionModelRegistry  # noqa: E402 # pyright: ignore[reportMissingImports]
from vllm_omni.diffusion.request import (  # noqa: E402 # pyright: ignore[reportMissingImports]
    DUMMY_DIFFUSION_REQUEST_ID,
    OmniDiffusionRequest,
)
from vllm_omni.diffusion.sched.request_scheduler import (  # noqa: E402 # pyright: ignore[reportMissingImports]
    build_request_batch_sampling_params_key,
)
from vllm_omni.diffusion.worker.diffusion_model_runner import (  # noqa: E402 # pyright: ignore[reportMissingImports]
    DiffusionModelRunner,
)
from vllm_omni.inputs.data import OmniDiffusionSamplingParams  # noqa: E402 # pyright: ignore[reportMissingImports]
from vllm_omni.platforms import current_omni_platform  # noqa: E402 # pyright: ignore[reportMissingImports]
from vllm_omni.plugins import load_omni_general_plugins  # noqa: E402 # pyright: ignore[reportMissingImports]

from ddit import Pipeline  # noqa: E402
from ddit.serve import vllm_omni as ours  # noqa: E402

platform: Any = current_omni_platform  # of no device, so the CPU
platform.is_initialized, platform.synchronize = lambda: False, lambda: None  # vLLM's part of it
load_omni_general_plugins()
assert "DualDiffusionPipeline" in DiffusionModelRegistry.get_supported_archs()
config = OmniDiffusionConfig(model=folder, dtype=torch.float32, model_class_name="DualDiffusionPipeline")
config.enrich_config()
assert config.model_class_name == "DualDiffusionPipeline"
loaded = DiffusersPipelineLoader(LoadConfig(), od_config=config).load_model("cpu", device=torch.device("cpu"))

runner: Any = object.__new__(DiffusionModelRunner)
runner.pipeline, runner.od_config, runner.device = loaded, config, torch.device("cpu")
runner.vllm_config = runner.cache_backend = runner.kv_transfer_manager = None
for name in ("_maybe_recv_stage_payload", "_maybe_send_stage_payload", "_refresh_cache_for_requests"):
    setattr(runner, name, lambda *_, **__: None)
engine: Any = object.__new__(engines.DiffusionEngine)
engine.od_config, engine.request_batch = config, engines.supports_request_batch(config)
engine._prefix_cache_enabled = lambda: False
engine._init_process_hooks(config)
assert engine.request_batch


def run(*requests: Any, number: str = "request", signal: str | None = None) -> list[Any]:
    """What the engine answers to (prompt, sampling parameters)."""
    made = [
        OmniDiffusionRequest(
            prompt, OmniDiffusionSamplingParams(**params), number, cancellation_signal=signal
        )
        for prompt, params in requests
    ]
    keys = [build_request_batch_sampling_params_key(request) for request in made]
    wave = [request for request, key in zip(made, keys, strict=True) if key == keys[0]]
    print("in the first one's wave:", len(wave), "of", len(made))
    outputs = runner._execute_request_list(
        made,
        od_config=config,
        allow_single_output=False,
        require_request_batch_support=True,
        record_name="test",
        record_output_peak_memory=False,
    )
    results = [output.result for output in outputs.runner_outputs]
    return [one for request, out in zip(made, results, strict=True) for one in answer(request, out)]


def answer(request: Any, output: Any) -> list[Any]:
    try:
        return engine.postprocess_output(request, output)
    except (ValueError, engines.DiffusionRequestAbortedError) as fault:
        return [fault]


def equal(images: Any, expected: Any) -> bool:
    return [image.tobytes() for image in images] == [image.tobytes() for image in expected]


pipeline = Pipeline.from_pretrained(folder, device="cpu", dtype="float32")
red, blue = "a photo of a red car", "a photo of a blue circle"
steps = {"num_inference_steps": 3}
first, second, text, wrong = run(
    (red, {"seed": 5, "num_outputs_per_prompt": 2, "guidance_scale": 3.0, **steps}),
    ({"prompt": blue, "negative_prompt": red, "modalities": ["image"]}, {"seed": 9, "height": 64, **steps}),
    ({"prompt": "what is it?", "modalities": ["text"]}, {"seed": 1}),
    ({"prompt": red, "multi_modal_data": {"image": "missing.png"}}, {"seed": 1}),
)
drawn = pipeline.generate([red] * 2, seed=5, guidance_scale=3.0, num_steps=3)
assert first.final_output_type == "image"
assert equal(first.images, drawn)
assert equal(second.images, pipeline.generate(blue, negative_prompt=red, seed=9, height=64, num_steps=3))
assert text.final_output_type == "text"
assert text.multimodal_output["text"] == pipeline.answer(None, "what is it?", seed=1)[0]
assert "missing.png" in str(wrong)
assert wrong.status_code == 400

image = pipeline.generate(red, seed=0)[0]
ask = partial(dict, modalities=["text"], multi_modal_data={"image": image})
color, shape, caption = run(
    (ask(prompt="what color is the car?"), {"seed": 3}),
    (ask(prompt="what is this?"), {"seed": 4}),
    (ask(prompt=""), {"seed": 5, "extra_args": {"num_steps": 4}}),
)
answers = pipeline.answer(image, ["what color is the car?", "what is this?"], seed=[3, 4])
assert [color.multimodal_output["text"], shape.multimodal_output["text"]] == list(answers)
assert caption.multimodal_output["text"] == pipeline.caption(image, seed=5, num_steps=4)[0]

mask = torch.zeros(64, 64)
mask[:, :32] = 1
given = {"image": [image]}
varied, painted = run(
    ({"prompt": blue, "multi_modal_data": given}, {"seed": 2, "strength": 0.6, **steps}),
    ({"prompt": blue, "multi_modal_data": given | {"mask_image": mask.numpy()}}, {"seed": 2, **steps}),
)
assert equal(varied.images, pipeline.vary(image, blue, strength=0.6, seed=2, num_steps=3))
assert equal(painted.images, pipeline.inpaint(image, mask, blue, seed=2, num_steps=3))

dummy = engine._make_dummy_request(height=512, width=512, guidance_scale=0.0, num_inference_steps=2)
[warm_up] = run((dummy.prompt, vars(dummy.sampling_params) | {"seed": 0}), number=DUMMY_DIFFUSION_REQUEST_ID)
assert len(warm_up.images) == 1

signals = RequestCancellationRegistry()
signal = signals.create("cancelled")


def cancelled_meanwhile(*args: Any) -> Any:
    signals.cancel(["cancelled"])
    return call_pipeline(*args)


call_pipeline, ours.call_pipeline = ours.call_pipeline, cancelled_meanwhile
[stopped] = run((red, {"seed": 1}), number="cancelled", signal=signal)
assert isinstance(stopped, engines.DiffusionRequestAbortedError)
ours.call_pipeline = call_pipeline
signals.close()

with torch.device("meta"):  # the loader's default device is not ours
    runner.pipeline = ours.OmniModel(od_config=config)
assert equal(run((red, {"seed": 7, **steps}))[0].images, pipeline.generate(red, seed=7, num_steps=3))
config.dtype = torch.bfloat16
loader = DiffusersPipelineLoader(LoadConfig(), od_config=config)
runner.pipeline = loader.load_model("cpu", device=torch.device("cpu"))
expected = Pipeline.from_pretrained(folder, device="cpu", dtype="bfloat16").generate(red, seed=1, num_steps=3)
assert equal(run((red, {"seed": 1, **steps}))[0].images, expected)
print("all equal")
