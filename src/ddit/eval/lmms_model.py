"""A D-DiT as a model of lmms-eval: `python -m lmms_eval --model ddit --model_args pretrained=mini --tasks ...`."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from lmms_eval.api.instance import GenerationResult  # pyright: ignore[reportMissingImports]
from lmms_eval.api.model import lmms  # pyright: ignore[reportMissingImports]
from tqdm import tqdm

from ddit.devices import rank_device
from ddit.images import ImageSource
from ddit.pipeline import Pipeline
from ddit.schema import list_options, override
from ddit.settings import LoadOptions


class _Asked(NamedTuple):
    """A request: a question, or None for a caption, about an image or none."""

    question: str | None
    image: ImageSource | None
    seed: int
    length: int | None = None
    until: tuple[str, ...] = ()


@dataclass
class _Rounds:
    """A request of several rounds: the task's function, what it gave for the next round, and what was said."""

    next_round: Callable[..., Any]
    where: Sequence[Any]
    options: dict[str, Any]
    context: str
    visuals: Any
    said: list[str] = field(default_factory=list)
    info: Any = None
    is_over: bool = False


class _Bound(NamedTuple):
    """A text whose likelihood is asked for, and the key of its question: task, split, document, context."""

    text: str
    asked: _Asked
    key: tuple[Any, ...]


class DDiT(lmms):
    """Answers, captions and likelihoods of a D-DiT.

    Prompts are shown as the tasks give them. Texts are sampled as the model's settings say, as by `ddit eval`: of a
    task's generation options, `until` and a `max_new_tokens` below the model's own length are followed.

    Args:
        pretrained: a model's name, folder or hub id.
        batch_size: samples at a time.
        seed: of document 0; document k has seed + k.
        captions: a regular expression. A task in whose name it is found gets captions, without its prompt, which a
            D-DiT does not have; so does an empty prompt.
        options: of loading and of sampling, by name: `dtype`, `adapter`, `answer_steps`, `temperature`, ...

    Raises:
        ValueError, TypeError: in one line, for an unknown model or option.
    """

    is_simple = True

    def __init__(
        self,
        pretrained: str = "mini",
        batch_size: int | str = 16,
        *,
        seed: int = 0,
        captions: str = "cap|flickr30k",
        max_batch_size: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        known = {option.name for option in list_options(LoadOptions)}
        loading = override(LoadOptions(), {name: value for name, value in options.items() if name in known})
        device = loading.device or rank_device()
        self.pipeline = Pipeline.from_pretrained(pretrained, **{**asdict(loading), "device": device})
        given = {name: value for name, value in options.items() if name not in known}
        self.pipeline.settings = self.pipeline.settings.with_defaults(given)
        self.device = self.pipeline.device
        self.batch_size, self.seed, self.captions = int(batch_size), seed, re.compile(captions)

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """The answer or caption of each request."""
        texts: list[str] = []
        for chunk in self._chunks(requests):
            asked = []
            for context, options, doc_to_visual, *where in (request.args for request in chunk):
                asked.append(self._ask(context, doc_to_visual(self._doc(*where)), where, options))
            texts += self._write(asked)
        return texts

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[list[str]]:
        """The texts of each request's rounds. A round shows what the task gives for it, without those before."""
        outputs: list[list[str]] = []
        for chunk in self._chunks(requests):
            rounds = [self._rounds(*request.args) for request in chunk]
            number = 0
            while running := [one for one in rounds if not one.is_over]:
                number += 1
                texts = self._write(
                    [self._ask(one.context, one.visuals, one.where, one.options) for one in running]
                )
                for one, text in zip(running, texts, strict=True):
                    one.visuals, one.context, one.is_over, said, one.info = one.next_round(
                        self._doc(*one.where),
                        previous_output=[*one.said, text],
                        round_idx=number,
                        previous_round_info=one.info,
                    )
                    one.said = list(said)
            outputs += [one.said for one in rounds]
        return outputs

    def _rounds(
        self, context: str, options: dict[str, Any], doc_to_visual: Any, doc_to_text: Any, *where: Any
    ) -> _Rounds:
        return _Rounds(doc_to_text, where, options, context, doc_to_visual(self._doc(*where)))

    def loglikelihood(self, requests: Sequence[Any]) -> list[Any]:
        """Of each continuation, its loss in nats, and whether the model's own answer is that.

        The loss is minus the bound of the log-likelihood (`Pipeline.score`): lmms-eval takes the least for the best.
        Each pair is the text of a `GenerationResult`, since lmms-eval 0.7 makes a string of a bare one.
        """
        found: list[Any] = []
        own: dict[tuple[Any, ...], str] = {}
        for chunk in self._chunks(requests):
            bounds = self._bounds(chunk)
            new = {one.key: one.asked for one in bounds if one.key not in own}
            own.update(zip(new, self._write(list(new.values()), temperature=0.0), strict=True))
            losses = [0.0] * len(bounds)
            for places in _groups([one.asked for one in bounds]):
                group = [bounds[place].asked for place in places]
                images: Any = None if group[0].image is None else [one.image for one in group]
                questions: Any = None if group[0].question is None else [one.question for one in group]
                scores = self.pipeline.score(
                    images,
                    [bounds[place].text for place in places],
                    questions=questions,
                    seed=self.seed,
                    batch_size=self.batch_size,
                )
                for place, score in zip(places, scores, strict=True):
                    losses[place] = -score.log_prob
            pairs = [
                (loss, own[one.key].strip() == one.text) for loss, one in zip(losses, bounds, strict=True)
            ]
            found += [GenerationResult(pair) for pair in pairs]
        return found

    def _bounds(self, chunk: Sequence[Any]) -> list[_Bound]:
        """What is asked for in each request; one document's image is read once, for all of its texts."""
        asked: dict[tuple[Any, ...], _Asked] = {}
        bounds = []
        for context, continuation, *rest in (request.args for request in chunk):
            doc_to_visual, *where = rest or (_no_visuals, 0, "", "")  # a text alone has no document
            doc, key = self._doc(*where) if rest else None, (*where, context)
            if key not in asked:
                asked[key] = self._ask(context, doc_to_visual(doc), where, {})
            text = continuation(doc) if callable(continuation) else continuation
            bounds.append(_Bound(str(text).strip(), asked[key], key))
        return bounds

    def _chunks(self, requests: Sequence[Any]) -> Iterator[Sequence[Any]]:
        starts = range(0, len(requests), self.batch_size)
        for start in tqdm(starts, disable=self.rank != 0, desc="ddit"):
            yield requests[start : start + self.batch_size]

    def _doc(self, *where: Any) -> Any:
        doc_id, task, split = where
        return self.task_dict[task][split][doc_id]

    def _ask(self, context: str, visuals: Any, where: Sequence[Any], options: dict[str, Any]) -> _Asked:
        """Raises ValueError for several images, of which the model is shown one."""
        doc_id, task, _ = where
        images = [image for image in visuals or [] if image is not None]
        if len(images) > 1:
            raise ValueError(f"a D-DiT is shown one image: document {doc_id} of {task} has {len(images)}")
        is_caption = not context.strip() or (images and self.captions.search(task))
        until = options.get("until") or ()
        return _Asked(
            question=None if is_caption else context.strip(),
            image=images[0] if images else None,
            seed=self.seed + int(doc_id),
            length=self._length(options.get("max_new_tokens"), is_caption=bool(is_caption)),
            until=(until,) if isinstance(until, str) else tuple(until),
        )

    def _length(self, most: int | None, *, is_caption: bool) -> int | None:
        """Positions to fill: the model's own number (None) is the most."""
        settings = self.pipeline.settings
        own = (settings.caption_length if is_caption else settings.answer_length) or settings.text_length
        return None if most is None or most >= own else most

    def _write(self, asked: Sequence[_Asked], **options: Any) -> list[str]:
        """The texts of requests, those of a kind together."""
        texts = [""] * len(asked)
        for places in _groups(asked):
            group = [asked[place] for place in places]
            images: Any = None if group[0].image is None else [one.image for one in group]
            common = {
                **options,
                "seed": [one.seed for one in group],
                "length": group[0].length,
                "batch_size": self.batch_size,
            }
            questions: Any = [one.question for one in group]
            made = (
                self._captions(images, common)
                if group[0].question is None
                else self.pipeline.answer(images, questions, **common)
            )
            for place, text in zip(places, made, strict=True):
                texts[place] = _cut(text, asked[place].until)
        return texts

    def _captions(self, images: list[Any] | None, options: dict[str, Any]) -> list[str]:
        if images is not None:
            return self.pipeline.caption(images, **options)
        seeds = options.pop("seed")
        return [self.pipeline.caption(None, seed=seed, **options)[0] for seed in seeds]


def _no_visuals(doc: Any) -> None:
    return None


def _groups(asked: Sequence[_Asked]) -> list[list[int]]:
    """The places of requests that one call takes together."""
    found: dict[tuple[bool, bool, int | None], list[int]] = defaultdict(list)
    for place, one in enumerate(asked):
        found[one.question is None, one.image is None, one.length].append(place)
    return list(found.values())


def _cut(text: str, until: Sequence[str]) -> str:
    """The text before the first of these."""
    for end in until:
        text = text.split(end, 1)[0] if end else text
    return text
