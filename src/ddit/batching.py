"""What the pipeline's verbs share: one or many texts, numbers that must match, work in batches."""

from collections.abc import Callable, Iterator, Sequence

from torch import Tensor

StepCallback = Callable[[int, int, Tensor], None]
"""Called after every step with (steps done, steps in all, latents or token ids of the batch at work)."""


def as_list(texts: str | Sequence[str]) -> list[str]:
    texts = [texts] if isinstance(texts, str) else list(texts)
    if not texts:
        raise ValueError("no text given")
    return texts


def matched(items: list, count: int, what: str, others: str) -> list:
    """`items`, the only one repeated, as often as there are `others`."""
    if len(items) not in (1, count):
        raise ValueError(f"{len(items)} {what} do not match {count} {others}")
    return items * count if len(items) == 1 else items


def parts(
    count: int, batch_size: int, num_steps: int, on_step: StepCallback | None
) -> Iterator[tuple[slice, StepCallback | None]]:
    """Slices of at most batch_size, each with a callback that counts the steps of all slices."""
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    num_parts = -(-count // batch_size)
    for index in range(num_parts):
        part = slice(index * batch_size, min((index + 1) * batch_size, count))
        if on_step is None:
            yield part, None
            continue

        def step(done: int, total: int, state: Tensor, before: int = index * num_steps) -> None:
            on_step(before + done, num_parts * num_steps, state)

        yield part, step
