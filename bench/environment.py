"""Describe the machine that a measurement ran on: device, device state, versions, date."""

import platform
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("torch", "triton", "fa3-fwd", "flash-attn", "numpy", "streamchar")
_CPUINFO = Path("/proc/cpuinfo")


def environment(device: torch.device) -> dict[str, Any]:
    """Return device, device state, versions and date as plain JSON values."""
    versions: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    found: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "packages": versions,
        "device": cpu_name(),
        "threads": torch.get_num_threads(),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "device": properties.name,
            "multiprocessors": properties.multi_processor_count,
            "capability": list(torch.cuda.get_device_capability(device)),
            "cuda": torch.version.cuda,
            "state": _smi(),
        }
    return found


def cpu_name() -> str:
    """Return the CPU's model and the instruction set that PyTorch uses on it.

    Virtual machines may report one model for different CPUs; the instruction set tells some of them apart.
    """
    try:
        lines = _CPUINFO.read_text().splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    model = models[0] if models else platform.processor() or platform.machine()
    return f"{model}, {torch.backends.cpu.get_cpu_capability()}"


def record_name(device: torch.device) -> str:
    """Return the name under which the speed-ups of this machine are recorded.

    A GPU is identified by its name. A CPU is identified by model, instruction set and number of threads: the
    engine and the baselines scale differently with threads.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{cpu_name()} {torch.get_num_threads()} threads"


def _smi() -> str | None:
    query = "driver_version,clocks.sm,clocks.mem,power.draw,temperature.gpu,clocks_throttle_reasons.active"
    try:
        answer = subprocess.run(
            ["nvidia-smi", f"--query-gpu={query}", "--format=csv"], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None
