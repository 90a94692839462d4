"""Run the kernels through Triton's interpreter wherever there is no GPU."""

import os

import pytest
import torch

if not torch.cuda.is_available():
    # Must be set before the first import of streamchar.kernels: @triton.jit reads it once.
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> torch.Generator:
    """Seed from the test's own name: fresh in every test, the same in every run."""
    seed = hash_name(request.node.nodeid)
    return torch.Generator().manual_seed(seed)


def hash_name(name: str) -> int:
    import zlib

    return zlib.crc32(name.encode())
