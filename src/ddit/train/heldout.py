"""What a run is watched by: losses on samples that it never trains on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ddit.config.runs import DualRun
from ddit.diffusion import flow, masked
from ddit.model import DualDiT
from ddit.model.encoders import ImageCodec, TextCodec
from ddit.prompts import TokenizedPrompt
from ddit.train.batch import Pictures
from ddit.train.batches import HeldOutSamples
from ddit.train.learner import clean_latents
from ddit.train.parallel import Ranks

UPTAKE_T = 0.85


class _Part(NamedTuple):
    """Rows that one rank measures; `counts` (n,) bool is False for those that only keep the ranks in step."""

    rows: Tensor
    counts: Tensor


class HeldOut:
    """A fixed set of samples: the early signal of text uptake, and how well texts are read.

    Each rank measures its share; all make the same number of forward passes.
    """

    def __init__(
        self, cfg: DualRun, samples: HeldOutSamples, images: ImageCodec, codec: TextCodec, ranks: Ranks
    ) -> None:
        self.cfg, self.samples, self.images, self.codec, self.ranks = cfg, samples, images, codec, ranks
        self.captions = [text for text in samples.captions if text is not None]
        self.chunk = cfg.micro_batch_size or max(1, cfg.global_batch_size // ranks.size)

    def measure(self, model: DualDiT) -> dict[str, float]:
        """Velocity loss at t = 0.85 under the true and a shuffled caption; with a text loss also, from one pass on
        all-masked answers, the NLL per answer token (padding left out) and the share of answers exactly right.

        A measure for which no sample has the text is left out.
        """
        found: dict[str, float] = {}
        samples, fraction = self.samples, self.cfg.objective.i2t_fraction
        if fraction < 1 and samples.has_caption.any():
            found |= self._uptake(model)
        if fraction > 0:
            for name, texts, there in (
                ("question", samples.turn_texts, samples.has_question),
                ("caption", samples.caption_texts, samples.has_caption),
            ):
                if there.any():
                    found |= self._read(model, name, texts, there)
        return found

    def _parts(self, there: Tensor) -> Iterator[_Part]:
        """This rank's chunks of the rows that are there, filled up so that all ranks have as many of one size."""
        rows = there.nonzero()[:, 0]
        size, rank = self.ranks.size, self.ranks.index
        share = -(-len(rows) // size)
        positions = torch.arange(share) * size + rank
        counts = positions < len(rows)
        rows = rows[positions % len(rows)]
        for start in range(0, share, self.chunk):
            part = slice(start, start + self.chunk)
            yield _Part(rows[part], counts[part])

    def _total(self, values: dict[str, float]) -> dict[str, float]:
        means = self.ranks.mean(list(values.values()))
        return {name: mean * self.ranks.size for name, mean in zip(values, means, strict=True)}

    def latents(self, rows: Tensor) -> Tensor:
        """Clean latents of these samples."""
        pictures = self.samples.pictures
        chosen = Pictures(*(None if part is None else part[rows] for part in pictures))
        return clean_latents(chosen, self.images)

    def _uptake(self, model: DualDiT) -> dict[str, float]:
        there = self.samples.has_caption
        shuffled = torch.arange(len(there))
        shuffled[there] = shuffled[there].roll(1)
        sums = {"true": 0.0, "shuffled": 0.0, "count": 0.0}
        for rows, counts in self._parts(there):
            latents = self.latents(rows)
            noise = torch.stack([_noise(int(row), latents[0]) for row in rows])
            t = torch.full((len(rows),), UPTAKE_T, device=latents.device)
            noisy = flow.add_noise(latents, noise, t)
            for name, texts in (("true", rows), ("shuffled", shuffled[rows])):
                states = self.codec.states(self.samples.prompt_ids[texts])
                dtype = next(model.parameters()).dtype
                out = model(noisy.to(dtype), t, states.to(dtype), num_t2i=len(rows))
                assert out.velocity is not None
                error = (out.velocity.float() - (noise - latents)).square().flatten(1).mean(1)
                sums[name] += error.cpu()[counts].sum().item()
            sums["count"] += int(counts.sum())
        total = self._total(sums)
        true, false = total["true"] / total["count"], total["shuffled"] / total["count"]
        return {"velocity_true": true, "velocity_shuffled": false, "uptake": false - true}

    def _read(self, model: DualDiT, name: str, texts: TokenizedPrompt, there: Tensor) -> dict[str, float]:
        mask_id, eos = self.codec.mask_token_id, self.codec.eos_token_id
        sums = {"nll": 0.0, "words": 0.0, "exact": 0.0, "count": 0.0}
        for rows, counts in self._parts(there):
            ids, answer = texts.input_ids[rows], texts.answer_mask[rows]
            logits = self._logits(model, rows, torch.where(answer, mask_id, ids), answer)
            predicted = masked.subs_log_probs(logits, mask_id).float().cpu()  # (selected, V)
            wanted = ids[answer]
            is_word = (wanted != eos) & counts[:, None].expand_as(answer)[answer]
            sums["nll"] -= predicted.gather(1, wanted[:, None])[:, 0][is_word].sum().item()
            sums["words"] += int(is_word.sum())
            wrong = torch.zeros_like(answer)
            wrong[answer] = predicted.argmax(-1) != wanted
            sums["exact"] += int((~wrong.any(1) & counts).sum())
            sums["count"] += int(counts.sum())
        total = self._total(sums)
        return {
            f"{name}_nll": total["nll"] / max(total["words"], 1),
            f"{name}_exact": total["exact"] / total["count"],
        }

    def _logits(self, model: DualDiT, rows: Tensor, noisy_ids: Tensor, answer: Tensor) -> Tensor:
        latents = self.latents(rows)
        is_null = self.samples.pictures.is_null
        null_rows = None if is_null is None else is_null[rows].to(latents.device)
        states = self.codec.states(noisy_ids)
        dtype = next(model.parameters()).dtype
        t = torch.zeros(len(rows), device=latents.device)
        out = model(
            latents.to(dtype), t, states.to(dtype),
            num_t2i=0, logit_mask=answer.to(latents.device), null_rows=null_rows,
        )  # fmt: skip
        assert out.logits is not None
        return out.logits


def _noise(row: int, like: Tensor) -> Tensor:
    """The fixed noise of sample `row`."""
    noise = torch.randn(like.shape, generator=torch.Generator().manual_seed(row))
    return noise.to(like.device)
