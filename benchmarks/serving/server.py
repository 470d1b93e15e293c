"""A `ddit serve` of its own process."""

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def served(model: str, *options: str) -> Iterator[tuple[str, int]]:
    """Address and process id of a server, which must exit with 0 after SIGTERM."""
    command = [sys.executable, "-m", "ddit", "serve", "--model", model, "--port", "0", *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
        address = re.search(r"http://[\d.:]+", line)
        if address is None:
            raise RuntimeError(f"the server did not start: {line}")
        yield address[0], process.pid
        process.send_signal(signal.SIGTERM)
        if process.wait(90) != 0:
            raise RuntimeError(f"the server ended with {process.returncode}: {process.stderr.read()}")
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        if process.stderr is not None:
            process.stderr.close()
