"""Collect the facts about a machine that decide what runs on it."""

import importlib
import importlib.metadata
import json
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

#: Display name to the distributions that provide a package and the module to import; "" checks metadata only.
_PACKAGES: dict[str, tuple[tuple[str, ...], str]] = {
    "torch": (("torch",), "torch"),
    "triton": (("triton", "pytorch-triton"), "triton"),
    "flash-attn": (("flash-attn",), "flash_attn"),
    "flash-attn 3": (("fa3-fwd", "flash-attn-3"), ""),
    "cupy": (("cupy-cuda13x", "cupy-cuda12x", "cupy"), "cupy"),
    "nvtx": (("nvtx",), "nvtx"),
    "safetensors": (("safetensors",), ""),
    "hibari-tts": (("hibari-tts",), ""),
    "av": (("av",), "av"),
}
_ENCODERS = ("libx264", "h264_nvenc", "aac")


class Gpu(NamedTuple):
    """An NVIDIA GPU.

    Attributes:
        name: product name.
        capability: compute capability, major and minor.
        memory: device memory in bytes.
    """

    name: str
    capability: tuple[int, int]
    memory: int


class Package(NamedTuple):
    """An installed distribution.

    Attributes:
        version: version in its metadata.
        error: why it does not import; empty if it does or if that was not tried.
    """

    version: str
    error: str = ""


@dataclass(frozen=True)
class Machine:
    """The facts on which :func:`streamchar.cli.doctor.diagnose` decides.

    Attributes:
        python: version of the interpreter.
        system: ``"Linux"``, ``"Darwin"`` or ``"Windows"``.
        release: operating system and architecture, for display.
        packages: installed packages by display name; absent packages have no entry.
        gpus: GPUs that torch sees or, if it sees none, that the driver reports.
        cuda_available: whether torch can use the GPUs.
        cuda: CUDA version that torch was built for; None for a CPU build.
        driver: version of the NVIDIA driver; None if there is none.
        encoders: media encoders that PyAV has, among those that this package uses.
        kernels_error: why ``streamchar.kernels`` does not import; empty if it does.
        expert_choices: faster backends measured for expert products on the first GPU: ``"triton"``,
            ``"cublas"`` or both; empty if nothing was measured.
        pip: command that installs into this interpreter.
    """

    python: str
    system: str
    release: str
    packages: Mapping[str, Package]
    gpus: tuple[Gpu, ...] = ()
    cuda_available: bool = False
    cuda: str | None = None
    driver: str | None = None
    encoders: tuple[str, ...] = ()
    kernels_error: str = ""
    expert_choices: tuple[str, ...] = ()
    pip: str = "pip install"


def inspect_machine() -> Machine:
    """Collect the facts about this interpreter and this machine. This imports every optional package."""
    packages = {name: _package(*provided) for name, provided in _PACKAGES.items()}
    installed = {name: package for name, package in packages.items() if package is not None}
    gpus, driver = _query_driver()
    cuda, cuda_available = None, False
    if (torch := _module(installed, "torch")) is not None:
        cuda, cuda_available = torch.version.cuda, torch.cuda.is_available()
        if cuda_available:
            seen = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
            gpus = tuple(Gpu(gpu.name, (gpu.major, gpu.minor), gpu.total_memory) for gpu in seen)
    av = _module(installed, "av")
    kernels_error = _import_error("streamchar.kernels")
    return Machine(
        python=platform.python_version(),
        system=platform.system(),
        release=f"{platform.system()} {platform.release()}, {platform.machine()}",
        packages=installed,
        gpus=gpus,
        cuda_available=cuda_available,
        cuda=cuda,
        driver=driver,
        encoders=tuple(name for name in _ENCODERS if av is not None and name in av.codecs_available),
        kernels_error=kernels_error,
        expert_choices=_expert_choices(gpus[0].name) if gpus and not kernels_error else (),
        pip=f"{_interpreter()} -m pip install",
    )


def version_pair(version: str) -> tuple[int, int]:
    """Return the first two numbers of a version; missing numbers are 0."""
    major, minor = (*re.findall(r"\d+", version), "0", "0")[:2]
    return int(major), int(minor)


def _package(distributions: tuple[str, ...], module: str) -> Package | None:
    for distribution in distributions:
        try:
            version = importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
        return Package(version, _import_error(module) if module else "")
    return None


def _import_error(module: str) -> str:
    try:
        importlib.import_module(module)
    except Exception as error:  # a compiled extension can raise any error, and the doctor reports it
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return ""


def _module(installed: Mapping[str, Package], name: str) -> Any:
    package = installed.get(name)
    return None if package is None or package.error else importlib.import_module(name)


def _expert_choices(gpu: str) -> tuple[str, ...]:
    configs = importlib.import_module("streamchar.kernels._shared.configs")
    table = json.loads(configs.CHOICES_PATH.read_text())
    return tuple(sorted({str(entry["choice"]) for entry in table["entries"] if entry["device"] == gpu}))


def _query_driver() -> tuple[tuple[Gpu, ...], str | None]:
    """Query the NVIDIA driver, which also works if torch is absent or a CPU build."""
    if (tool := shutil.which("nvidia-smi")) is None:
        return (), None
    query = "--query-gpu=name,compute_cap,memory.total,driver_version"
    try:
        answer = subprocess.run(
            [tool, query, "--format=csv,noheader,nounits"], capture_output=True, text=True, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return (), None
    if answer.returncode != 0:
        return (), None
    return parse_driver(answer.stdout)


def parse_driver(answer: str) -> tuple[tuple[Gpu, ...], str | None]:
    """Parse lines of ``name, capability, memory in MiB, driver version``; skip all other lines."""
    gpus, driver = [], None
    for line in answer.splitlines():
        fields = [part.strip() for part in line.split(",")]
        if len(fields) == 4 and re.fullmatch(r"\d+\.\d+", fields[1]) and fields[2].isdigit():
            gpus.append(Gpu(fields[0], version_pair(fields[1]), int(fields[2]) * 2**20))
            driver = fields[3]
    return tuple(gpus), driver


def _interpreter() -> str:
    """Return the path of this interpreter, relative to the current directory if it lies below it."""
    path = Path(sys.executable)
    if path.is_relative_to(Path.cwd()):
        return str(path.relative_to(Path.cwd()))
    return str(path)
