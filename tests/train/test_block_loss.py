"""The loss of texts in blocks: one pass over clean and noisy copies is a pass a block, each behind its clean text."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from stepping import make_trainer
from tiny_models import randomize, tiny_text_codec
from torch import Tensor

from ddit.config.data import WorldData
from ddit.config.runs import DualRun, ObjectiveConfig
from ddit.diffusion.blocks import block_times
from ddit.diffusion.masked import mask_tokens, nll_weights
from ddit.model import DualDiT, DualDiTConfig
from ddit.model.config import TextInput
from ddit.model.text_blocks import last_answer, one_copy, text_blocks
from ddit.objectives import MaskedConfig
from ddit.pipeline import Pipeline
from ddit.recipes.wide import wide_all
from ddit.train.batch import Batch, I2TBatch, Images, text_of
from ddit.train.learner import Learner
from ddit.train.log import LOG_FILE, read_log
from ddit.train.loop import train
from ddit.world import PRESETS, make_scene, render

CODEC, COUNT, LENGTH = tiny_text_codec(), 5, 9
MASK = CODEC.mask_token_id
CONFIG = DualDiTConfig(
    in_channels=4, hidden_size=32, depth=2, num_heads=2, text_dim=CODEC.width, vocab_size=CODEC.vocab_size,
    sample_size=8, pos_embed_max_size=6, image_attends_text=False,
)  # fmt: skip
OBJECTIVE = ObjectiveConfig(lambda_text=1.0)


def make_model(block_size: int, text_input: TextInput = "encoder") -> DualDiT:
    model = DualDiT(replace(CONFIG, text_block_size=block_size, text_input=text_input))
    randomize(model, 1, scale=0.15)
    return model


def make_batch(
    block_size: int, num_given: list[int], *, is_null: Tensor | None = None
) -> tuple[Batch, Tensor]:
    """Texts of other prompts each, and clean latents."""
    g = torch.Generator().manual_seed(3)
    ids = torch.randint(3, MASK, (COUNT, LENGTH), generator=g)
    answer = torch.arange(LENGTH) >= torch.tensor(num_given)[:, None]
    u = torch.rand(COUNT, generator=g)
    blocks = text_blocks(answer, block_size or LENGTH).expand(COUNT, -1)
    t = block_times(u, blocks).clamp(min=0.2)
    t = t if block_size else t[:, -1]
    noisy = mask_tokens(ids, answer, t, mask_token_id=MASK, generator=g)
    images = Images(None, None, None, None, is_null)
    return Batch(None, I2TBatch(images, ids, answer, noisy, t), {}), torch.randn(COUNT, 4, 8, 8, generator=g)


def gradients(model: DualDiT, loss: Tensor) -> list[Tensor]:
    found = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(model.parameters(), found, strict=True)]


def by_passes(model: DualDiT, i2t: I2TBatch, latents: Tensor, block_size: int) -> Tensor:
    """The loss, block after block: its noise behind clean text, in a pass over one copy."""
    blocks = text_blocks(i2t.answer_mask, block_size).expand(COUNT, -1)
    weights = nll_weights(i2t.input_ids, i2t.answer_mask, i2t.t, MaskedConfig())
    total = torch.zeros(())
    for block in range(1, int(blocks.max()) + 1):
        now = torch.where(blocks == block, i2t.noisy_ids, i2t.input_ids)
        now = torch.where(blocks > block, 7, now)  # whatever comes later
        is_masked, text = (now == MASK) & i2t.answer_mask, one_copy(blocks)
        states = CODEC.i2t_states(now, text, model.config.text_input)
        out = model(
            latents, torch.zeros(COUNT), states, num_t2i=0, logit_mask=is_masked, sees=text.sees
        )  # fmt: skip
        out.logits[:, MASK] = -torch.inf
        nll = -out.logits.log_softmax(-1).gather(1, i2t.input_ids[is_masked][:, None])[:, 0]
        total = total + (weights[is_masked] * nll).sum()
    return total / COUNT


@pytest.mark.parametrize("text_input", ["encoder", "embeddings"])
@pytest.mark.parametrize("num_given", [[1] * COUNT, [0, 1, 2, 3, 5]], ids=["captions", "questions"])
@pytest.mark.parametrize("block_size", [1, 2, 3])
def test_one_pass_over_two_copies_has_the_loss_and_gradients_of_a_pass_a_block(
    block_size: int, num_given: list[int], text_input: TextInput
) -> None:
    model, (batch, latents) = make_model(block_size, text_input), make_batch(block_size, num_given)
    assert batch.i2t is not None
    found = Learner(OBJECTIVE, model)(batch, (None, latents), CODEC).total
    expected = by_passes(model, batch.i2t, latents, block_size)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    for ours, theirs in zip(gradients(model, found), gradients(model, expected), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_one_block_of_everything_has_the_loss_without_blocks() -> None:
    """With nothing given: a prompt sees the answer in the model without blocks, and does not in blocks."""
    (batch, latents), (plain, _) = make_batch(LENGTH, [0] * COUNT), make_batch(0, [0] * COUNT)
    assert batch.i2t is not None
    assert torch.equal(batch.i2t.noisy_ids, plain.i2t.noisy_ids)  # type: ignore[union-attr]
    models = make_model(LENGTH), make_model(0)
    losses = [
        Learner(OBJECTIVE, model)(part, (None, latents), CODEC).total
        for model, part in zip(models, (batch, plain), strict=True)
    ]
    torch.testing.assert_close(*losses, atol=1e-5, rtol=1e-5)
    for pair in zip(*(gradients(*one) for one in zip(models, losses, strict=True)), strict=True):
        torch.testing.assert_close(*pair, atol=1e-5, rtol=1e-5)


def test_null_images_among_others_and_states_ahead_of_the_step_change_nothing() -> None:
    model, null = make_model(2), torch.tensor([False, True, False, True, False])
    batch, latents = make_batch(2, [0, 1, 2, 3, 5], is_null=null)
    i2t = batch.i2t
    assert i2t is not None
    ahead = batch._replace(i2t=i2t._replace(states=CODEC.i2t_states(*text_of(i2t, 2))))
    learner = Learner(OBJECTIVE, model)
    found, again = (learner(part, (None, latents), CODEC).total for part in (batch, ahead))
    assert torch.equal(found, again)
    apart = []
    for rows, shown in ((~null, latents[~null]), (null, None)):
        images = Images(None, None, None, None, null[rows])
        some = I2TBatch(images, *(part[rows] for part in i2t[1:5]))
        part = learner(Batch(None, some, {}), (None, shown), CODEC).total
        apart.append(part * int(rows.sum()) / COUNT)
    torch.testing.assert_close(found, torch.stack(apart).sum(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("text_input", ["encoder", "embeddings"])
def test_the_mask_tokens_embedding_learns_through_both_copies(text_input: TextInput) -> None:
    model, (batch, latents) = make_model(2, text_input), make_batch(2, [1] * COUNT)
    row = CODEC.encoder.get_input_embeddings().weight[MASK].detach().clone()
    learner = Learner(OBJECTIVE, model, mask_embedding=row)
    loss = learner(batch, (None, latents), CODEC).total
    torch.testing.assert_close(loss, Learner(OBJECTIVE, model)(batch, (None, latents), CODEC).total)
    loss.backward()
    assert learner.mask_embedding is not None
    assert learner.mask_embedding.grad is not None
    assert learner.mask_embedding.grad.abs().max() > 0


def test_of_a_conversation_the_last_answer_is_written_in_blocks() -> None:
    answers = torch.tensor(
        [[0, 0, 1, 1, 0, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1, 1, 1]]
    ).bool()
    last = last_answer(answers)
    assert last.int().tolist() == [[0, 0, 0, 0, 0, 1, 1, 1], [1] * 8, [0, 1, 1, 1, 1, 1, 1, 1]]
    assert text_blocks(last, 2)[0].tolist() == [0, 0, 0, 0, 0, 1, 1, 2]
    assert text_blocks(last[2:].expand(4, -1), 3).tolist() == [[0, 1, 1, 1, 2, 2, 2, 3]]


def test_a_run_is_converted_to_blocks_and_writes_in_them(plain: DualRun, tmp_path: Path) -> None:
    out = train(plain, stop_at=1)
    blocks = replace(
        plain, out=str(tmp_path / "b"), init=str(out / "export"), vae=None, text=None,
        model=replace(plain.model, image_attends_text=False, text_block_size=4),
    )  # fmt: skip
    i2t = make_trainer(blocks).data[0][0].i2t
    assert i2t is not None
    assert i2t.t.shape == i2t.input_ids.shape
    converted = Pipeline.from_pretrained(train(blocks, stop_at=2) / "export")
    assert converted.transformer.config.text_block_size == 4
    assert converted.caption(None, length=40, num_steps=2)
    assert converted.score(None, "a red dog")[0].log_prob < 0


def test_blocks_need_an_image_side_without_text_and_a_text_encoder_in_one_piece(plain: DualRun) -> None:
    with pytest.raises(ValueError, match="text_block_size 4 needs image_attends_text=False"):
        replace(plain.model, text_block_size=4)
    model = replace(plain.model, text_block_size=4, image_attends_text=False)
    with pytest.raises(ValueError, match=r"sharded does not go with model\.text_block_size"):
        replace(plain, model=model, parallel=replace(plain.parallel, text_encoder="sharded"))


@pytest.mark.slow
def test_the_shipped_model_learns_to_write_in_other_blocks_in_a_minute(tmp_path: Path) -> None:
    run = wide_all(tmp_path)
    scenes = WorldData(PRESETS["fixed"], num_scenes=2000)
    text = replace(run.objective.text, all_masked_share=0.0)
    run = replace(
        run, init="mini", vae="mini", text="mini", max_steps=60, global_batch_size=32,
        model=replace(run.model, text_block_size=4),
        data=replace(run.data, t2i=(), i2t=(scenes,), held_out=(), i2t_length=32, i2t_lengths=()),
        objective=replace(run.objective, i2t_fraction=1.0, text=text),
        optimizer=replace(run.optimizer, lr=2.5e-4, muon_lr=0.005, warmup_steps=5),
        report=replace(run.report, log_every=5, grid_every=10_000, tensorboard=False),
    )  # fmt: skip
    out = train(run)
    losses = [event["text"] for event in read_log(out / LOG_FILE) if "text" in event]
    assert sum(losses[-4:]) / 4 < 0.85 * sum(losses[:2]) / 2
    pipeline = Pipeline.from_pretrained(out / "export")
    assert pipeline.transformer.config.text_block_size == 4
    images = [Image.fromarray(render(make_scene(PRESETS["fixed"], "val", index))) for index in range(4)]
    longer = pipeline.caption(images, length=64)  # beyond the positions of training
    assert longer == pipeline.caption(images)
