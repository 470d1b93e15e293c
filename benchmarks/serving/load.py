"""Clients: closed loops, in which each waits for its answer, and an open loop, in which requests come at random."""

import asyncio
import itertools
import random
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import aiohttp

from benchmarks.serving.jobs import Request


@dataclass
class Phase:
    """The outcome of one phase of load.

    Attributes:
        seconds: its length.
        statuses: answers by status.
        lost: requests without an answer, by the fault.
        wrong: answers with status 200 that are not right for their request.
        latencies: seconds of the answers with status 200.
        rss: of the server in MB, over time.
    """

    name: str
    seconds: float = 0.0
    statuses: Counter[int] = field(default_factory=Counter)
    lost: Counter[str] = field(default_factory=Counter)
    wrong: int = 0
    latencies: list[float] = field(default_factory=list)
    retry_after: list[int] = field(default_factory=list)
    rss: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Right answers a second."""
        return (self.statuses[200] - self.wrong) / self.seconds

    def percentile(self, share: float) -> float:
        """Of the latencies, in seconds."""
        if len(self.latencies) < 2:
            return self.latencies[0] if self.latencies else float("nan")
        return statistics.quantiles(self.latencies, n=100, method="inclusive")[round(share * 100) - 1]


def rss_mb(pid: int) -> float:
    """Resident memory of a process, in MB."""
    with open(f"/proc/{pid}/status") as status:
        line = next(line for line in status if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


async def _send(session: aiohttp.ClientSession, address: str, request: Request, phase: Phase) -> None:
    began = time.monotonic()
    try:
        async with session.post(address + request.path, json=request.body) as answer:
            body = await answer.json()
            phase.statuses[answer.status] += 1
            if answer.status == 200:
                phase.latencies.append(time.monotonic() - began)
                phase.wrong += not request.is_right(body)
            elif answer.status == 429:
                phase.retry_after.append(int(answer.headers["Retry-After"]))
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        phase.lost[type(error).__name__] += 1


async def _watch(pid: int, phase: Phase) -> None:
    while True:
        phase.rss.append(rss_mb(pid))
        await asyncio.sleep(1)


def _session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=120)
    )


async def closed_loop(
    address: str, pid: int, requests: Sequence[Request], *, clients: int, seconds: float
) -> Phase:
    """`clients` that each send a request when they have the answer to the last."""
    phase = Phase(f"closed loop, {clients} client{'s' if clients > 1 else ''}")
    turns = itertools.cycle(requests)
    began = time.monotonic()

    async def client(session: aiohttp.ClientSession) -> None:
        while time.monotonic() - began < seconds:
            await _send(session, address, next(turns), phase)

    watching = asyncio.create_task(_watch(pid, phase))
    async with _session() as session:
        await asyncio.gather(*[client(session) for _ in range(clients)])
    phase.seconds = time.monotonic() - began
    watching.cancel()
    return phase


async def open_loop(
    address: str, pid: int, requests: Sequence[Request], *, rate: float, seconds: float, seed: int = 0
) -> Phase:
    """Requests at random times, `rate` of them a second in the mean (Poisson), whatever the server does with them."""
    phase = Phase(f"open loop, {rate:.0f} requests a second")
    rng, turns = random.Random(seed), itertools.cycle(requests)
    began = due = time.monotonic()
    sent: set[asyncio.Task[None]] = set()
    watching = asyncio.create_task(_watch(pid, phase))
    async with _session() as session:
        while due - began < seconds:
            due += rng.expovariate(rate)
            await asyncio.sleep(max(due - time.monotonic(), 0))
            task = asyncio.create_task(_send(session, address, next(turns), phase))
            sent.add(task)
            task.add_done_callback(sent.discard)
        phase.seconds = time.monotonic() - began
        await asyncio.gather(*sent)
    watching.cancel()
    return phase
