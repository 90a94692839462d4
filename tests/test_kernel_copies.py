"""Copies of the kernels in one process: each works, and none replaces another's operators.

A copy is loaded as the Hugging Face ``kernels`` library loads one: from any path, under any name.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import streamchar.kernels

KERNELS = Path(streamchar.kernels.__file__).parent

LOAD = """
import importlib, importlib.util, sys
from pathlib import Path

import torch

def load(folder, name):
    spec = importlib.util.spec_from_file_location(name, Path(folder) / "__init__.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module

def namespace(kernels):
    return importlib.import_module(f"{kernels.__name__}._shared.operator").NAMESPACE

def operators(kernels):
    names = torch._C._dispatch_get_all_op_names()
    return sorted(name.partition("::")[2] for name in names if name.startswith(namespace(kernels) + "::"))

FAMILIES = ["experts", "joint_attention", "modulation", "pack_frames", "qkv_prologue", "sampler"]
"""

SIDE_BY_SIDE = """
import streamchar.kernels as ours

copies = [load(FOLDER, "a_copy"), load(FOLDER, "another_name")]
everyone = [ours, *copies]
assert len({namespace(kernels) for kernels in everyone}) == 3
for kernels in everyone:
    assert operators(kernels) == FAMILIES, operators(kernels)
    assert kernels.__all__ == ours.__all__
for kernels in copies:
    assert kernels.joint_attention is not ours.joint_attention
    assert kernels.KernelArgumentError is not ours.KernelArgumentError
    assert issubclass(kernels.KernelArgumentError, ValueError)

def results(kernels, backend):
    rng = torch.Generator().manual_seed(3)
    draw = lambda *shape: torch.randn(shape, generator=rng)
    q, k, v = draw(1, 20, 2, 64), draw(1, 48, 2, 64), draw(1, 48, 2, 64)
    segments = kernels.segment_table([[(0, 17), (30, 9)]], 48)
    attention = kernels.joint_attention(q, k, v, segments, backend=backend)
    cos, sin = kernels.rope_tables(draw(5, 3), 64)
    caches = torch.zeros(1, 8, 1, 64), torch.zeros(1, 8, 1, 64)
    slots = kernels.slot_table([[(2, 5)]], 8)
    norms = draw(64), draw(64)
    rotated = kernels.qkv_prologue(
        draw(1, 5, 4 * 64), *norms, cos, sin, slots, *caches, num_heads=2, backend=backend
    )
    x, rows, index = draw(1, 6, 40), draw(1, 2, 40), torch.tensor([[0, 1, 0, 1, 1, 0]], dtype=torch.int32)
    modulated = kernels.gated_norm_modulate(x, draw(1, 6, 40), rows, rows, rows, index, backend=backend)
    weights = draw(16, 40), draw(16), draw(8, 40), draw(8)
    hidden = kernels.expert_up(x, *weights, num_video=4, backend=backend)
    keys = torch.tensor([4]), torch.tensor([9])
    latents = draw(1, 30), draw(1, 7)
    sigmas, step = torch.tensor([1.0, 0.5, 0.0]), torch.tensor([0], dtype=torch.int32)
    kernels.sampler_step(*latents, draw(1, 30), draw(1, 7), sigmas, step, *keys, backend=backend)
    packed = kernels.pack_frames(draw(1, 3, 4, 16), yuv=True, backend=backend)
    return [attention, rotated, *caches, *modulated, *hidden, *latents, *(each.float() for each in packed)]

expected = results(ours, "torch")
for kernels in (*everyone, ours):
    for got, want in zip(results(kernels, "triton"), expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
print("fine")
"""

CHANGED = """
import streamchar.kernels as ours

changed = load(FOLDER, "changed")
frames = torch.zeros(1, 3, 2, 16)
for kernels in (ours, changed, ours):
    rgb, _ = kernels.pack_frames(frames, backend="triton")
    # 127.5 rounds to even.
    assert rgb.unique().tolist() == [128 if kernels is ours else 64], rgb.unique()
print("fine")
"""

ALONE = """
kernels = load(FOLDER, "alone")
assert not [name for name in sys.modules if name.partition(".")[0] == "streamchar"]
assert operators(kernels) == FAMILIES
rgb, _ = kernels.pack_frames(torch.zeros(1, 3, 2, 16), backend="triton")
assert rgb.unique().tolist() == [128]
try:
    kernels.pack_frames(torch.zeros(3, 2, 16))
except kernels.KernelArgumentError as error:
    assert isinstance(error, ValueError)
    print("fine")
"""


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    folder = tmp_path / "elsewhere" / "build-7"
    shutil.copytree(KERNELS, folder, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def run(code: str, folder: Path) -> str:
    """Run ``code`` in the interpreter of Triton, with ``FOLDER`` naming the copy."""
    done = subprocess.run(
        [sys.executable, "-c", f"{LOAD}\nFOLDER = {str(folder)!r}\n{code}"],
        cwd=folder.parent,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


def test_copies_run_side_by_side_with_operators_of_their_own(copy: Path) -> None:
    assert run(SIDE_BY_SIDE, copy) == "fine"


def test_a_change_to_a_copy_does_not_reach_the_original(copy: Path) -> None:
    file = copy / "frames" / "forward.py"
    source = file.read_text()
    assert source.count("(x + 1.0) * 127.5") == 1
    file.write_text(source.replace("(x + 1.0) * 127.5", "(x + 1.0) * 64.0"))
    assert run(CHANGED, copy) == "fine"


def test_a_copy_imports_without_the_package_around_it(copy: Path) -> None:
    assert run(ALONE, copy) == "fine"
