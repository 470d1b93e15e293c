"""A D-DiT in VLMEvalKit. Copy this file to `vlmeval/vlm/ddit.py`, then add to `vlmeval/config.py`:

    from vlmeval.vlm.ddit import DDiT
    supported_VLM["ddit"] = partial(DDiT, model_path="JleeOfficial/dual_diff_sd3_512_sft")

and run `python run.py --data POPE MME --model ddit`.
"""

from ddit import Pipeline

from .base import BaseModel


class DDiT(BaseModel):
    """Answers with the model's own settings, as `ddit eval` does; of several images it is shown the first.

    Args:
        model_path: a model's name, folder or hub id.
        options: of loading and of sampling, by name: `dtype`, `int8`, ... and, as `settings`, `answer_steps`, ...
    """

    INTERLEAVE = False
    CAPTIONS = ("COCO_VAL",)
    """Data sets that ask for captions, for which a D-DiT has no prompt."""

    def __init__(self, model_path="mini", settings=None, **options):
        self.pipeline = Pipeline.from_pretrained(model_path, **options)
        self.pipeline.settings = self.pipeline.settings.with_defaults(settings or {})

    def generate_inner(self, message, dataset=None):
        question = "\n".join(part["value"] for part in message if part["type"] == "text")
        image = next((part["value"] for part in message if part["type"] == "image"), None)
        if image is not None and dataset in self.CAPTIONS:
            return self.pipeline.caption(image)[0]
        return self.pipeline.answer(image, question)[0]
