"""`python tools/fine_start.py MODEL OUT`: where `wide-fine` begins: MODEL with four image tokens in place of one."""

import sys
from pathlib import Path

import torch

from ddit.model.folders import resolve
from ddit.model.growing import with_finer_patches
from ddit.model.loading import load_parts
from ddit.model.saving import save_parts


def main(model: str, out: Path) -> None:
    start = with_finer_patches(load_parts(resolve(model), dtype=torch.float32))
    save_parts(
        out, transformer=start.transformer, image_codec=start.image_codec, text_codec=start.text_codec,
        settings=start.settings,
    )  # fmt: skip
    print(out)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
