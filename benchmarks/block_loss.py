"""Two losses of texts in blocks, by the noise of their gradients and by their time.

    python benchmarks/block_loss.py

`all blocks`: a clean and a noisy copy of each text in one pass, which has the loss of every block. `one block`: a block
is drawn for each sample, its noise behind the clean text, weighted by the number of blocks. Both have one mean. What
counts is the variance of the gradient times the seconds of a step: the time that a loss takes to bring the noise of a
gradient to a given size. A model of width 64, trained for a while on texts of 128 tokens about scenes of the small
world; seconds of one thread. Prints the table of block_loss.md.
"""

import argparse
import random
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from ddit.diffusion.blocks import block_times
from ddit.diffusion.masked import mask_tokens, time_of_uniform
from ddit.images import to_tensor
from ddit.model import DualDiT
from ddit.model.text_blocks import BlockText, clean_and_noisy, one_copy, text_blocks
from ddit.pipeline import Pipeline
from ddit.train.cross_entropy import weighted_nll
from ddit.world import PRESETS, list_captions, make_scene, render

LENGTH = 128
SIZE = {"hidden_size": 64, "depth": 3, "num_heads": 2}
Data = tuple[Tensor, Tensor]


def make_data(pipeline: Pipeline, count: int) -> Data:
    """Latents of scenes, and texts (count, LENGTH) about them: captions in many wordings, one after the other."""
    codec, ids, images = pipeline.text_codec, [], []
    for index in range(count):
        scene = make_scene(PRESETS["free"], "train", index)
        captions = list_captions(scene)
        random.Random(index).shuffle(captions)
        words = codec.token_ids(" . ".join(captions * 20))
        ids.append([*codec.token_ids("A:"), *words][:LENGTH])
        images.append(render(scene))
    return pipeline.image_codec.encode(to_tensor(images)), torch.tensor(ids)


class Setting:
    """A model, its codec and its data; the losses of some of its samples."""

    def __init__(self, block_size: int, num_samples: int) -> None:
        self.pipeline = Pipeline.from_pretrained()
        own, self.codec = self.pipeline.transformer.config, self.pipeline.text_codec
        self.model = DualDiT(replace(own, **SIZE, text_block_size=block_size, text_input="embeddings"))
        self.model.init_weights()
        self.latents, self.ids = make_data(self.pipeline, num_samples)
        self.answer = torch.arange(LENGTH).expand(num_samples, -1) > 0
        self.blocks = text_blocks(self.answer, block_size)
        self.num_blocks = int(self.blocks.max())

    def all_blocks(self, rows: Tensor) -> Tensor:
        """Every block with noise, behind clean ones."""
        u = (torch.randperm(len(rows)) + torch.rand(len(rows))) / len(rows)
        noisy, weights = self._noise(rows, block_times(u, self.blocks.expand(len(rows), -1)))
        both = torch.cat([self.ids[rows], noisy], dim=1)
        weights = torch.cat([torch.zeros_like(weights), weights], dim=1)
        return self._loss(rows, both, clean_and_noisy(self.blocks), weights, both_copies=True)

    def one_block(self, rows: Tensor) -> Tensor:
        """One block with noise, drawn a sample; the texts are cut after the last of these."""
        drawn = 1 + torch.randint(self.num_blocks, (len(rows),))
        return self._one_block(rows, drawn)

    def one_block_of_equals(self, rows: Tensor) -> Tensor:
        """The same block of all samples, so that nothing is computed after it."""
        return self._one_block(rows, 1 + torch.randint(self.num_blocks, (1,)).expand(len(rows)))

    def _one_block(self, rows: Tensor, drawn: Tensor) -> Tensor:
        u = (torch.randperm(len(rows)) + torch.rand(len(rows))) / len(rows)
        noisy, weights = self._noise(rows, time_of_uniform(u)[:, None].expand(-1, LENGTH))
        is_drawn = self.blocks == drawn[:, None]
        end = int((self.blocks <= drawn.max()).sum())
        ids = torch.where(is_drawn, noisy, self.ids[rows])[:, :end]
        weights = (weights * is_drawn * self.num_blocks)[:, :end]
        return self._loss(rows, ids, one_copy(self.blocks[:, :end]), weights, both_copies=False)

    def _noise(self, rows: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        answer, mask = self.answer[rows], self.codec.mask_token_id
        noisy = mask_tokens(self.ids[rows], answer, t, mask_token_id=mask)
        return noisy, ((noisy == mask) & answer) / t / LENGTH / len(rows)

    def _loss(
        self, rows: Tensor, ids: Tensor, text: BlockText, weights: Tensor, *, both_copies: bool
    ) -> Tensor:
        scored, targets = weights > 0, self.ids[rows]
        targets = torch.cat([targets, targets], dim=1) if both_copies else targets[:, : ids.shape[1]]
        assert text.sees is not None
        hidden = self.model(
            self.latents[rows], torch.zeros(len(ids)), self.codec.i2t_states(ids, text, "embeddings"),
            num_t2i=0, logit_mask=scored, text_hidden=True, sees=text.sees.expand(len(ids), -1, -1),
        ).text_hidden  # fmt: skip
        head, mask = self.model.text_proj_out, self.codec.mask_token_id
        return weighted_nll(hidden, head.weight, head.bias, targets[scored], weights[scored], ruled_out=mask)


Loss = Callable[[Tensor], Tensor]


def train(setting: Setting, loss: Loss, num_steps: int, batch_size: int) -> None:
    optimizer = torch.optim.AdamW(setting.model.parameters(), lr=2e-3)
    for _ in range(num_steps):
        optimizer.zero_grad()
        loss(torch.randint(len(setting.ids), (batch_size,))).backward()
        torch.nn.utils.clip_grad_norm_(setting.model.parameters(), 2.0)
        optimizer.step()


def noise_of(setting: Setting, loss: Loss, count: int, batch_size: int) -> dict[str, float]:
    """Over `count` batches: mean and variance of the loss, variance of the gradient, seconds of a step."""
    losses, seconds = torch.zeros(count), torch.zeros(count)
    total = squares = torch.zeros(())
    for index in range(count):
        rows = torch.randint(len(setting.ids), (batch_size,))
        setting.model.zero_grad()
        start = time.process_time()
        value = loss(rows)
        value.backward()
        seconds[index], losses[index] = time.process_time() - start, value.item()
        gradient = torch.cat([p.grad.flatten() for p in setting.model.parameters() if p.grad is not None])
        total, squares = total + gradient, squares + gradient.square().sum()
    return {
        "loss": losses.mean().item(),
        "variance of the loss": losses.var().item(),
        "variance of the gradient": ((squares - total.square().sum() / count) / (count - 1)).item(),
        "seconds": seconds.median().item(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--block-sizes", type=int, nargs="+", default=[4, 16, 32])
    args = parser.parse_args()
    print(
        "| block | loss | mean | its variance | variance of the gradient | ms a step | variance x seconds |"
    )
    print("|---|---|---|---|---|---|---|")
    for block_size in args.block_sizes:
        torch.manual_seed(0)
        setting = Setting(block_size, 256)
        train(setting, setting.all_blocks, args.steps, args.batch_size)
        ways = {"all blocks": setting.all_blocks, "one block": setting.one_block}
        ways["one block, the same of a batch"] = setting.one_block_of_equals
        for name, loss in ways.items():
            found = noise_of(setting, loss, args.count, args.batch_size)
            noise = found["variance of the gradient"]
            print(
                f"| {block_size} | {name} | {found['loss']:.3f} | {found['variance of the loss']:.5f} | {noise:.4f} |"
                f" {found['seconds'] * 1e3:.0f} | {noise * found['seconds']:.5f} |", flush=True,
            )  # fmt: skip


if __name__ == "__main__":
    main()
