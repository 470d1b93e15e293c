"""Text states that are computed ahead of the steps, by an encoder that is not on the device."""

from dataclasses import replace

import pytest
import torch
from stepping import make_trainer

from ddit.config.runs import DualRun
from ddit.train.frozen import encode_ahead
from ddit.train.loader import step_loader
from ddit.train.loop import train


@pytest.mark.parametrize("num_ahead", [1, 2, 5])
def test_states_ahead_are_those_of_the_step(plain: DualRun, num_ahead: int) -> None:
    trainer = make_trainer(replace(plain, micro_batch_size=4))
    codec, seen = trainer.codec, []
    loader = step_loader(trainer.data, 0, 3, 0)
    for step, batches in encode_ahead(loader, codec, num_ahead, trainer.cfg.model):
        seen.append(step)
        assert len(batches) == 2
        for batch, expected in zip(batches, trainer.data[step], strict=True):
            assert batch.t2i is not None
            assert batch.i2t is not None
            assert torch.equal(batch.i2t.noisy_ids, expected.i2t.noisy_ids)  # type: ignore[union-attr]
            for states, ids in (
                (batch.t2i.states, batch.t2i.prompt_ids),
                (batch.i2t.states, batch.i2t.noisy_ids),
            ):
                torch.testing.assert_close(states, codec.states(ids), atol=1e-5, rtol=1e-5)
    assert seen == [0, 1, 2]


def test_a_text_that_occurs_often_is_encoded_once(plain: DualRun, monkeypatch: pytest.MonkeyPatch) -> None:
    images_only = replace(plain.objective, i2t_fraction=0.0, alignment_weight=0.0, caption_dropout=1.0)
    trainer, encoded = make_trainer(replace(plain, objective=images_only)), []
    states = trainer.codec.states
    monkeypatch.setattr(trainer.codec, "states", lambda ids: encoded.append(len(ids)) or states(ids))
    for _, (batch,) in encode_ahead(step_loader(trainer.data, 0, 4, 0), trainer.codec, 4, trainer.cfg.model):
        assert batch.i2t is None
        assert batch.t2i is not None
        assert batch.t2i.states is not None
        assert len(batch.t2i.states) == plain.global_batch_size
    assert encoded == [1]  # all captions are dropped


def test_a_run_with_an_offloaded_text_encoder_takes_the_same_steps(plain: DualRun) -> None:
    def losses(name: str, **changes) -> list[float]:
        config = replace(plain, out=f"{plain.out}-{name}", parallel=replace(plain.parallel, **changes))
        trainer = make_trainer(config)
        steps = trainer.with_states(step_loader(trainer.data, 0, 3, 0))
        return [trainer.train_step(batches).values["total"] for _, batches in steps]

    found = losses("offloaded", text_encoder="offloaded", encode_ahead=2)
    assert found == pytest.approx(losses("whole"), abs=1e-5)


def test_a_whole_run_reports_with_an_offloaded_text_encoder(joint: DualRun) -> None:
    parallel = replace(joint.parallel, text_encoder="offloaded", encode_ahead=3)
    out = train(replace(joint, parallel=parallel))
    assert '"question_nll"' in (out / "log.jsonl").read_text()
    assert (out / "export" / "model_index.json").exists()


def test_an_encoder_that_is_trained_is_not_offloaded(plain: DualRun) -> None:
    parallel = replace(plain.parallel, text_encoder="offloaded")
    with pytest.raises(ValueError, match=r"parallel\.text_encoder=offloaded is for a frozen encoder"):
        make_trainer(replace(plain, parallel=parallel, train_mask_embedding=True))
