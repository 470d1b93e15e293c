"""What a command has printed, and with which code it ended."""

from collections.abc import Callable
from typing import NamedTuple


class Result(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def fault(self) -> str:
        """The one line that a failed command says."""
        assert self.code == 1
        assert self.out == ""
        lines = [line for line in self.err.splitlines() if line.startswith("ddit: ")]
        assert len(lines) == 1
        assert "Traceback" not in self.err
        return lines[0].removeprefix("ddit: ")


Run = Callable[..., Result]
