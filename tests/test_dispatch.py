"""The choice of the implementation, on simulated machines."""

import pytest
import torch

from streamchar.kernels import BackendUnavailableError, KernelArgumentError
from streamchar.kernels._shared import dispatch
from streamchar.kernels._shared.dispatch import use_triton


class FakeCuda:
    """Replaces a CUDA tensor, so that no GPU is needed."""

    is_cuda = True
    device = torch.device("cuda", 0)

    def __init__(self, requires_grad=False, dtype=torch.bfloat16):
        self.requires_grad, self.dtype = requires_grad, dtype


@pytest.fixture
def machine(monkeypatch):
    def describe(capability=(9, 0), has_triton=True, interpreted=False):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        monkeypatch.setattr(dispatch, "HAS_TRITON", has_triton)
        monkeypatch.setattr(dispatch, "INTERPRETED", interpreted)

    describe()
    return describe


def test_auto_takes_triton_on_hopper_and_pytorch_elsewhere(machine):
    assert use_triton("auto", FakeCuda(), None, FakeCuda())
    assert not use_triton("auto", torch.ones(1))
    assert not use_triton("auto", FakeCuda(), torch.ones(1))
    machine(capability=(8, 9))
    assert not use_triton("auto", FakeCuda())
    machine(has_triton=False)
    assert not use_triton("auto", FakeCuda())


def test_auto_takes_pytorch_where_a_gradient_is_needed(machine):
    assert not use_triton("auto", FakeCuda(requires_grad=True))
    with torch.no_grad():
        assert use_triton("auto", FakeCuda(requires_grad=True))


def test_float64_is_computed_by_pytorch(machine):
    wide = FakeCuda(dtype=torch.float64)
    assert not use_triton("auto", wide)
    assert use_triton("auto", FakeCuda(), wide)
    with pytest.raises(KernelArgumentError, match="backend must be 'auto' or 'torch' for float64"):
        use_triton("triton", wide)


def test_torch_is_never_overruled(machine):
    assert not use_triton("torch", FakeCuda())


def test_triton_that_cannot_run_says_what_is_missing(machine):
    with pytest.raises(BackendUnavailableError, match="needs CUDA tensors; use backend='auto'"):
        use_triton("triton", torch.ones(1))
    with pytest.raises(BackendUnavailableError, match="no backward pass; use backend='torch'"):
        use_triton("triton", FakeCuda(requires_grad=True))
    machine(has_triton=False)
    with pytest.raises(BackendUnavailableError, match="needs the triton package"):
        use_triton("triton", FakeCuda())


def test_the_interpreter_serves_cpu_tensors_only_when_asked(machine):
    machine(interpreted=True)
    assert use_triton("triton", torch.ones(1))
    assert not use_triton("auto", torch.ones(1))


def test_an_unknown_backend_is_named(machine):
    with pytest.raises(KernelArgumentError, match="backend must be 'auto', 'triton' or 'torch', got 'cuda'"):
        use_triton("cuda", torch.ones(1))
