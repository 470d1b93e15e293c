"""Model folders on the Hugging Face hub: their card, their figures, their upload."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from huggingface_hub import EvalResult, EvalResultEntry, HfApi, ModelCard, ModelCardData
from huggingface_hub import eval_result_entries_to_yaml as results_to_yaml

from ddit import __version__
from ddit.files import read_json

CARD_FILE, RESULTS_FOLDER = "README.md", ".eval_results"
RUN_FILE, SUMMARY_FILE = "config.json", "summary.json"
TAGS = ("ddit", "diffusion", "text-to-image", "image-to-text", "visual-question-answering")
_TASK_TYPES = {"geneval": "text-to-image", "caption": "image-to-text"}


class Result(NamedTuple):
    """What `ddit eval` found of one task: the content of its `summary.json`."""

    task: str
    figures: list[Mapping[str, Any]]
    about: Mapping[str, Any]

    @property
    def data_name(self) -> str:
        """What it was evaluated on, in words."""
        if "world" not in self.about:
            return f"{self.task}, official files"
        return f"small world, split {self.about['world'].get('split', 'test')}, {self.task}"


def read_results(folder: Path) -> list[Result]:
    """The summaries in a folder of `ddit eval`, or in its subfolders.

    Raises:
        ValueError: in one line, if there are none.
    """
    paths = sorted({*folder.glob(SUMMARY_FILE), *folder.glob(f"*/{SUMMARY_FILE}")})
    if not paths:
        raise ValueError(f"'{folder}' has no {SUMMARY_FILE}: name the --out folder of ddit eval")
    found = []
    for path in paths:
        values = read_json(path)
        if not isinstance(values.get("figures"), list) or "task" not in values:
            raise ValueError(f"'{path}' is no summary of ddit eval")
        found.append(Result(values["task"], values["figures"], values))
    return found


def check_results(results: Sequence[Result], model_hash: str) -> None:
    """ValueError in one line if figures are those of other weights."""
    for result in results:
        stored = result.about.get("model_hash")
        if stored is not None and stored != model_hash:
            raise ValueError(
                f"the figures of {result.task} are of another model: SHA-256 {stored[:12]}, this is {model_hash[:12]}"
            )


def card_header(
    name: str,
    *,
    license: str | None = None,
    base_model: str | None = None,
    datasets: Sequence[str] = (),
    tags: Sequence[str] = TAGS,
    results: Sequence[Result] = (),
) -> ModelCardData:
    """The header of a model card, which the hub reads.

    Args:
        license: one of the hub's names, such as apache-2.0; None is "unknown".
        base_model, datasets: ids of the hub.
        results: figures, which the hub shows beside the card (`model-index`).
    """
    evaluated = [
        EvalResult(
            task_type=_TASK_TYPES.get(result.task, "visual-question-answering"),
            dataset_type=f"small-world-{result.task}" if "world" in result.about else result.task,
            dataset_name=result.data_name,
            metric_type=figure["name"].replace(" ", "_"),
            metric_name=figure["name"],
            metric_value=round(figure["value"], 4),
        )
        for result in results
        for figure in result.figures
    ]
    return ModelCardData(
        license=license or "unknown",
        library_name="ddit",
        pipeline_tag="any-to-any",
        tags=list(tags),
        base_model=base_model,
        datasets=list(datasets) or None,
        model_name=name if evaluated else None,
        eval_results=evaluated or None,
    )


def write_card(
    folder: Path,
    name: str,
    header: ModelCardData,
    *,
    facts: Mapping[str, str],
    results: Sequence[Result] = (),
) -> None:
    """Writes the folder's `README.md`; of one that is there, the header is brought up to date and the text stays.

    Args:
        name: heading.
        facts: lines of the table on the model and its training.
    """
    path = folder / CARD_FILE
    if path.is_file():
        card = ModelCard.load(path)
        given = {key: value for key, value in header.to_dict().items() if value != "unknown"}
        old = card.data.to_dict()
        tags = list(dict.fromkeys([*(old.get("tags") or []), *given.get("tags", [])]))
        kept = {**old, **given, "tags": tags}
        text = f"---\n{yaml.safe_dump(kept, sort_keys=False, allow_unicode=True)}---\n{card.text}"
    else:
        text = "\n\n".join([f"---\n{header.to_yaml()}\n---", *_text(name, facts, results)]) + "\n"
    path.write_text(text, encoding="utf-8")


def _text(name: str, facts: Mapping[str, str], results: Sequence[Result]) -> list[str]:
    use = (
        "from ddit import Pipeline",
        "",
        f'pipeline = Pipeline.from_pretrained("{name}")',
        'image = pipeline("a photo of a dog").images[0]',
        "print(pipeline.caption(image)[0])",
        "",
        "# or, with ddit installed",
        "from diffusers import DiffusionPipeline",
        "",
        f'pipeline = DiffusionPipeline.from_pretrained("{name}", trust_remote_code=True)',
    )
    parts = [
        f"# {name}",
        "A D-DiT ([arXiv:2501.00289](https://arxiv.org/abs/2501.00289)): one diffusion transformer that generates "
        "images from text by flow matching, and captions and answers about images by masked diffusion.",
        "\n".join(["## Use", "", "```sh", "pip install ddit", "```", "", "```python", *use, "```"]),
        "\n".join(["## Model", "", "| | |", "|---|---|", *(f"| {key} | {facts[key]} |" for key in facts)]),
    ]
    if results:
        parts.append("\n".join(["## Figures", "", *_figures(results)]))
    limits = (
        "It captions and answers whatever it is shown, and does not say when it guesses.",
        "It has the biases of its data, and may reproduce images and texts of it.",
    )
    return [*parts, "\n".join(["## Limits", "", *(f"- {line}" for line in limits)])]


def _figures(results: Sequence[Result]) -> list[str]:
    rows = ["| evaluated on | figure | value | 95 % interval | n |", "|---|---|---|---|---|"]
    for result in results:
        for figure in result.figures:
            limits = " to ".join(f"{limit:.3f}" for limit in figure.get("interval") or ())
            rows.append(
                f"| {result.data_name} | {figure['name']} | {figure['value']:.3f} | {limits} | {figure['num']:,} |"
            )
    made = {(str(r.about.get("commit", ""))[:12], str(r.about.get("seed", ""))) for r in results}
    commits = ", ".join(sorted({commit for commit, _ in made if commit}))
    return [
        *rows,
        "",
        f"By `ddit eval`{f' at {commits}' if commits else ''}; intervals take samples as independent.",
    ]


def write_results(folder: Path, results: Sequence[Result], datasets: Mapping[str, str]) -> list[Path]:
    """Writes the headlines in the form that the hub's leaderboards read, `.eval_results/TASK.yaml`.

    Args:
        datasets: the hub's data set of each task: those of other tasks are not written, as the hub knows none.

    Raises:
        ValueError: in one line, for a task without a result, or one that was evaluated on the small world.
    """
    by_task = {result.task: result for result in results}
    written = []
    for task, dataset in datasets.items():
        if task not in by_task or not by_task[task].figures:
            raise ValueError(
                f"there is no figure of {task}: there are those of {', '.join(by_task) or 'no task'}"
            )
        result = by_task[task]
        if "world" in result.about:
            raise ValueError(f"{task} was evaluated on the small world, not on {dataset}")
        headline = result.figures[0]
        notes = f"{headline['name']}, n {headline['num']:,}; ddit {__version__}, by the official rules"
        date = result.about.get("started")
        entry = EvalResultEntry(dataset, task, round(headline["value"], 4), date=date, notes=notes)
        path = folder / RESULTS_FOLDER / f"{task}.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(yaml.safe_dump(results_to_yaml([entry]), sort_keys=False), encoding="utf-8")
        written.append(path)
    return written


def run_facts(folder: Path) -> dict[str, str]:
    """What the configuration of the training run says whose export a folder is; nothing if it is none."""
    path = folder.absolute().parent / RUN_FILE
    if not path.is_file() or not folder.name.startswith("export"):
        return {}
    values = read_json(path)
    data = values.get("data") or {}
    facts = {"started from": values.get("init"), "training": _training(values)}
    for direction, what in (("t2i", "images of texts"), ("i2t", "texts about images")):
        facts[f"data, {what}"] = _sources(data.get(direction) or data.get("t2i") or [])
    return {key: str(value) for key, value in facts.items() if value}


def _training(values: Mapping[str, Any]) -> str:
    rank = (values.get("lora") or {}).get("rank", 0)
    kind = f"adapters of rank {rank}" if rank else "all weights"
    return f"{values.get('max_steps', '?'):,} steps of {values.get('global_batch_size', '?')} samples, {kind}"


def _sources(sources: Sequence[Mapping[str, Any]]) -> str:
    names = []
    for source in sources:
        place = source.get("path") or source.get("name") or ""
        names.append(" ".join(filter(None, [str(source.get("kind", "")), Path(str(place)).name])))
    return ", ".join(names)


def push_folder(
    folder: Path, repo_id: str, *, private: bool = False, message: str | None = None, **_: Any
) -> str:
    """Uploads a model folder as one commit, and makes the repository if there is none; returns its address.

    The client's environment says where to (`HF_ENDPOINT`) and as whom (`HF_TOKEN`, or `hf auth login`).

    Raises:
        ValueError: in one line, if the hub refuses it.
    """
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

    api = HfApi(library_name="ddit", library_version=__version__)
    try:
        url = api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=url.repo_id,
            folder_path=folder,
            commit_message=message or f"Upload with ddit {__version__}",
            ignore_patterns=["**/.*.lock", "**/__pycache__/**"],
        )
    except (HfHubHTTPError, HFValidationError, LocalTokenNotFoundError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"'{folder}' was not uploaded to {repo_id}: {reason}") from None
    return str(url)


def parse_datasets(given: Sequence[str]) -> dict[str, str]:
    """TASK=OWNER/NAME, many, as a dictionary; ValueError for another form."""
    pairs = [text.partition("=") for text in given]
    for text, (task, _, dataset) in zip(given, pairs, strict=True):
        if not task or dataset.count("/") != 1:
            raise ValueError(f"a data set of the hub is named TASK=OWNER/NAME, got {text!r}")
    return {task: dataset for task, _, dataset in pairs}
