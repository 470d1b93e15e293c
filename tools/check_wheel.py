"""`python tools/check_wheel.py [venv] [uvx] [pipx]`: the built package in empty environments, without a compiler.

Builds the sdist, and the wheel from it; installs the wheel with the extra `page` in a new environment of each kind;
runs `ddit generate`, and `ddit demo` until its page answers. uvx and pipx must be there. Needs the `build` package and
an index of packages (on Linux PIP_FIND_LINKS and UV_FIND_LINKS can point at PyTorch's smaller CPU build).
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).parents[1]
KINDS = ("venv", "uvx", "pipx")
NO_COMPILER = {"CC": "/bin/false", "CXX": "/bin/false"}


def build(folder: Path) -> Path:
    """The wheel, built from the sdist."""
    subprocess.run([sys.executable, "-m", "build", "--outdir", folder, ROOT], check=True)
    (wheel,) = folder.glob("*.whl")
    sizes = ", ".join(f"{path.name} {path.stat().st_size / 2**20:.1f} MiB" for path in folder.iterdir())
    print(sizes, flush=True)
    return wheel


def command(kind: str, wheel: Path, folder: Path) -> list[str]:
    """How `ddit` is called in a new environment of a kind, which a venv makes here and the others by themselves."""
    requirement = f"{wheel}[page]"
    if kind == "uvx":
        return ["uvx", "--python", sys.executable, "--from", requirement, "ddit"]
    if kind == "pipx":
        return ["pipx", "run", "--python", sys.executable, "--spec", requirement, "ddit"]
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    binaries = folder / "venv" / "bin"
    subprocess.run([binaries / "pip", "install", "-q", requirement], check=True, env=environment())
    return [str(binaries / "ddit")]


def environment() -> dict[str, str]:
    """This one, without what would bring in another ddit."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return {**kept, **NO_COMPILER}


def check(ddit: list[str], folder: Path) -> None:
    """Generates an image, and waits for the page."""
    generate = [*ddit, "generate", "a photo of a red car", "-o", "car.png"]
    subprocess.run(generate, check=True, cwd=folder, env=environment())
    assert (folder / "car.png").stat().st_size > 1000
    server = subprocess.Popen(
        [*ddit, "demo", "--port", "0"], cwd=folder, env=environment(), stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout is not None
        address = server.stdout.readline().strip()
        page = urllib.request.urlopen(address, timeout=60).read().decode()
        assert "gradio" in page.lower(), page[:500]
        print(f"{address} answers with {len(page):,} characters", flush=True)
    finally:
        server.terminate()
        server.wait(30)


def main() -> None:
    parser = argparse.ArgumentParser(description="Checks the built package in empty environments.")
    parser.add_argument("kinds", nargs="*", choices=[*KINDS, []], default=["venv"])
    kinds = parser.parse_args().kinds
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        wheel = build(folder / "dist")
        for kind in kinds:
            place, begin = folder / kind, time.monotonic()
            place.mkdir()
            check(command(kind, wheel, place), place)
            print(f"{kind}: {time.monotonic() - begin:.0f} s", flush=True)


if __name__ == "__main__":
    main()
