"""What a run says while it goes: a progress bar on stderr and one JSON object a line in `log.jsonl`."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from types import TracebackType

from tqdm import tqdm


class RunLog:
    """Appends events to `out/log.jsonl` and shows the latest figures beside the bar."""

    def __init__(self, out: Path, total: int, *, unit: str, start: int = 0) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self._file = (out / "log.jsonl").open("a")
        interval = 0.5 if sys.stderr.isatty() else 30.0
        self._bar = tqdm(
            total=total, initial=start, unit=unit, mininterval=interval, desc=out.name, file=sys.stderr
        )
        self._start = time.monotonic()

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._bar.close()
        self._file.close()

    def advance(self) -> None:
        self._bar.update()

    def event(self, **values: float) -> None:
        """Writes one line; `seconds` counts from the start of this process."""
        seconds = round(time.monotonic() - self._start, 2)
        rounded = {k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in values.items()}
        self._file.write(json.dumps({**rounded, "seconds": seconds}) + "\n")
        self._file.flush()
        shown = {k: f"{v:.4g}" for k, v in values.items() if k != "step"}
        self._bar.set_postfix(dict(list(shown.items())[:5]), refresh=False)
