"""Gate the machine code of every shipped kernel, compiled for Hopper on a machine without a GPU.

Each kernel family of :mod:`streamchar.kernels` has a ``forward`` module, whose ``shipped()`` returns the
launches that the engine makes at the ``5b`` preset's shapes. The gate compiles them as a launch would,
disassembles them with the tools in Triton's wheel, and compares the result with the figures recorded for the
installed Triton version.

Run it with ``python -m streamchar.codegen``.
"""

import fnmatch
import importlib
import json
import os
import pkgutil
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from .. import kernels
from ..errors import StreamCharError
from ..kernels._shared.compat import HAS_TRITON, INTERPRETED
from ..kernels._shared.dispatch import Launch
from . import sass
from .sass import Figures, Regression, compare, faults

__all__ = ["CodegenError", "Figures", "Regression", "compare", "compile_launch", "faults", "gate", "run_gate"]

#: Compute capability to compile for, and the path of its baseline in the repository.
CAPABILITY = 90
BASELINE = Path("profiles/codegen/sm_90.json")


class CodegenError(StreamCharError, RuntimeError):
    """The gate cannot run; the message says what is missing and how to get it."""


def shipped_launches() -> dict[str, Launch]:
    """Collect ``shipped()`` of every kernel family of :mod:`streamchar.kernels`.

    Returns:
        launches by name, ``"family/configuration"``.

    Raises:
        CodegenError: a name has no family, or two families ship the same name.
    """
    launches: dict[str, Launch] = {}
    for module in _families():
        for name, launch in module.shipped().items():
            if "/" not in name or name in launches:
                raise CodegenError(
                    f"{module.__name__}.shipped() must name family/configuration once, got {name!r}"
                )
            launches[name] = launch
    return launches


def _families() -> list[ModuleType]:
    """Import the ``forward`` module of every family: the packages without a leading underscore."""
    packages = (found.name for found in pkgutil.iter_modules(kernels.__path__) if found.ispkg)
    names = sorted(name for name in packages if not name.startswith("_"))
    return [importlib.import_module(f"{kernels.__name__}.{name}.forward") for name in names]


def compile_launch(launch: Launch) -> Figures:
    """Compile one launch for sm_90, without a GPU, and read its machine code.

    Tensors may be on the meta device: only dtypes, shapes, strides and alignment matter.

    Raises:
        CodegenError: Triton is absent, or its interpreter is on.
        triton.CompilationError: the kernel does not compile.
    """
    return _inspect(*_compile(launch))


def compile_launches(launches: Mapping[str, Launch]) -> dict[str, Figures]:
    """Do :func:`compile_launch` for each launch; the next one compiles while others are disassembled.

    Raises:
        CodegenError: as for :func:`compile_launch`, or naming a kernel that does not compile.
    """
    require_compiler()
    pending = {}
    # Each disassembly is a process of its own and takes half a second. With compiled kernels in Triton's
    # cache there is no other work.
    with ThreadPoolExecutor(max_workers=2) as pool:
        for name, launch in launches.items():
            try:
                pending[name] = pool.submit(_inspect, *_compile(launch))
            except Exception as error:
                raise CodegenError(
                    f"{_spelled(name)}: does not compile for sm_{CAPABILITY}: {error}"
                ) from error
        return {name: future.result() for name, future in pending.items()}


def _compile(launch: Launch) -> tuple[bytes, str, int, int]:
    """Return the machine code, its PTX, its threads a block and its dynamic shared memory in bytes."""
    require_compiler()
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, make_backend
    from triton.runtime.jit import create_function_from_signature

    # The same steps as JITFunction.run up to the launch, with a fixed target instead of the driver's.
    target = GPUTarget("cuda", CAPABILITY, 32)
    backend = make_backend(target)
    kernel = launch.kernel
    options = {
        "num_warps": launch.num_warps,
        "num_stages": launch.num_stages,
        "debug": bool(kernel.debug or triton.knobs.runtime.debug),
    }
    binder = create_function_from_signature(kernel.signature, kernel.params, backend)
    bound, specialization, extra = binder(**launch.args, **options)
    parsed, signature, constexprs, attrs = kernel._pack_args(backend, options, bound, specialization, extra)
    source = ASTSource(kernel, signature, constexprs, attrs)
    compiled = triton.compile(source, target=target, options=parsed.__dict__)
    ptx = compiled.asm["ptx"]
    threads = re.search(r"\.reqntid\s+(\d+)", ptx)
    if threads is None:
        raise CodegenError(f"{kernel.__name__}: the PTX must state .reqntid, the threads of a block")
    return compiled.asm["cubin"], ptx, int(threads[1]), compiled.metadata.shared


def _inspect(cubin: bytes, ptx: str, threads: int, dynamic_shared: int) -> Figures:
    with tempfile.TemporaryDirectory() as folder:
        binary = Path(folder) / "kernel.cubin"
        binary.write_bytes(cubin)
        text = _run("cuobjdump", "-res-usage", "-sass", str(binary))
        notes = ""
        if "wgmma" in ptx:
            # Only the assembler reports serialised matrix instructions, and Triton does not pass that on.
            source = Path(folder) / "kernel.ptx"
            source.write_text(ptx)
            notes = _run("ptxas", "-v", f"--gpu-name=sm_{CAPABILITY}a", str(source), "-o", os.devnull)
    return sass.parse(text, threads, dynamic_shared, notes)


def _run(tool: str, *arguments: str) -> str:
    """Run one of the tools in Triton's wheel and return its output."""
    import triton

    command = [getattr(triton.knobs.nvidia, tool).path, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CodegenError(f"{tool} failed with code {done.returncode}: {done.stderr.strip()}")
    return done.stdout + done.stderr


def require_compiler() -> None:
    """Raise :class:`CodegenError` where Triton cannot compile."""
    if not HAS_TRITON:
        raise CodegenError("the codegen gate needs the triton package (Linux); pip install triton")
    if INTERPRETED:
        raise CodegenError(
            "the codegen gate compiles, and TRITON_INTERPRET=1 replaces compilation; "
            "run it in a process without that variable"
        )


def triton_version() -> str:
    """Return the installed Triton's public version, such as ``"3.7.1"``."""
    require_compiler()
    import triton

    return str(triton.__version__).split("+")[0]


def gate(
    measured: Mapping[str, Figures], recorded: Mapping[str, Figures], spills_allowed: Iterable[str] = ()
) -> list[str]:
    """Return one message for each fault of ``measured`` and each regression against ``recorded``.

    A kernel without a record is a failure, and so is a record without a kernel.
    """
    messages = []
    for name, figures in measured.items():
        found = [] if name in spills_allowed else faults(figures)
        if name in recorded:
            worse = compare(recorded[name], figures)
            found += [
                regression for regression in worse if regression.figure not in {f.figure for f in found}
            ]
        else:
            messages.append(
                f"{_spelled(name)}: no recorded baseline; inspect the table, then record with --update"
            )
        messages += [f"{_spelled(name)}: {regression}" for regression in found]
    gone = sorted(set(recorded) - set(measured))
    return messages + [f"{_spelled(name)}: in the baseline, but no longer shipped" for name in gone]


def _spelled(name: str) -> str:
    kernel, configuration = name.split("/", 1)
    return f"kernel {kernel}, configuration {configuration}"


Baseline = dict[str, dict[str, Figures]]


def read_baseline(path: Path) -> Baseline:
    """Read the figures recorded in ``path``, by Triton version and then by kernel.

    Raises:
        CodegenError: the file is absent or is not a baseline.
    """
    try:
        versions = json.loads(path.read_text())
        return {
            version: {name: Figures.from_json(fields) for name, fields in recorded.items()}
            for version, recorded in versions.items()
        }
    except FileNotFoundError:
        raise CodegenError(
            f"no baseline at {path}; run from the repository root, name one with --baseline, "
            "or record one with --update"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CodegenError(
            f"{path} is not a codegen baseline ({error}); restore it, or delete it and record with --update"
        ) from None


def write_baseline(path: Path, baseline: Baseline) -> None:
    """Write ``baseline`` with sorted keys and one figure a line, so that diffs are readable."""
    path.parent.mkdir(parents=True, exist_ok=True)
    plain = {
        version: {name: figures.to_json() for name, figures in recorded.items()}
        for version, recorded in baseline.items()
    }
    path.write_text(json.dumps(plain, indent=1, sort_keys=True) + "\n")


def table(measured: Mapping[str, Figures]) -> Table:
    """Return a table of the figures with one row per kernel."""
    title = f"sm_{CAPABILITY}, Triton {triton_version()}; loads and stores by width 128/64/32/16/8 bits"
    out = Table(title=title, title_justify="left", box=box.SIMPLE, padding=(0, 1, 0, 0))
    for heading in ("kernel", "configuration"):
        out.add_column(heading, no_wrap=True)
    for heading in (
        "regs", "stack", "LDL/STL", "shared", "threads", "blocks/SM", "occ.", "tensor core", "TMA ld/st",
        "LDGSTS", "EX2", "loads", "stores", "USETMAXREG", "instr.",
    ):  # fmt: skip
        out.add_column(heading, justify="right", no_wrap=True)
    family = ""
    for name, figures in measured.items():
        kernel, configuration = name.split("/", 1)
        if family and kernel != family:
            out.add_section()
        matrix = [f"{figures.op(op)} {op}" for op in (*sass.WARP_GROUP_MMA, *sass.WARP_MMA) if figures.op(op)]
        out.add_row(
            kernel if kernel != family else "",
            configuration,
            str(figures.registers),
            str(figures.stack_bytes),
            f"{figures.op('LDL')}/{figures.op('STL')}",
            str(figures.shared_bytes),
            str(figures.threads),
            str(figures.blocks_per_sm),
            f"{figures.occupancy:.0%}",
            (" ".join(matrix) or "-") + (" serialised" if figures.serialized else ""),
            f"{figures.op('UTMALDG')}/{figures.op('UTMASTG')}",
            str(figures.op("LDGSTS")),
            str(figures.op("MUFU.EX2")),
            sass.spell_widths(figures.loads),
            sass.spell_widths(figures.stores),
            str(figures.op("USETMAXREG")),
            str(figures.instructions),
        )
        family = kernel
    return out


def run_gate(
    only: str = "*",
    update: bool = False,
    baseline: Path = BASELINE,
    json_path: Path | None = None,
    console: Console | None = None,
) -> list[str]:
    """Compile the kernels that match ``only``, print their figures, and compare or record the baseline.

    Args:
        only: shell pattern over ``"family/configuration"``.
        update: record the figures of the installed Triton version instead of comparing. The records of other
            versions and of kernels that do not match ``only`` stay. Nothing is recorded if a kernel is
            faulty.
        baseline: the recorded figures.
        json_path: where to write the measured figures as JSON; None to write no file.
        console: where to print.

    Returns:
        one message per failure; empty if the gate passes.

    Raises:
        CodegenError: the gate cannot run here, no kernel matches, or there is no baseline.
    """
    console = console or _console()
    version = triton_version()
    launches = {
        name: launch for name, launch in shipped_launches().items() if fnmatch.fnmatchcase(name, only)
    }
    if not launches:
        raise CodegenError(
            f"no shipped kernel matches {only!r}; names are family/configuration, such as 'frames/*'"
        )
    measured = compile_launches(launches)
    console.print(table(measured))
    if json_path is not None:
        write_baseline(json_path, {version: measured})

    versions = {} if update and not baseline.exists() else read_baseline(baseline)
    if version not in versions and not update:
        known = ", ".join(sorted(versions)) or "none"
        return [
            f"{baseline} has no figures for Triton {version} (it has: {known}); record them with --update"
        ]
    everything = versions.get(version, {})
    recorded = {name: figures for name, figures in everything.items() if fnmatch.fnmatchcase(name, only)}
    for name in recorded.keys() & measured.keys():
        was, now = recorded[name].registers, measured[name].registers
        if was != now:
            console.print(f"{_spelled(name)}: registers {was} -> {now}")
    if not update:
        return gate(measured, recorded, _spills_allowed())
    messages = gate(measured, measured, _spills_allowed())
    if not messages:
        kept = {name: figures for name, figures in everything.items() if name not in recorded}
        write_baseline(baseline, {**versions, version: {**kept, **measured}})
        console.print(f"recorded {len(measured)} kernels of Triton {version} in {baseline}")
    return messages


def _spills_allowed() -> set[str]:
    """Collect the families' ``SPILLS_ALLOWED``: launches that are faster with spills than without."""
    return {name for module in _families() for name in getattr(module, "SPILLS_ALLOWED", ())}


def _console(stderr: bool = False) -> Console:
    # Piped output has no width, and a wrapped table cannot be read or searched.
    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, width=None if stream.isatty() else 240, highlight=False, soft_wrap=stderr)


def main(
    only: Annotated[
        str, typer.Option(help="Shell pattern over family/configuration, such as 'frames/*'.")
    ] = "*",
    update: Annotated[bool, typer.Option("--update", help="Record instead of comparing.")] = False,
    baseline: Annotated[Path, typer.Option(help="Recorded figures.")] = BASELINE,
    json_path: Annotated[Path | None, typer.Option("--json", help="Write the measured figures here.")] = None,
) -> None:
    """Compile every shipped kernel for Hopper, without a GPU, and fail if its machine code became worse."""
    try:
        messages = run_gate(only, update, baseline, json_path)
    except CodegenError as error:
        _console(stderr=True).print(f"codegen: {error}", markup=False, style="red")
        raise typer.Exit(2) from None
    for message in messages:
        _console(stderr=True).print(f"FAIL {message}", markup=False, style="red")
    if messages:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
