"""A trainer of a run and its first steps, for the tests of the loop; all ranks call these together."""

from ddit.config.runs import DualRun
from ddit.devices import join_ranks
from ddit.train.loader import step_loader
from ddit.train.trainer import StepResult, Trainer


def make_trainer(config: DualRun) -> Trainer:
    return Trainer(config, join_ranks())


def take_steps(trainer: Trainer, num_steps: int) -> list[StepResult]:
    """Makes the next steps of a run."""
    loader = step_loader(trainer.data, trainer.step, trainer.step + num_steps, 0)
    return [trainer.train_step(batches) for _, batches in loader]
