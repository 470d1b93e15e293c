"""Nodes of ComfyUI for a D-DiT: load, draw, in-paint, caption, ask.

Install: put this folder into ComfyUI's `custom_nodes/` and `ddit` into its environment. An input of 0 (-1 for the
guidance) is the model's own setting. Images go in and out as ComfyUI's tensors (B, H, W, C), masks (B, H, W) with 1
where the model generates again.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from comfy.utils import ProgressBar
from comfy_api.latest import ComfyExtension, io

from ddit import Pipeline
from ddit.images import to_tensor
from ddit.schema import list_options
from ddit.settings import ImageOptions

CATEGORY = "D-DiT"
Model = io.Custom("DDIT_PIPELINE")
HELP = {option.name: option.help for option in list_options(ImageOptions)}


@lru_cache(maxsize=1)
def load(name: str, dtype: str) -> Pipeline:
    return Pipeline.from_pretrained(name, dtype=None if dtype == "auto" else dtype)


def report_steps() -> Callable[[Any], None]:
    """Shows the progress of the node that runs, and ends it where the user asks for that (ComfyUI's bar does)."""
    bar = ProgressBar(1)
    return lambda step: bar.update_absolute(step.done, step.total)


def to_arrays(batch: torch.Tensor) -> list[Any]:
    return [image.cpu().float().numpy() for image in batch]


def to_batch(images: Sequence[Any]) -> torch.Tensor:
    return (to_tensor(list(images)).permute(0, 2, 3, 1) + 1) / 2


def sampling_inputs() -> list[Any]:
    return [
        io.Int.Input("seed", default=0, min=0, max=2**62 - 1, control_after_generate=True),
        io.Int.Input("num_steps", default=0, min=0, max=1000, tooltip=HELP["num_steps"]),
        io.Float.Input(
            "guidance_scale", default=-1, min=-1, max=100, step=0.1, tooltip=HELP["guidance_scale"]
        ),
    ]


def given(num_steps: int, guidance_scale: float) -> dict[str, Any]:
    """The options that are not left to the model."""
    return {"num_steps": num_steps or None, "guidance_scale": None if guidance_scale < 0 else guidance_scale}


class Load(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DditLoad",
            display_name="Load D-DiT",
            category=CATEGORY,
            inputs=[
                io.String.Input("model", default="mini", tooltip="mini, a folder, or an id of the hub"),
                io.Combo.Input("dtype", options=["auto", "bfloat16", "float16", "float32"]),
            ],
            outputs=[Model.Output("pipeline")],
        )

    @classmethod
    def execute(cls, model: str, dtype: str) -> io.NodeOutput:
        return io.NodeOutput(load(model.strip(), dtype))


class Draw(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DditDraw",
            display_name="Draw (D-DiT)",
            category=CATEGORY,
            inputs=[
                Model.Input("pipeline"),
                io.String.Input("prompt", multiline=True, default="a photo of a red car"),
                io.Int.Input("num_images", default=1, min=1, max=64),
                io.Int.Input("height", default=0, min=0, max=2048, tooltip=HELP["height"]),
                io.Int.Input("width", default=0, min=0, max=2048, tooltip=HELP["width"]),
                io.String.Input("negative_prompt", default="", tooltip=HELP["negative_prompt"]),
                *sampling_inputs(),
            ],
            outputs=[io.Image.Output("drawn")],
        )

    @classmethod
    def execute(
        cls,
        pipeline: Pipeline,
        prompt: str,
        num_images: int,
        height: int,
        width: int,
        negative_prompt: str,
        seed: int,
        num_steps: int,
        guidance_scale: float,
    ) -> io.NodeOutput:
        images = pipeline.generate(
            [prompt] * num_images,
            seed=seed,
            height=height or None,
            width=width or None,
            negative_prompt=negative_prompt or None,
            on_step=report_steps(),
            **given(num_steps, guidance_scale),
        )
        return io.NodeOutput(to_batch(images))


class Inpaint(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DditInpaint",
            display_name="In-paint (D-DiT)",
            category=CATEGORY,
            inputs=[
                Model.Input("pipeline"),
                io.Image.Input("images"),
                io.Mask.Input("mask"),
                io.String.Input("prompt", multiline=True, tooltip="what the whole image shows"),
                *sampling_inputs(),
            ],
            outputs=[io.Image.Output("drawn")],
        )

    @classmethod
    def execute(
        cls,
        pipeline: Pipeline,
        images: torch.Tensor,
        mask: torch.Tensor,
        prompt: str,
        seed: int,
        num_steps: int,
        guidance_scale: float,
    ) -> io.NodeOutput:
        painted = pipeline.inpaint(
            to_arrays(images),
            to_arrays(mask),
            prompt,
            seed=seed,
            on_step=report_steps(),
            **given(num_steps, guidance_scale),
        )
        return io.NodeOutput(to_batch(painted))


class Caption(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DditCaption",
            display_name="Caption (D-DiT)",
            category=CATEGORY,
            inputs=[
                Model.Input("pipeline"),
                io.Image.Input("images"),
                io.Int.Input("seed", default=0, min=0),
            ],
            outputs=[io.String.Output("captions", is_output_list=True)],
        )

    @classmethod
    def execute(cls, pipeline: Pipeline, images: torch.Tensor, seed: int) -> io.NodeOutput:
        return io.NodeOutput(list(pipeline.caption(to_arrays(images), seed=seed, on_step=report_steps())))


class Ask(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DditAsk",
            display_name="Ask (D-DiT)",
            category=CATEGORY,
            inputs=[
                Model.Input("pipeline"),
                io.Image.Input("images"),
                io.String.Input("question", default="what is this?"),
                io.Int.Input("seed", default=0, min=0),
            ],
            outputs=[io.String.Output("answers", is_output_list=True)],
        )

    @classmethod
    def execute(cls, pipeline: Pipeline, images: torch.Tensor, question: str, seed: int) -> io.NodeOutput:
        answers = pipeline.answer(to_arrays(images), question, seed=seed, on_step=report_steps())
        return io.NodeOutput(list(answers))


class DditExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [Load, Draw, Inpaint, Caption, Ask]


async def comfy_entrypoint() -> DditExtension:
    """What ComfyUI calls to find the nodes."""
    return DditExtension()
