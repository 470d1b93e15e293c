"""Run configurations: strict dataclasses, composed; JSON in and out.

A run is described by exactly one of the `*Run` classes below, so that every key that it has is read by its stage.
"""

import json
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat

from ddit.config.data import DataConfig, Fraction, SourceConfig, WorldData
from ddit.config.renamed import rename_keys
from ddit.config.small_runs import AutoencoderRun, TeacherRun, TextEncoderRun
from ddit.model.config import DualDiTConfig
from ddit.objectives import FlowConfig, MaskedConfig
from ddit.schema import parse, strict, to_data
from ddit.settings import ImageSampling, PositiveInt
from ddit.world.presets import PRESETS
from ddit.world.wide.geneval import WIDE_TAGS
from ddit.world.wide.presets import WIDE_PRESETS

Value = TypeVar("Value")
FractionBelowOne = Annotated[float, Field(ge=0, lt=1)]

TEACHER_FILE, CHECK_FILE = "teacher.safetensors", "check.safetensors"
"""In `export/` of a `TeacherRun`."""


def settled(value: Value | Literal["auto"]) -> Value:
    """A setting that was "auto" until the run was fitted to its machine (`ddit.train.plan`)."""
    assert value != "auto", "the run was not fitted to its machine"
    return value


@strict
class OptimizerConfig:
    """Optimiser and schedule; the defaults are the published ones (stage 1), but for `decay`.

    `muon` takes the matrices of the transformer blocks (attention and MLP) and the stem's kernels with `muon_lr`;
    everything else, and everything under `adamw`, takes `lr`. The schedule scales both: warm-up, then `constant`,
    `linear` (constant, then down to `final_lr_fraction` over the last `decay_fraction` of the run) or `cosine`.

    Attributes:
        name: `adamw8bit` is AdamW with both moments in 8 bits.
        weights: what the trained weights, their gradients and their average are kept in. `bfloat16`, with `adamw8bit`
            alone, rounds them stochastically.
        decay: whose weights AdamW decays: matrices, or `all`, as published: biases, gains and the null image too.
        ema_decay: of the average, whose first steps forget sooner: step k has at most (1 + k) / (10 + k). Each run
            starts its own average.
    """

    name: Literal["adamw", "adamw8bit", "muon"] = "adamw"
    weights: Literal["float32", "bfloat16"] = "float32"
    lr: PositiveFloat = 3e-5
    muon_lr: PositiveFloat = 0.02
    weight_decay: NonNegativeFloat = 1e-2
    decay: Literal["matrices", "all"] = "matrices"
    betas: tuple[FractionBelowOne, FractionBelowOne] = (0.9, 0.999)
    max_grad_norm: PositiveFloat = 2.0
    warmup_steps: NonNegativeInt = 2000
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    decay_fraction: Fraction = 0.4
    final_lr_fraction: Fraction = 0.0
    ema_decay: FractionBelowOne = 0.9995

    def __post_init__(self) -> None:
        if self.weights == "bfloat16" and self.name != "adamw8bit":
            raise ValueError(
                "optimizer.weights=bfloat16 needs optimizer.name=adamw8bit, which rounds them right"
            )


@strict
class ObjectiveConfig:
    """What one step optimises: image_weight L_image + lambda_text L_text + alignment_weight L_align.

    Attributes:
        image_weight: 1 in the paper; less where the images are also tuned by a reward.
        i2t_fraction: share of each global batch whose text is masked; 0: images only.
        alignment_weight: our deviation from the paper, off by default: image tokens after block `alignment_block`
            (0-based) against a frozen teacher's features.
    """

    lambda_text: NonNegativeFloat = 0.2
    image_weight: NonNegativeFloat = 1.0
    i2t_fraction: Fraction = 0.5
    caption_dropout: Fraction = 0.1
    flow: FlowConfig = field(default_factory=FlowConfig)
    text: MaskedConfig = field(default_factory=MaskedConfig)
    alignment_weight: NonNegativeFloat = 0.0
    alignment_block: NonNegativeInt = 3


@strict
class ParallelConfig:
    """How the ranks share the model and how memory is traded for work.

    "auto" is decided at the start, by the memory of the devices (`ddit.train.plan`).

    Attributes:
        num_replicas: 1 shards the model over all ranks (FSDP2); more: so many replicas, each sharded over
            ranks / num_replicas (HSDP). "auto": one a node.
        reshard_after_forward: free the gathered weights of a block between its forward and backward pass.
        checkpoint_activations: recompute each block in the backward pass.
        accumulate: over several micro-batches each rank adds up whole gradients, which it shares with the last one, or
            shares those of every micro-batch and keeps its shard, which takes less memory.
        compile_blocks: torch.compile, block by block, of the transformer and of a T5 that each rank has whole.
        text_encoder: the frozen T5 on each rank whole, sharded like the model, whole in 8 bit, or offloaded: on the
            CPU, from where its blocks visit the device one by one to encode the texts of `encode_ahead` steps.
        encode_ahead: steps whose text states an offloaded T5 computes at a time; they wait in main memory.
        start_timeout_s: seconds that a rank waits for the others until the first step is done, which loads weights,
            indexes data and compiles; longer waits end the run.
        step_timeout_s: the same from then on, checkpoints and exports included.
    """

    num_replicas: PositiveInt | Literal["auto"] = 1
    reshard_after_forward: bool = True
    checkpoint_activations: bool | Literal["auto"] = False
    accumulate: Literal["whole", "sharded", "auto"] = "whole"
    compile_blocks: bool = False
    text_encoder: Literal["whole", "sharded", "int8", "offloaded", "auto"] = "whole"
    encode_ahead: PositiveInt = 32
    start_timeout_s: PositiveFloat = 1800.0
    step_timeout_s: PositiveFloat = 900.0


@strict
class LoraConfig:
    """Low-rank adapters (peft) instead of full weights; rank 0 trains everything.

    The text head and the null image, which SD3 does not have, are trained whole beside the adapters.
    """

    rank: NonNegativeInt = 0
    alpha: PositiveFloat = 16.0
    dropout: FractionBelowOne = 0.0


@strict
class RewardConfig:
    """Tuning on the model's own drawings, of which detectors tell which are right: `ddit.train.reward`.

    The prompts are of the worlds' presets. A round's drawings are shared by `num_steps` steps, and each is learnt at
    `num_times` noise levels.

    Attributes:
        detectors: files of their weights, never those that evaluation uses; a drawing is right if all find it right.
        check: file of the weights of a net that checks what the first detector finds; "": none.
        likeness: whether a right drawing is worth more the more its objects look like true sprites.
        weight: of this loss beside the others.
        presets: of a world each, with its share of the prompts.
        paraphrased_share: of the wide world's prompts, those whose wordings patterns make.
        num_prompts, group_size: prompts of a round, and drawings of each.
        max_advantage: standard deviations that a drawing may be better or worse than its group, beyond which it counts
            no more.
        keep: share of the old policy's weights that is left when a round begins; 0: it is the model of then.
        sampling: how drawings are made, without guidance.
    """

    detectors: tuple[str, ...]
    check: str = ""
    likeness: bool = False
    weight: PositiveFloat = 3.0
    presets: dict[str, NonNegativeFloat] = field(
        default_factory=lambda: {"fixed": 0.25, "wide-easy": 0.5, "wide": 0.25}
    )
    paraphrased_share: Fraction = 0.6
    num_prompts: PositiveInt = 32
    group_size: Annotated[int, Field(ge=2)] = 8
    num_steps: PositiveInt = 4
    num_times: PositiveInt = 3
    max_advantage: PositiveFloat = 1.2
    keep: FractionBelowOne = 0.3
    sampling: ImageSampling = field(
        default_factory=lambda: ImageSampling(num_steps=8, guidance_scale=1.0, sampler="dpm", shift=3.0)
    )

    def __post_init__(self) -> None:
        if not self.detectors:
            raise ValueError("reward.detectors names no file; ddit train wide-judge makes one")
        _check_presets(self.presets, "reward")
        if self.sampling.guidance_scale != 1:
            raise ValueError(
                f"reward.sampling.guidance_scale is {self.sampling.guidance_scale:g}: drawings to be learnt from are "
                "made without guidance, which is 1"
            )


@strict
class DistillationConfig:
    """Tuning so that a prompt is drawn alike in all its wordings: `ddit.train.distillation`.

    The prompts are of the worlds' presets. Each step has new ones, and learns every state that their sampling visits.

    Attributes:
        weight: of this loss beside the others.
        presets: of a world each, with its share of the prompts.
        emphasis: weights of the wide world's categories of prompts; 1 where none is given.
        paraphrased_share: of the wide world's prompts, those whose wordings patterns make.
        plain_share, empty_share: of the prompts, those that stay plain, and those that are dropped, as for guidance.
        num_prompts: of a step.
        sampling: how the teacher draws.
    """

    weight: PositiveFloat = 1.0
    presets: dict[str, NonNegativeFloat] = field(default_factory=lambda: {"wide-easy": 0.65, "wide": 0.35})
    emphasis: dict[str, PositiveFloat] = field(default_factory=dict)
    paraphrased_share: Fraction = 0.7
    plain_share: Fraction = 0.2
    empty_share: Fraction = 0.1
    num_prompts: PositiveInt = 16
    sampling: ImageSampling = field(
        default_factory=lambda: ImageSampling(num_steps=8, guidance_scale=1.5, sampler="dpm", shift=3.0)
    )

    def __post_init__(self) -> None:
        _check_presets(self.presets, "distillation")
        unknown = sorted(set(self.emphasis) - set(WIDE_TAGS))
        if unknown:
            raise ValueError(
                f"distillation.emphasis: unknown {', '.join(unknown)}; known: {', '.join(WIDE_TAGS)}"
            )
        if self.plain_share + self.empty_share >= 1:
            raise ValueError(
                "distillation.plain_share and empty_share leave no prompt to be worded otherwise"
            )


def _check_presets(presets: dict[str, float], name: str) -> None:
    known = {**PRESETS, **WIDE_PRESETS}
    unknown = sorted(set(presets) - set(known))
    if unknown:
        raise ValueError(f"{name}.presets: unknown {', '.join(unknown)}; known: {', '.join(known)}")
    if not sum(presets.values()):
        raise ValueError(f"{name}.presets gives no preset a share")


@strict
class ReportConfig:
    """How often a run reports (in steps) and saves (in minutes).

    Attributes:
        num_held_out: held-out samples that are measured; 0 measures nothing and makes no sample grids.
        num_grid: images of a sample grid, and rows of its table.
        grid_sampling: how the images of a sample grid are sampled.
        checkpoint_steps: a checkpoint after every so many steps; None: after every `checkpoint_minutes`.
        keep_best: a model folder `export_best` of the averaged weights that cost the least on held-out samples so far
            (`ddit.train.heldout.held_out_cost`); `best.json` says which.
        export_steps: a model folder `export-STEP` of the averaged weights, with a checkpoint, after every so many
            steps; None: at the end of the run alone.
        tensorboard: event files too, where TensorBoard is installed.
        wandb_project: of Weights & Biases; None: not used.
        trackio_project: of trackio, which keeps a run's figures on this machine; None: not used.
        profile_steps: the first rank traces the steps from the first number to before the second, with torch's
            profiler, into `trace-10-13.json.gz` for [10, 13].
        peak_tflops: of one device, which model FLOP utilisation is measured against; None: looked up or measured.
    """

    log_every: PositiveInt = 20
    evaluate_every: PositiveInt = 500
    grid_every: PositiveInt = 2000
    num_held_out: NonNegativeInt = 256
    num_grid: PositiveInt = 24
    grid_sampling: ImageSampling = field(
        default_factory=lambda: ImageSampling(num_steps=20, guidance_scale=3.0, shift=2.0)
    )
    checkpoint_minutes: NonNegativeFloat = 10.0
    checkpoint_steps: PositiveInt | None = None
    keep_checkpoints: PositiveInt = 2
    keep_best: bool = False
    export_steps: PositiveInt | None = None
    tensorboard: bool = True
    wandb_project: str | None = None
    trackio_project: str | None = None
    peak_tflops: PositiveFloat | None = None
    profile_steps: tuple[NonNegativeInt, NonNegativeInt] | None = None

    def __post_init__(self) -> None:
        if self.profile_steps is not None and self.profile_steps[0] >= self.profile_steps[1]:
            first, last = self.profile_steps
            raise ValueError(f"report.profile_steps is [{first}, {last}]: the second number must be larger")


@strict
class DualRun:
    """Training of the two-headed transformer: image only, joint, or question tuning, by `objective` and `data` alone.

    Attributes:
        init: a model folder (ours or SD3's) or a hub id, whose transformer is where this run begins.
        fresh: parts of the transformer that begin anew all the same, such as `text_proj_out` under another tokenizer.
        vae: folder of the frozen autoencoder, or a model folder that holds it; None: that of `init`.
        text: folder that holds the frozen text encoder and its tokenizer; None: `init`.
        prompts: the templates, see `ddit.prompts`.
        micro_batch_size: samples a rank holds at once; None: its whole part of the global batch; "auto": as many as
            fit its memory.
        dropout: within the MLPs, for few data; the paper has none.
        train_mask_embedding: the mask token's embedding row is trained too, and nothing else of the text encoder.
        compute_dtype: of products and activations over float32 weights; "auto" is bfloat16, or float32 on a CPU
            without fast bfloat16 products.
        reward: tunes the model on its own drawings, beside the rest; None: not so.
        distillation: tunes it to draw a prompt alike in all its wordings, beside the rest; None: not so.
        max_seconds: of training, evaluations and checkpoints, after which the run ends as at `max_steps`; the schedule
            of the learning rate follows whichever share is the larger. None: steps alone count.
        non_finite: a loss or gradient that is not finite stops the run before the step, or skips the step (at most
            `max_skipped` in a row).
    """

    out: str
    model: DualDiTConfig
    data: DataConfig
    kind: Literal["dual"] = "dual"
    init: str | None = None
    fresh: tuple[str, ...] = ()
    vae: str | None = None
    text: str | None = None
    prompts: Literal["published", "mini"] = "published"
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    reward: RewardConfig | None = None
    distillation: DistillationConfig | None = None
    report: ReportConfig = field(default_factory=ReportConfig)
    dropout: FractionBelowOne = 0.0
    train_mask_embedding: bool = False
    global_batch_size: PositiveInt = 256
    micro_batch_size: PositiveInt | Literal["auto"] | None = None
    max_steps: PositiveInt = 60_000
    max_seconds: PositiveFloat | None = None
    seed: NonNegativeInt = 0
    compute_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    non_finite: Literal["stop", "skip"] = "stop"
    max_skipped: NonNegativeInt = 10

    def __post_init__(self) -> None:
        block, weight = self.objective.alignment_block, self.objective.alignment_weight
        if self.reaches_into_text_encoder and self.parallel.text_encoder == "sharded":
            raise ValueError(
                "parallel.text_encoder=sharded does not go with model.text_block_size and text_input=embeddings: take "
                "whole, int8 or offloaded"
            )
        if self.data.i2t_lengths and self.parallel.text_encoder == "sharded":
            raise ValueError(
                "data.i2t_lengths does not go with parallel.text_encoder=sharded, whose ranks must call it alike: take "
                "whole, int8 or offloaded"
            )
        if self.reward is not None and self.distillation is not None:
            raise ValueError("reward and distillation do not go together: first one, then the other")
        for name in ("reward", "distillation"):
            if getattr(self, name) is not None and self.lora.rank > 0:
                raise ValueError(f"{name} does not go with lora.rank above 0")
        if self.data.texts_per_image > 1 and self.model.image_attends_text:
            raise ValueError("data.texts_per_image above 1 needs model.image_attends_text=false")
        if weight > 0 and block >= self.model.depth:
            raise ValueError(f"objective.alignment_block {block} is not below model.depth {self.model.depth}")

    @property
    def reaches_into_text_encoder(self) -> bool:
        """Whether layers or the table of the text encoder are used by themselves, which shards do not allow."""
        return self.model.text_block_size > 0 or self.model.text_input == "embeddings"

    @property
    def i2t_tokens(self) -> int:
        """Tokens of an i2t text as a step reads it: twice its own in blocks, clean and noisy."""
        return self.data.i2t_length * (2 if self.model.text_block_size else 1)


@strict
class LatentsRun:
    """Precomputation of a source's latents (and a teacher's features), the form in which `latents` of a source reads
    them. Several processes (torchrun) share the work.

    `image_size` and `num_buckets` are those of the run that is to read them, and `bucket_unit` its autoencoder's
    downsampling times its patch size. `teacher` is a file of weights, whose features are pooled to `feature_side` a
    side. Of each image there are `num_views` (`ddit.data.views`), which training draws from; every second one is
    mirrored if `mirror` says so. With `by_image` an image that several samples share (as questions do) is
    encoded once.
    """

    out: str
    vae: str
    source: SourceConfig = field(default_factory=WorldData)
    teacher: str | None = None
    feature_side: PositiveInt = 4
    kind: Literal["latents"] = "latents"
    image_size: PositiveInt = 64
    num_buckets: PositiveInt = 1
    bucket_unit: PositiveInt = 16
    num_views: PositiveInt = 1
    mirror: bool = True
    by_image: bool = False
    shard_size: PositiveInt = 1000
    batch_size: PositiveInt = 100
    compute_dtype: Literal["auto", "float32", "bfloat16"] = "auto"


RunConfig = DualRun | AutoencoderRun | TextEncoderRun | TeacherRun | LatentsRun
_AnyRun: Any = Annotated[RunConfig, Field(discriminator="kind")]


def to_json(config: RunConfig) -> str:
    return json.dumps(to_data(config), indent=2) + "\n"


def from_json(text: str) -> RunConfig:
    """The inverse of `to_json`; it takes the keys of version 0.1 too.

    Raises:
        ValueError: in one line, for an unknown or missing key or a bad value.
    """
    return parse(_AnyRun, rename_keys(json.loads(text)))


def save_config(config: RunConfig, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(to_json(config))
