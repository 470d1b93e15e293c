"""What a rank computes one micro step from: plain tensors, with everything random in them already drawn."""

from __future__ import annotations

from typing import NamedTuple, TypeVar, cast

from torch import Tensor

Part = TypeVar("Part")


class Pictures(NamedTuple):
    """The pictures of a half-batch: either `pixels` or, where they were cached, the latents' `mean` (and `std`).

    pixels (n, 3, H, W) uint8, which `encoders.ImageCodec` makes [-1, 1] of on its device (bytes are a quarter of what
    a worker would send otherwise); mean, std (n, C, h, w); sampling_noise (n, C, h, w) standard normal, or None for
    the mode; is_null (n,) bool: these have no picture (their pixels or latents are zeros), or None if all have one.
    """

    pixels: Tensor | None
    mean: Tensor | None
    std: Tensor | None
    sampling_noise: Tensor | None
    is_null: Tensor | None = None


class Drawn(NamedTuple):
    """Pictures to draw: prompt_ids (n, L) (dropped captions are the empty prompt), t (n,), noise (n, C, h, w).

    features (n, F, h', w'): the teacher's, where alignment is on.
    """

    pictures: Pictures
    prompt_ids: Tensor
    t: Tensor
    noise: Tensor
    features: Tensor | None = None


class Read(NamedTuple):
    """Pictures to read: input_ids and noisy_ids (n, L), answer_mask (n, L) bool, t (n,)."""

    pictures: Pictures
    input_ids: Tensor
    answer_mask: Tensor
    noisy_ids: Tensor
    t: Tensor


class Batch(NamedTuple):
    """One micro-batch of one rank; a half that a run does not train is None. `corrupt`: samples replaced, by cause."""

    drawn: Drawn | None
    read: Read | None
    corrupt: dict[str, int]


def split(batch: Batch, num_parts: int) -> list[Batch]:
    """The micro-batches of a rank's batch, in order and of equal size (views); `corrupt` stays with the first."""
    parts = []
    for i in range(num_parts):
        corrupt = batch.corrupt if i == 0 else {}
        parts.append(Batch(_cut(batch.drawn, i, num_parts), _cut(batch.read, i, num_parts), corrupt))
    return parts


def _cut(value: Part, i: int, num_parts: int) -> Part:
    """Part `i` of a tensor, or of all tensors of a (nested) tuple."""
    if isinstance(value, Tensor):
        size = len(value) // num_parts
        return cast(Part, value[i * size : (i + 1) * size])
    if isinstance(value, tuple):
        return cast(Part, type(value)(*(_cut(entry, i, num_parts) for entry in value)))
    assert value is None
    return value
