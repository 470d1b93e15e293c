"""The page's actions on a tiny model, for its tests."""

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from PIL import Image
from tiny_models import tiny_pipeline

from ddit.serve.engine import Engine
from ddit.serve.jobs import Job
from ddit.serve.options import Limits
from ddit.serve.page_runs import Runs

PIPELINE = tiny_pipeline()
RED = Image.new("RGB", (32, 32), "red")


def act(
    action: Callable[[Runs], AsyncIterator[Any]], limits: Limits | None = None, waiting: int = 0
) -> list[Any]:
    """All that an action shows, on an engine in whose queue so many jobs wait already."""

    async def run() -> list[Any]:
        engine = Engine(PIPELINE, limits)
        await engine.start()
        try:
            for _ in range(waiting):
                engine.stream(Job("caption", {"image": RED}))
            return [shown async for shown in action(Runs(engine, pace=0, slow_pace=0))]
        finally:
            await engine.stop()

    return asyncio.run(run())


def fault(html: str) -> str | None:
    found = re.search(r'<p class="note fault" role="alert">(.*?)</p>', html)
    return found and found.group(1)


def run_apart(script: str) -> str:
    """What a script prints, in a process of its own: Gradio leaves an event loop open."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, env=environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
