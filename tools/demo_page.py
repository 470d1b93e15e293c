"""`python tools/demo_page.py OUT`: six prompts as images, captioned and asked about, in OUT/index.html."""

import argparse
import base64
import sys
import time
from collections.abc import Sequence
from html import escape
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from ddit.devices import limit_threads
from ddit.model.folders import resolve
from ddit.pipeline import Pipeline


class Task(NamedTuple):
    """A prompt, the kind that GenEval counts it as, and a question about its image."""

    kind: str
    prompt: str
    question: str


class Card(NamedTuple):
    """A task and what came of it."""

    task: Task
    image: Image.Image
    caption: str
    answer: str


TASKS = (
    Task("single object", "a photo of an elephant", "what is this?"),
    Task("single object", "a photo of a clock", "how many clocks are there?"),
    Task("single object", "a photo of a donut", "is there a dog?"),
    Task("colour", "a photo of a red car", "what color is the car?"),
    Task("colour", "a photo of a blue umbrella", "is there an umbrella?"),
    Task("colour", "a photo of a purple horse", "what is in the picture?"),
)
"""Of the kinds of prompt at which `mini` is reliable (see README's table for the others)."""

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>ddit: six prompts, six images</title>
<style>
:root {{ color-scheme: light dark; --ground: #f6f5f2; --card: #fff; --ink: #1d1c1a; --soft: #6b6862; --line: #e3e0da; }}
@media (prefers-color-scheme: dark) {{
  :root {{ --ground: #161615; --card: #20201e; --ink: #eeece7; --soft: #a19d95; --line: #34332f; }}
}}
body {{ margin: 0 auto; max-width: 72rem; padding: 2rem 1rem 4rem; background: var(--ground); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; }}
h1 {{ font-size: 1.5rem; margin: 0; }}
header p {{ color: var(--soft); max-width: 44rem; margin: .5rem 0 2rem; }}
main {{ display: grid; gap: 1.25rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 18rem), 1fr)); }}
article {{ background: var(--card); border: 1px solid var(--line); border-radius: .75rem; overflow: hidden; }}
img {{ display: block; width: 100%; aspect-ratio: 1; image-rendering: pixelated; }}
h2 {{ font-size: 1.05rem; line-height: 1.35; margin: 0; }}
.text {{ padding: 1rem; }}
dl {{ display: grid; grid-template-columns: auto 1fr; gap: .35rem .9rem; margin: .9rem 0 0; }}
dt, .kind {{ color: var(--soft); font-size: .85rem; line-height: 1.7; }}
dd {{ margin: 0; overflow-wrap: anywhere; }}
b {{ font-weight: 600; }}
</style>
<header>
<h1>One model generates, captions and answers</h1>
<p>Each image is {size} pixels a side, shown enlarged, and was generated from the prompt below it. Then the same model
saw the image, without the prompt, and wrote the caption and the answer. Model {model}, seed {seed}.</p>
</header>
<main>
{cards}
</main>
</html>
"""

CARD = """<article>
<img src="data:image/png;base64,{png}" alt="Generated from: {prompt}">
<div class="text">
<div class="kind">{kind}</div>
<h2>{prompt}</h2>
<dl>
<dt>caption</dt><dd>{caption}</dd>
<dt>question</dt><dd>{question}</dd>
<dt>answer</dt><dd><b>{answer}</b></dd>
</dl>
</div>
</article>"""


def run_tasks(pipeline: Pipeline, tasks: Sequence[Task], *, seed: int = 0) -> list[Card]:
    """Generates an image of every prompt, then captions the images and asks about them; with progress on stderr."""
    start = time.monotonic()

    def log(text: str) -> None:
        print(f"[{time.monotonic() - start:5.1f} s] {text}", file=sys.stderr, flush=True)

    log(f"generating {len(tasks)} images")
    images = pipeline.generate([task.prompt for task in tasks], seed=seed)
    log("writing a caption for each")
    captions = pipeline.caption(images, seed=seed)
    log("asking a question about each")
    answers = pipeline.answer(images, [task.question for task in tasks], seed=seed)
    log("done")
    return [Card(*results) for results in zip(tasks, images, captions, answers, strict=True)]


def make_page(cards: Sequence[Card], *, model: str, seed: int) -> str:
    """One HTML file that needs no other: the images are embedded."""
    articles = [
        CARD.format(
            png=_png(card.image),
            caption=escape(card.caption) or "(empty)",
            answer=escape(card.answer) or "(empty)",
            **{name: escape(value) for name, value in card.task._asdict().items()},
        )
        for card in cards
    ]
    size = cards[0].image.width
    return PAGE.format(cards="\n".join(articles), size=size, model=escape(model), seed=seed)


def _png(image: Image.Image) -> str:
    buffer = BytesIO()
    image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python tools/demo_page.py", description=__doc__)
    parser.add_argument("out", type=Path, help="folder of the page, made if missing")
    parser.add_argument("--model", default="mini")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    print(f"loading {options.model}", file=sys.stderr, flush=True)
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        folder = resolve(options.model)
        limit_threads(folder)
        pipeline = Pipeline.from_pretrained(folder)
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from None
    cards = run_tasks(pipeline, TASKS, seed=options.seed)
    page = options.out / "index.html"
    page.write_text(make_page(cards, model=options.model, seed=options.seed), encoding="utf-8")
    print(page.resolve())
    print(
        "Open it in a browser. Next: .venv/bin/ddit --help; make setup adds the page, ddit page.",
        file=sys.stderr,
    )


if __name__ == "__main__":
    main()
