"""The command `ddit` with its arguments, on one rank of which something goes wrong: DDIT_FAULT="moment,fault,rank".

DDIT_FAULT_FILE gets the time of the fault. With DDIT_OTHERS="moment,stuck" the other ranks come to wait for ever.
"""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist

import ddit.data.check
import ddit.train.precompute
import ddit.train.trainer
from ddit.cli import main
from ddit.train.batches import StepData
from ddit.train.trainer import Trainer

FAULTS: dict[str, Callable[[], Any]] = {
    "RuntimeError": lambda: raise_(RuntimeError("a fault\nof two lines")),
    "KeyError": lambda: raise_(KeyError("key")),
    "MemoryError": lambda: raise_(MemoryError()),
    "SystemExit": lambda: raise_(SystemExit(3)),
    "killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "exit": lambda: os._exit(5),
    "asleep": lambda: time.sleep(3600),
    "stuck": lambda: wait_for_ever(),
}


def wait_for_ever() -> None:
    """In C++ and deaf to Python's signal handlers, as in a collective of NCCL's of which a rank is missing."""
    store = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), wait_for_workers=False)
    store.wait(["never"], timedelta(hours=1))


def raise_(error: BaseException) -> None:
    raise error


MOMENTS: dict[str, tuple[object, str, int]] = {
    "opening": (ddit.train.trainer, "StepData", 0),
    "first batch": (StepData, "rank_batch", 0),
    "later batch": (StepData, "rank_batch", 2),
    "step": (Trainer, "train_step", 2),
    "saving": (Trainer, "save", 0),
    "exporting": (Trainer, "export", 0),
    "checking": (ddit.data.check, "_read_sample", 70),
    "opening to check": (ddit.data.check, "open_source", 0),
    "reading": (ddit.train.precompute._Images, "__getitem__", 1),
    "encoding": (ddit.train.precompute._Encoder, "__call__", 1),
    "writing": (ddit.train.precompute, "write_shard", 1),
}
"""What goes wrong, by its module or class and name, and how many of its calls go well before."""


def break_at(moment: str, fault: str) -> None:
    place, name, num_good = MOMENTS[moment]
    whole, calls = getattr(place, name), []

    def broken(*arguments: Any, **options: Any) -> Any:
        calls.append(name)
        is_for_a_child = moment == "opening to check" and multiprocessing.parent_process() is None
        if len(calls) > num_good and not is_for_a_child:
            if fault != "stuck" and "DDIT_FAULT_FILE" in os.environ:
                Path(os.environ["DDIT_FAULT_FILE"]).write_text(str(time.time()))
            FAULTS[fault]()
        return whole(*arguments, **options)

    setattr(place, name, broken)


moment, fault, rank = os.environ["DDIT_FAULT"].split(",")
if os.environ.get("RANK", "0") == rank:  # also in processes that are spawned, which import this file
    break_at(moment, fault)
elif "DDIT_OTHERS" in os.environ:
    break_at(*os.environ["DDIT_OTHERS"].split(","))
ddit.data.check._WORTH_PROCESSES = ddit.train.precompute._WORTH_PROCESSES = 0
if __name__ == "__main__":
    main()
