"""What the pipeline's verbs share: one or many texts, seeds, numbers that must match, work in batches."""

import logging
import operator
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from PIL import Image

logger = logging.getLogger(__name__)

State = TypeVar("State")
Result = TypeVar("Result")

Seed = int | Sequence[int] | None
"""Of the first sample, or one a sample; None draws a new one."""


class Samples(list[Result]):
    """What a verb gives: a list, with the seed of each sample in `seeds`."""

    seeds: list[int]

    def __init__(self, results: Iterable[Result], seeds: list[int]) -> None:
        super().__init__(results)
        self.seeds = seeds


class Step(NamedTuple, Generic[State]):
    """A step of a verb that works in batches.

    done, total: steps of all batches.
    rows: numbers of the samples in the batch at work.
    state: that batch, b samples in the order of `rows`: a `flow.ImageState` or a `text_sampler.TextState`.
    """

    done: int
    total: int
    rows: Sequence[int]
    state: State


StepCallback = Callable[[Step[Any]], None]
"""Called after every step. What it raises ends the call."""

BatchCallback = Callable[[int, int, Any], None]
"""What a process calls after every step of one batch: (steps done, steps in all, the batch's state)."""


def as_list(texts: str | Sequence[str], what: str = "texts") -> list[str]:
    """One text or many as a list.

    Raises:
        ValueError: if there is none.
        TypeError: if there is anything but texts.
    """
    many: Any = texts
    is_one = isinstance(many, str | bytes | Mapping | Set) or not isinstance(many, Iterable)
    found: list[Any] = [many] if is_one else list(many)
    if not found:
        raise ValueError("no text given")
    wrong = next((item for item in found if not isinstance(item, str)), "")
    if wrong != "":
        shown = repr(wrong) if isinstance(wrong, int | float | None) else type(wrong).__name__
        verbs = "; caption(images) and answer(images, questions) take images"
        hint = verbs if isinstance(wrong, Image.Image) else ""
        raise TypeError(f"{what} must be a text or a list of texts, got {shown}{hint}")
    return found


def matched(items: list, count: int, what: str, others: str) -> list:
    """`items`, the only one repeated, as often as there are `others`."""
    if len(items) not in (1, count):
        raise ValueError(f"{len(items)} {what} do not match {counted(count, others)}")
    return items * count if len(items) == 1 else items


def counted(count: int, things: str) -> str:
    """ "1 image" or "2 images"."""
    return f"{count} {things.removesuffix('s') if count == 1 else things}"


def repeated(items: Sequence[Result], count: int) -> list[Result]:
    """Each item so many times in a row."""
    return [item for item in items for _ in range(count)]


def parts(
    count: int, batch_size: int, num_steps: int, on_step: StepCallback | None
) -> Iterator[tuple[slice, BatchCallback | None]]:
    """Slices of at most batch_size, each with a callback that counts the steps of all slices."""
    _check_batch_size(batch_size)
    num_parts = -(-count // batch_size)
    for index in range(num_parts):
        part = slice(index * batch_size, min((index + 1) * batch_size, count))
        yield part, _counted(on_step, range(part.start, part.stop), index, num_parts, num_steps)


def groups(
    sizes: Sequence[Any], batch_size: int, num_steps: int, on_step: StepCallback | None
) -> Iterator[tuple[list[int], BatchCallback | None]]:
    """Samples of equal size, at most batch_size of them, each with a callback that counts the steps of all groups."""
    _check_batch_size(batch_size)
    found: list[list[int]] = []
    for row in sorted(range(len(sizes)), key=sizes.__getitem__):
        if not found or len(found[-1]) == batch_size or sizes[found[-1][0]] != sizes[row]:
            found.append([])
        found[-1].append(row)
    for index, rows in enumerate(found):
        yield rows, _counted(on_step, rows, index, len(found), num_steps)


def new_seed() -> int:
    """A seed that no one can foretell, short enough to be typed; logged, so that a call can be repeated."""
    seed = secrets.randbelow(2**31)
    logger.info("seed %d", seed)
    return seed


def sample_seeds(seed: Seed, count: int) -> list[int]:
    """The seeds of so many samples: `seed` and those after it (None: those after a new one), or the ones given.

    Raises:
        ValueError: on a seed that is negative or too large, or on seeds of another number than the samples.
        TypeError: on what is no whole number.
    """
    given: Any = new_seed() if seed is None else seed
    try:
        is_one = hasattr(given, "__index__") and not getattr(
            given, "ndim", 0
        )  # an array has one number a sample
        if isinstance(given, bool):
            raise TypeError
        first = operator.index(given) if is_one else 0
        seeds = range(first, first + count) if is_one else [operator.index(number) for number in given]
    except TypeError:
        kind = type(given).__name__
        raise TypeError(
            f"seed must be a whole number, a list with one a sample, or None; got {kind}"
        ) from None
    if len(seeds) != count:
        raise ValueError(f"{counted(len(seeds), 'seeds')} do not match {counted(count, 'samples')}")
    for number in seeds:
        if not 0 <= number < 2**62 + count:
            raise ValueError(f"seed must be at least 0 and below 2**62, got {number}")
    return list(seeds)


def one_seed(seed: int | None) -> int:
    """The seed of a call that takes one for all samples; None draws a new one.

    Raises ValueError and TypeError as `sample_seeds`.
    """
    if seed is not None and not hasattr(seed, "__index__"):
        raise TypeError(f"seed must be a whole number or None, got {type(seed).__name__}")
    return sample_seeds(seed, 1)[0]


def drawn_seeds(generator: torch.Generator | Sequence[torch.Generator]) -> Seed:
    """The seed that a generator draws, or those that several draw.

    Raises TypeError on what is no generator.
    """
    many = list(generator) if isinstance(generator, Sequence) else [generator]
    for one in many:
        if not isinstance(one, torch.Generator):
            raise TypeError(
                f"generator must be a torch.Generator or a list of them, got {type(one).__name__}"
            )
    seeds = [int(torch.randint(2**31, (), generator=one, device=one.device)) for one in many]
    return seeds if isinstance(generator, Sequence) else seeds[0]


def sample_generators(seeds: Iterable[int]) -> list[torch.Generator]:
    """A generator a sample, on the CPU."""
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def _check_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")


def _counted(
    on_step: StepCallback | None, rows: Sequence[int], index: int, num_parts: int, num_steps: int
) -> BatchCallback | None:
    if on_step is None:
        return None
    if not callable(on_step):
        raise TypeError(f"on_step must be a function that takes a Step, got {on_step!r}")

    def step(done: int, total: int, state: Any) -> None:
        on_step(Step(index * num_steps + done * num_steps // total, num_parts * num_steps, rows, state))

    return step
