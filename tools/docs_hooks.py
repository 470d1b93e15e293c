"""Hooks of MkDocs (mkdocs.yml): the site has the repository's folders, notebooks are executed, equations are MathML.

Links between the pages, and to other files of the repository, therefore hold as they stand in the repository.
"""

import re
from functools import cache
from pathlib import Path

import nbformat
from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from nbclient import NotebookClient
from nbconvert import MarkdownExporter

ROOT = Path(__file__).parents[1]
PAGES = ("*.md", "benchmarks/**/*.md", "docs/**/*.md")
PIPELINE = "pipeline.Pipeline\n    options: { inherited_members: [from_pretrained, save_pretrained] }"
API = {
    "pipeline": ("The pipeline", [PIPELINE, "inference.batching.Samples", "inference.scoring"]),
    "settings": ("Settings", ["settings"]),
    "diffusion": (
        "The two processes",
        [
            "diffusion.flow",
            "diffusion.masked",
            "diffusion.text_sampler",
            "diffusion.unmasking",
            "diffusion.likelihood",
            "diffusion.blocks",
        ],
    ),
    "model": (
        "The model",
        ["model.dual_dit", "model.config", "model.block", "model.encoders", "model.adapters"],
    ),
    "inference": ("Inference", ["images", "prompts", "inference.callables", "inference.image_grid"]),
    "evaluation": (
        "Evaluation",
        ["eval.geneval", "eval.vqa", "eval.yesno", "eval.captioning", "eval.lmms_model"],
    ),
    "training": (
        "Training",
        ["fit.run", "config.runs", "config.data", "recipes", "train.loop", "train.objective"],
    ),
}
"""Pages of the reference: their titles and modules, or names in these."""

LINK = re.compile(r"\]\((?!\w+:|#)([^)#\s]+)")
BADGE = re.compile(r"^\[!\[.*\n", re.MULTILINE)
EQUATION = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)
FOREIGN = re.compile(r'(?:\ssrc|\ssrcset|<link[^>]*rel="?stylesheet"?[^>]*href)="?https?://[^"\s>]*')


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The repository's pages with what they link to, the notebooks and the reference, each at its own path."""
    theme = [file for file in files if file.src_dir != config.docs_dir]
    site = Files(theme)
    paths = [path for pattern in PAGES for path in sorted(ROOT.glob(pattern))]
    linked = {(path.parent / name).resolve() for path in paths for name in LINK.findall(path.read_text())}
    for path in dict.fromkeys([*paths, *sorted(path for path in linked if path.is_file())]):
        site.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    site.append(File.generated(config, "site.css", abs_src_path=str(ROOT / "docs/site.css")))
    for path in sorted(ROOT.glob("docs/notebooks/*.ipynb")):
        for name, content in execute(path).items():
            site.append(File.generated(config, f"docs/notebooks/{name}", content=content))
    for name, (title, members) in API.items():
        text = f"# {title}\n\n" + "\n".join(f"::: ddit.{member}\n" for member in members)
        site.append(File.generated(config, f"docs/api/{name}.md", content=text))
    site.append(File.generated(config, "benchmarks/index.md", content=measurements()))
    return site


@cache
def execute(path: Path) -> dict[str, str | bytes]:
    """A notebook's page and images by name, after all its cells have run in the repository's root.

    One that was saved with outputs, since it takes long, is shown as it is.
    """
    notebook = nbformat.read(path, as_version=4)
    if not any(cell.get("outputs") for cell in notebook.cells):
        place = {"metadata": {"path": str(ROOT)}}
        NotebookClient(
            notebook, timeout=900, resources=place, extra_arguments=["--log-level=ERROR"]
        ).execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
            for output in cell.outputs:
                output.get("data", {}).pop("image/jpeg", None)  # the same as its PNG
    text, resources = MarkdownExporter().from_notebook_node(notebook, {"unique_key": path.stem})
    return {f"{path.stem}.md": text, **resources["outputs"]}


def measurements() -> str:
    """A list of the pages in benchmarks/."""
    rows = []
    for path in sorted(ROOT.glob("benchmarks/**/*.md")):
        title = path.read_text().split("\n", 1)[0].removeprefix("# ")
        rows.append(f"- [{title}]({path.relative_to(ROOT / 'benchmarks').as_posix()})")
    return "\n".join(["# Measurements", "", "Each with its script, command and machine.", "", *rows, ""])


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Without badges, which are images of another host; notebooks are pages here."""
    return BADGE.sub("", markdown).replace(".ipynb)", ".md)")


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """With equations as MathML, which browsers render themselves."""
    return EQUATION.sub(lambda found: to_mathml(found[2], is_block=found[1] == "div"), html)


def to_mathml(latex: str, *, is_block: bool) -> str:
    latex = latex.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
    return convert(latex, display="block" if is_block else "inline")


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Ends the build where a page would load something from another host."""
    found = FOREIGN.search(output)
    if found:
        raise PluginError(f"{page.file.src_uri} would load{found[0]}")
    return output
