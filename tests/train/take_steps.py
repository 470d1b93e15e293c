"""One rank of a run, for tests: takes steps up to a number, saves, and writes down losses and whole weights.

`python take_steps.py CONFIG OUT STEPS`; goes on from a checkpoint that is there.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from stepping import make_trainer, take_steps

from ddit.config.runs import DualRun, from_json
from ddit.train.checkpoint import find_newest
from ddit.train.parallel import gather_on_first


def main() -> None:
    torch.set_num_threads(1)
    config = from_json(Path(sys.argv[1]).read_text())
    assert isinstance(config, DualRun)
    out, num_steps = Path(sys.argv[2]), int(sys.argv[3])
    trainer = make_trainer(config)
    checkpoint = find_newest(trainer.out)
    if checkpoint is not None:
        trainer.resume(checkpoint)
    values = [result.values for result in take_steps(trainer, num_steps - trainer.step)]
    trainer.save()
    weights = gather_on_first(trainer._state(), trainer.ranks, torch.float32)
    if trainer.ranks.is_first:
        out.mkdir(parents=True, exist_ok=True)
        (out / "values.json").write_text(json.dumps(values))
        save_file(weights, out / "state.safetensors")


if __name__ == "__main__":
    main()
