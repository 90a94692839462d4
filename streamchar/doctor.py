"""What will run on a machine, and what to install for the rest.

:func:`diagnose` draws conclusions from facts and touches nothing: every machine that it can meet is a
:class:`~streamchar.machine.Machine` that a test can write down.
"""

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from .machine import Machine, version_pair

MIN_PYTHON, END_PYTHON = (3, 11), (3, 14)
MIN_TORCH = (2, 11)
MIN_TRITON = (3, 6)
#: Compute capability from which the kernels serve: tensor memory access, warp-group matrix instructions, fp8.
MIN_CAPABILITY = (9, 0)

#: Kernel families and the work of each in a chunk step.
STAGES = {
    "attention": "joint attention over segments",
    "prologue": "QK-norm, RoPE and KV write",
    "modulation": "norm, modulation and gated residual",
    "experts": "feed-forward of both modalities",
    "sampler": "denoising update and noise",
    "egress": "RGB and YUV 4:2:0 frames",
}

State = Literal["ok", "optional", "missing", "broken"]


@dataclass(frozen=True)
class Component:
    """One line of the report: what was found, whether it will do, and the command that would improve it."""

    name: str
    found: str
    state: State
    note: str = ""
    install: str = ""


@dataclass(frozen=True)
class Choice:
    """The backend that ``backend="auto"`` takes for one kernel family, and why."""

    stage: str
    work: str
    backend: str
    why: str


@dataclass(frozen=True)
class Report:
    """All that ``streamchar doctor`` says.

    Attributes:
        ok: whether the package can run here, on whichever backend.
        components: software and hardware, in reading order.
        choices: one for each kernel family; empty when the package cannot run.
    """

    ok: bool
    components: tuple[Component, ...]
    choices: tuple[Choice, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the report as plain dicts and lists, for JSON."""
        return asdict(self)


def diagnose(machine: Machine) -> Report:
    """Decide what runs on ``machine``, on which backend, and what is worth installing."""
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
        _optional(machine, "hibari-tts", "what the shipped voice reads", "'streamchar[voice]'", True),
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
        return Component("safetensors", "absent", "broken", "holds weights", f"{machine.pip} safetensors")
    return Component("safetensors", package.version, "ok")


def _kernels(machine: Machine) -> Component:
    if machine.kernels_error:
        return Component("streamchar.kernels", "does not import", "broken", machine.kernels_error)
    return Component("streamchar.kernels", "imports", "ok")


def _triton(machine: Machine) -> Component:
    triton = machine.packages.get("triton")
    wanted = f"{machine.pip} 'triton>={_dotted(MIN_TRITON)}'"
    if triton is None and machine.system != "Linux":
        return Component("triton", "absent", "optional", "for Linux only; PyTorch serves here")
    if triton is None:
        return Component("triton", "absent", "missing", "PyTorch serves until it is installed", wanted)
    if triton.error:
        return Component("triton", triton.version, "broken", triton.error, f"{wanted} --force-reinstall")
    if version_pair(triton.version) < MIN_TRITON:
        note = f"older than {_dotted(MIN_TRITON)}; PyTorch serves instead"
        return Component("triton", triton.version, "missing", note, wanted)
    return Component("triton", triton.version, "ok")


def _cuda(machine: Machine) -> Component:
    driver = f"driver {machine.driver}" if machine.driver else "no driver"
    found = f"{machine.cuda or 'CPU build of torch'}, {driver}"
    if not machine.gpus or machine.cuda_available:
        return Component("CUDA", found, "ok" if machine.cuda_available else "optional")
    if machine.cuda is None:
        install = f"{machine.pip} --force-reinstall 'torch>={_dotted(MIN_TORCH)}'"
        return Component("CUDA", found, "missing", "this torch cannot use the GPU", install)
    note = f"torch does not see the GPU; CUDA {machine.cuda} may need a newer driver"
    return Component("CUDA", found, "broken", note)


def _gpus(machine: Machine) -> list[Component]:
    if not machine.gpus:
        return [Component("GPU", "none", "optional", "the kernels serve on a GPU, PyTorch on the CPU")]
    lines = []
    for gpu in machine.gpus:
        found = f"{gpu.name}, sm_{gpu.capability[0]}{gpu.capability[1]}, {gpu.memory / 2**30:.0f} GiB"
        if gpu.capability < MIN_CAPABILITY:
            note = f"compute capability below {_dotted(MIN_CAPABILITY)}; PyTorch serves"
            lines.append(Component("GPU", found, "optional", note))
        else:
            tuned = "" if gpu.capability == MIN_CAPABILITY else "; tuned for sm_90"
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
    """Return the capability of the first GPU that torch can use, (0, 0) without one."""
    return machine.gpus[0].capability if machine.gpus and machine.cuda_available else (0, 0)


def _flash_attn(machine: Machine) -> Component:
    wanted = _capability(machine) >= MIN_CAPABILITY
    requirement = "'streamchar[flash-attn]'" if wanted else ""
    return _optional(machine, "flash-attn", "benchmark peer", requirement, wanted)


def _flash_attn_3(machine: Machine) -> Component:
    wanted = _capability(machine) == MIN_CAPABILITY
    requirement = "'streamchar[fa3]'" if wanted else ""
    return _optional(machine, "flash-attn 3", "benchmark peer on Hopper", requirement, wanted)


def _cupy(machine: Machine) -> Component:
    major = version_pair(machine.cuda or "0")[0]
    wanted = _capability(machine) > (0, 0) and major in (12, 13)
    requirement = f"'streamchar[cuda{major}]'" if wanted else ""
    return _optional(machine, "cupy", "frames to CUDA code without a copy", requirement, wanted)


def _nvtx(machine: Machine) -> Component:
    requirement = "'streamchar[profile]'" if _capability(machine) > (0, 0) else ""
    return _optional(machine, "nvtx", "named ranges in a profile", requirement)


def _encoders(machine: Machine) -> Component:
    line = _optional(machine, "av", "the engine's MP4 output", "av")
    found = f"PyAV {line.found}" + "".join(f", {name}" for name in machine.encoders)
    return replace(line, name="encoders", found=found)


def _choices(machine: Machine) -> tuple[Choice, ...]:
    """Say what :func:`streamchar.kernels._dispatch.use_triton` will answer for tensors without a gradient."""
    capability = _capability(machine)
    triton = machine.packages.get("triton")
    if not machine.gpus:
        backend, why = "torch", "no GPU"
    elif not machine.cuda_available:
        backend, why = "torch", "torch cannot use the GPU"
    elif triton is None:
        backend, why = "torch", "no triton"
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


def _experts(machine: Machine, served: Choice) -> Choice:
    """Say what the table of measured expert products decides where Triton could serve."""
    if not machine.expert_choices:
        return replace(served, backend="cuBLAS", why="no expert product was timed on this GPU")
    names = [{"triton": "triton", "cublas": "cuBLAS"}[choice] for choice in machine.expert_choices]
    return replace(
        served, backend=" or ".join(names), why="the faster one for each shape, as timed on this GPU"
    )
