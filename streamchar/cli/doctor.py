"""Decide what runs on a machine and what to install.

:func:`diagnose` depends only on a :class:`~streamchar.cli.machine.Machine`, which a test can construct for
any hardware and software.
"""

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from .machine import Machine, version_pair

MIN_PYTHON, END_PYTHON = (3, 11), (3, 14)
MIN_TORCH = (2, 11)
MIN_TRITON = (3, 6)
#: Lowest compute capability of the Triton kernels; they need TMA, warp-group matrix instructions and fp8.
MIN_CAPABILITY = (9, 0)

#: Kernel families and what each of them computes in a chunk.
STAGES = {
    "attention": "joint attention over segments",
    "qkv_prologue": "QK-norm, RoPE and KV write",
    "modulation": "norm, modulation and gated residual",
    "experts": "feed-forward of both modalities",
    "sampler": "denoising update and noise",
    "frames": "RGB and YUV 4:2:0 frames",
}

State = Literal["ok", "optional", "missing", "broken"]


@dataclass(frozen=True)
class Component:
    """One line of the report.

    Attributes:
        name: name of the component.
        found: what was found, such as a version.
        state: ``"ok"``; ``"optional"``: absent and not needed; ``"missing"``: worth installing; ``"broken"``:
            must be repaired.
        note: explanation for the reader.
        install: shell command that installs or repairs the component; empty if there is none.
    """

    name: str
    found: str
    state: State
    note: str = ""
    install: str = ""


@dataclass(frozen=True)
class Choice:
    """The backend that ``backend="auto"`` selects for one kernel family.

    Attributes:
        stage: name of the kernel family.
        work: what it computes.
        backend: ``"triton"``, ``"torch"`` or, for expert products, ``"cuBLAS"``.
        why: reason for the choice.
    """

    stage: str
    work: str
    backend: str
    why: str


@dataclass(frozen=True)
class Report:
    """The report of ``streamchar doctor``.

    Attributes:
        ok: whether the package can run here, on any backend.
        components: software and hardware, in display order.
        choices: one choice per kernel family; empty if the package cannot run.
    """

    ok: bool
    components: tuple[Component, ...]
    choices: tuple[Choice, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the report as dicts and lists, for JSON."""
        return asdict(self)


def diagnose(machine: Machine) -> Report:
    """Decide whether the package runs on ``machine``, on which backend, and what is worth installing."""
    required = [_python(machine), _torch(machine), _safetensors(machine), _kernels(machine)]
    ok = all(component.state == "ok" for component in required)
    components = (
        *required[:1],
        Component("system", machine.release, "ok"),
        *required[1:],
        _triton(machine),
        _cuda(machine),
        *_gpus(machine),
        _flash_attn(machine),
        _flash_attn_3(machine),
        _cupy(machine),
        _nvtx(machine),
        _optional(machine, "hibari-tts", "phonemes for the shipped voice", "'streamchar[voice]'", True),
        _encoders(machine),
    )
    return Report(ok, components, _choices(machine) if ok else ())


def _dotted(pair: tuple[int, int]) -> str:
    return f"{pair[0]}.{pair[1]}"


def _python(machine: Machine) -> Component:
    ok = MIN_PYTHON <= version_pair(machine.python) < END_PYTHON
    note = "" if ok else f"needs {_dotted(MIN_PYTHON)} to {END_PYTHON[0]}.{END_PYTHON[1] - 1}"
    return Component("Python", machine.python, "ok" if ok else "broken", note)


def _torch(machine: Machine) -> Component:
    wanted = f"{machine.pip} 'torch>={_dotted(MIN_TORCH)}'"
    torch = machine.packages.get("torch")
    if torch is None:
        return Component("torch", "absent", "broken", f"needs {_dotted(MIN_TORCH)}", wanted)
    if torch.error:
        return Component("torch", torch.version, "broken", torch.error, f"{wanted} --force-reinstall")
    if version_pair(torch.version) < MIN_TORCH:
        return Component("torch", torch.version, "broken", f"needs {_dotted(MIN_TORCH)}", wanted)
    return Component("torch", torch.version, "ok")


def _safetensors(machine: Machine) -> Component:
    package = machine.packages.get("safetensors")
    if package is None:
        return Component(
            "safetensors", "absent", "broken", "reads and writes weights", f"{machine.pip} safetensors"
        )
    return Component("safetensors", package.version, "ok")


def _kernels(machine: Machine) -> Component:
    if machine.kernels_error:
        return Component("streamchar.kernels", "does not import", "broken", machine.kernels_error)
    return Component("streamchar.kernels", "imports", "ok")


def _triton(machine: Machine) -> Component:
    triton = machine.packages.get("triton")
    wanted = f"{machine.pip} 'triton>={_dotted(MIN_TRITON)}'"
    if triton is None and machine.system != "Linux":
        return Component("triton", "absent", "optional", "available on Linux only; PyTorch is used instead")
    if triton is None:
        return Component("triton", "absent", "missing", "PyTorch is used until it is installed", wanted)
    if triton.error:
        return Component("triton", triton.version, "broken", triton.error, f"{wanted} --force-reinstall")
    if version_pair(triton.version) < MIN_TRITON:
        note = f"older than {_dotted(MIN_TRITON)}; PyTorch is used instead"
        return Component("triton", triton.version, "missing", note, wanted)
    return Component("triton", triton.version, "ok")


def _cuda(machine: Machine) -> Component:
    driver = f"driver {machine.driver}" if machine.driver else "no driver"
    found = f"{machine.cuda or 'CPU build of torch'}, {driver}"
    if not machine.gpus or machine.cuda_available:
        return Component("CUDA", found, "ok" if machine.cuda_available else "optional")
    if machine.cuda is None:
        install = f"{machine.pip} --force-reinstall 'torch>={_dotted(MIN_TORCH)}'"
        return Component("CUDA", found, "missing", "this build of torch cannot use the GPU", install)
    note = f"torch does not see the GPU; CUDA {machine.cuda} may need a newer driver"
    return Component("CUDA", found, "broken", note)


def _gpus(machine: Machine) -> list[Component]:
    if not machine.gpus:
        return [
            Component("GPU", "none", "optional", "PyTorch is used on the CPU; the Triton kernels need a GPU")
        ]
    lines = []
    for gpu in machine.gpus:
        found = f"{gpu.name}, sm_{gpu.capability[0]}{gpu.capability[1]}, {gpu.memory / 2**30:.0f} GiB"
        if gpu.capability < MIN_CAPABILITY:
            note = f"compute capability below {_dotted(MIN_CAPABILITY)}; PyTorch is used"
            lines.append(Component("GPU", found, "optional", note))
        else:
            tuned = "" if gpu.capability == MIN_CAPABILITY else "; kernels are tuned for sm_90"
            lines.append(Component("GPU", found, "ok", f"bf16, fp16 and fp8{tuned}"))
    return lines


def _optional(
    machine: Machine, name: str, purpose: str, requirement: str = "", wanted: bool = False
) -> Component:
    package = machine.packages.get(name)
    if package is None:
        install = f"{machine.pip} {requirement}" if requirement else ""
        return Component(name, "absent", "missing" if wanted else "optional", purpose, install)
    if package.error:
        return Component(name, package.version, "broken", package.error)
    return Component(name, package.version, "ok", purpose)


def _capability(machine: Machine) -> tuple[int, int]:
    """Return the compute capability of the first GPU that torch can use; (0, 0) if there is none."""
    return machine.gpus[0].capability if machine.gpus and machine.cuda_available else (0, 0)


def _flash_attn(machine: Machine) -> Component:
    wanted = _capability(machine) >= MIN_CAPABILITY
    requirement = "'streamchar[flash-attn]'" if wanted else ""
    return _optional(machine, "flash-attn", "baseline in benchmarks", requirement, wanted)


def _flash_attn_3(machine: Machine) -> Component:
    wanted = _capability(machine) == MIN_CAPABILITY
    requirement = "'streamchar[fa3]'" if wanted else ""
    return _optional(machine, "flash-attn 3", "baseline in benchmarks on Hopper", requirement, wanted)


def _cupy(machine: Machine) -> Component:
    major = version_pair(machine.cuda or "0")[0]
    wanted = _capability(machine) > (0, 0) and major in (12, 13)
    requirement = f"'streamchar[cuda{major}]'" if wanted else ""
    return _optional(machine, "cupy", "zero-copy frames for other CUDA code", requirement, wanted)


def _nvtx(machine: Machine) -> Component:
    requirement = "'streamchar[profile]'" if _capability(machine) > (0, 0) else ""
    return _optional(machine, "nvtx", "named ranges in profiles", requirement)


def _encoders(machine: Machine) -> Component:
    line = _optional(machine, "av", "MP4 output", "av")
    found = f"PyAV {line.found}" + "".join(f", {name}" for name in machine.encoders)
    return replace(line, name="encoders", found=found)


def _choices(machine: Machine) -> tuple[Choice, ...]:
    """Predict :func:`streamchar.kernels._shared.dispatch.use_triton` for tensors without gradient."""
    capability = _capability(machine)
    triton = machine.packages.get("triton")
    if not machine.gpus:
        backend, why = "torch", "no GPU"
    elif not machine.cuda_available:
        backend, why = "torch", "torch cannot use the GPU"
    elif triton is None:
        backend, why = "torch", "triton is not installed"
    elif triton.error:
        backend, why = "torch", "triton does not import"
    elif version_pair(triton.version) < MIN_TRITON:
        backend, why = "torch", f"triton {triton.version} is older than {_dotted(MIN_TRITON)}"
    elif capability < MIN_CAPABILITY:
        backend, why = "torch", f"sm_{capability[0]}{capability[1]} is below sm_{MIN_CAPABILITY[0]}0"
    else:
        backend, why = "triton", f"sm_{capability[0]}{capability[1]}, triton {triton.version}"
    choices = {stage: Choice(stage, work, backend, why) for stage, work in STAGES.items()}
    if backend == "triton":
        choices["experts"] = _experts(machine, choices["experts"])
    return tuple(choices.values())


def _experts(machine: Machine, choice: Choice) -> Choice:
    """Apply the table of measured expert products, which decides between Triton and cuBLAS."""
    if not machine.expert_choices:
        return replace(choice, backend="cuBLAS", why="no expert product has been timed on this GPU")
    names = [{"triton": "triton", "cublas": "cuBLAS"}[name] for name in machine.expert_choices]
    return replace(
        choice, backend=" or ".join(names), why="the faster one for each shape, as timed on this GPU"
    )
