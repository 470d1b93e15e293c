"""Load on `ddit serve`: closed loops of 1, 8 and 32 clients, an open loop beyond capacity, batching on and off.

    python -m benchmarks.serving [--quick]

from the repository's root. Every answer is checked against what a single call of the pipeline gives for its seed. The
clients run on the same machine. Writes serving.md; exits with 1 if an answer was lost, wrong, or neither 200 nor 429.
"""

import argparse
import asyncio
import sys
import time
from pathlib import Path

import aiohttp

from benchmarks.serving.jobs import KINDS, Request, make_requests
from benchmarks.serving.load import Phase, closed_loop, open_loop
from benchmarks.serving.report import Ratio, write
from benchmarks.serving.server import served
from ddit.commands.loading import load
from ddit.settings import LoadOptions

QUICK = {"seconds": 5.0, "open_seconds": 10.0, "rounds": 1, "requests": 6}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serving", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )  # fmt: skip
    add = parser.add_argument
    add("--model", default="mini")
    add("--clients", nargs="+", type=int, default=[1, 8, 32], help="of the closed loops")
    add("--seconds", type=float, default=30, help="of a closed loop")
    add("--open-seconds", type=float, default=120, help="of the open loop")
    add("--overload", type=float, default=4, help="times the capacity, in the open loop")
    add("--rounds", type=int, default=3, help="of batching on and off in turns")
    add("--requests", type=int, default=24, help="different ones of each kind")
    add("--max-batch-size", type=int, default=16)
    add("--out", type=Path, default=Path("benchmarks/serving.md"))
    add("--quick", action="store_true", help="a minute, to see that it runs")
    args = parser.parse_args(arguments)
    if args.quick:
        for name, value in QUICK.items():
            setattr(args, name, value)
    return args


def main() -> None:
    args = parse()
    began = time.monotonic()
    pipeline = load(args.model, LoadOptions())
    requests = make_requests(pipeline, args.requests)
    del pipeline
    batched = "--max-batch-size", str(args.max_batch_size)
    with served(args.model, *batched) as (address, pid):
        phases, figures = asyncio.run(_load(args, address, pid, requests))
    ratios = [_ratio(args, batched, requests, kind) for kind in (*KINDS, "mixed")]
    write(args.out, args, phases, ratios, figures, seconds=time.monotonic() - began)
    bad = [
        phase
        for phase in [*phases, *(one for ratio in ratios for one in ratio.phases)]
        if phase.wrong or phase.lost or set(phase.statuses) - {200, 429}
    ]
    for phase in bad:
        print(
            f"{phase.name}: {dict(phase.statuses)}, {dict(phase.lost)} lost, {phase.wrong} wrong",
            file=sys.stderr,
        )
    sys.exit(bool(bad))


async def _load(
    args: argparse.Namespace, address: str, pid: int, requests: list[Request]
) -> tuple[list[Phase], str]:
    """The phases of mixed requests on one server, and its own figures at the end."""
    await closed_loop(address, pid, requests, clients=4, seconds=3)  # everything has run once
    phases = [
        await closed_loop(address, pid, requests, clients=clients, seconds=args.seconds)
        for clients in args.clients
    ]
    capacity = max(phase.rate for phase in phases)
    phases.append(
        await open_loop(address, pid, requests, rate=args.overload * capacity, seconds=args.open_seconds)
    )
    phases.append(
        await closed_loop(address, pid, requests, clients=args.clients[0], seconds=min(args.seconds, 10))
    )
    async with aiohttp.ClientSession() as session, session.get(address + "/metrics") as answer:
        return phases, await answer.text()


def _ratio(args: argparse.Namespace, batched: tuple[str, ...], requests: list[Request], kind: str) -> Ratio:
    """Throughput of many clients with batching and one at a time: two servers, loaded in turns."""
    own = [request for request in requests if kind in ("mixed", request.kind)]
    ratio = Ratio(kind)
    clients = max(args.clients)
    with (
        served(args.model, *batched) as (many, many_pid),
        served(args.model, "--max-batch-size", "1") as (single, single_pid),
    ):
        for address, pid in ((many, many_pid), (single, single_pid)):
            asyncio.run(closed_loop(address, pid, own, clients=4, seconds=2))
        for _ in range(args.rounds):
            run = closed_loop(many, many_pid, own, clients=clients, seconds=args.seconds / 2)
            ratio.batched.append(asyncio.run(run))
            run = closed_loop(single, single_pid, own, clients=clients, seconds=args.seconds / 2)
            ratio.single.append(asyncio.run(run))
    return ratio


if __name__ == "__main__":
    main()
