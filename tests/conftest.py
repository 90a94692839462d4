"""Run the kernels through Triton's interpreter wherever there is no GPU."""

import os
import zlib

import hypothesis
import pytest
import torch

if not torch.cuda.is_available():
    # Must be set before the first import of streamchar.kernels: @triton.jit reads it once.
    os.environ["TRITON_INTERPRET"] = "1"


# Test processes run side by side; with more threads than cores each of them waits for all the others.
os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(1)

# Shrinking a counterexample takes minutes in the interpreter and finds nothing that its seed does not say.
hypothesis.settings.register_profile(
    "interpreter", phases=[phase for phase in hypothesis.Phase if phase is not hypothesis.Phase.shrink]
)
hypothesis.settings.load_profile("interpreter")


@pytest.fixture
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> torch.Generator:
    """Seed from the test's own name: fresh in every test, the same in every run."""
    return torch.Generator().manual_seed(zlib.crc32(request.node.nodeid.encode()))


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory):
    """A few recordings of synthesised speech, with the times of their phonemes."""
    pytest.importorskip("hibari")
    from streamchar.data.corpus import CorpusConfig, build_corpus

    return build_corpus(tmp_path_factory.mktemp("corpus"), CorpusConfig(hours=0.006, sentences=(1, 2)))
