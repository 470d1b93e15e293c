"""The device of a test: the CPU in an ordinary run, and where there is one, with `-m gpu`, a GPU."""

from collections.abc import Iterator

import pytest
import torch

from ddit.doctor.report import Bench, open_bench


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    if request.param == "cpu" and torch.cuda.is_available() and "training" in request.node.nodeid:
        pytest.skip("training takes the GPU where there is one")
    with open_bench(torch.device(request.param)) as bench:
        yield bench
