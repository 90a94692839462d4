"""Read the machine code of a kernel, and compare it with a recorded one.

Works on the text that ``cuobjdump -res-usage -sass`` prints; needs neither a GPU nor Triton.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ..errors import StreamCharError

#: Tensor-core instructions of a whole warp group; only they reach Hopper's peak.
WARP_GROUP_MMA = ("HGMMA", "QGMMA", "IGMMA")
#: Tensor-core instructions of a single warp, which reach about two thirds of that peak.
WARP_MMA = ("HMMA", "QMMA", "IMMA", "DMMA")
#: Instructions counted by name, besides global loads and stores.
COUNTED = (
    *WARP_GROUP_MMA,
    *WARP_MMA,
    "UTMALDG",
    "UTMASTG",
    "LDGSTS",
    "LDL",
    "STL",
    "MUFU.EX2",
    "USETMAXREG",
)
#: Widths of a global access, in bits.
WIDTHS = (128, 64, 32, 16, 8)

#: An access has narrowed if its share of the bytes falls by more than this. In a kernel of ten vector loads,
#: one more scalar load stays below this limit, and splitting one of the vector loads exceeds it.
SHARE_SLACK = 0.05

_INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?\w+\s+)?([A-Z][A-Z0-9_.]*)", re.MULTILINE)
_RESOURCES = re.compile(r"\bREG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")
_WIDTH_OF_MODIFIER = {"128": 128, "64": 64, "U16": 16, "S16": 16, "U8": 8, "S8": 8}


@dataclass(frozen=True)
class SmLimits:
    """Limits of one streaming multiprocessor (CUDA C++ Programming Guide, compute capability 9.0)."""

    registers: int = 65536
    register_unit: int = 256
    registers_per_thread: int = 255
    shared_bytes: int = 228 * 1024
    shared_bytes_per_block: int = 227 * 1024
    shared_unit: int = 128
    reserved_shared: int = 1024
    warps: int = 64
    blocks: int = 32
    warp_unit: int = 4


SM_90 = SmLimits()


class SassError(StreamCharError, ValueError):
    """The disassembler's output contains no kernel."""


@dataclass(frozen=True)
class Figures:
    """Instruction counts and resources of one kernel.

    Attributes:
        registers: registers per thread at the start.
        stack_bytes: stack frame and local memory of a thread, in bytes; above 0 if registers spill.
        shared_bytes: static and dynamic shared memory of a block, in bytes.
        threads: threads per block, including warps added by specialisation.
        ops: static counts of the instructions in :data:`COUNTED`, without those that do not occur.
        loads: static count of global loads by width in bits, with asynchronous copies and without TMA.
        stores: static count of global stores by width in bits, without TMA.
        instructions: static instruction count.
        blocks_per_sm: blocks resident on one multiprocessor of sm_90.
        serialized: the assembler waits for each warp-group matrix instruction before it issues the next.
    """

    registers: int
    stack_bytes: int
    shared_bytes: int
    threads: int
    ops: dict[str, int]
    loads: dict[int, int]
    stores: dict[int, int]
    instructions: int
    blocks_per_sm: int
    serialized: bool = False

    @property
    def occupancy(self) -> float:
        """Resident warps as a share of the most that a multiprocessor can hold."""
        return self.blocks_per_sm * self.threads / (32 * SM_90.warps)

    @property
    def spills(self) -> int:
        """Static count of loads from and stores to local memory."""
        return self.op("LDL") + self.op("STL")

    def op(self, name: str) -> int:
        """Return the static count of instruction ``name``."""
        return self.ops.get(name, 0)

    def to_json(self) -> dict[str, Any]:
        """Return a dictionary of JSON types."""
        return asdict(self)

    @staticmethod
    def from_json(fields: Mapping[str, Any]) -> "Figures":
        """Return the figures that :meth:`to_json` wrote."""
        widths = {key: {int(bits): n for bits, n in fields[key].items()} for key in ("loads", "stores")}
        return Figures(**{**fields, **widths})


def parse(text: str, threads: int, dynamic_shared: int, assembler_notes: str = "") -> Figures:
    """Parse the output of ``cuobjdump -res-usage -sass`` for a file of one kernel.

    Args:
        text: the disassembly.
        threads: threads per block.
        dynamic_shared: shared memory that the launch requests, in bytes.
        assembler_notes: output of ptxas for the kernel; empty if it was not run.

    Raises:
        SassError: the text has no resource line or no instruction.
    """
    resources = [tuple(map(int, found)) for found in _RESOURCES.findall(text)]
    names = [name for name in _INSTRUCTION.findall(text) if name != "NOP"]
    if not resources or not names:
        raise SassError(
            "the disassembly must hold a resource line and instructions, found none; is it sm_90 code?"
        )
    # Functions that the kernel calls have lines of their own; the kernel's is the largest in every column.
    registers, stack, shared, local = map(max, zip(*resources, strict=True))
    ops, loads, stores = Counter[str](), Counter[int](), Counter[int]()
    for name in names:
        opcode, *modifiers = name.split(".")
        if opcode in COUNTED:
            ops[opcode] += 1
        elif opcode == "MUFU" and modifiers[0] == "EX2":
            ops["MUFU.EX2"] += 1
        if opcode in ("LDG", "LDGSTS"):
            loads[_width(modifiers)] += 1
        elif opcode == "STG":
            stores[_width(modifiers)] += 1
    # If a block uses shared memory, the assembler adds the 1 KB that the system reserves in it.
    shared = max(shared - SM_90.reserved_shared, 0) + dynamic_shared
    return Figures(
        registers=registers,
        stack_bytes=stack + local,
        shared_bytes=shared,
        threads=threads,
        blocks_per_sm=resident_blocks(registers, threads, shared),
        instructions=len(names),
        ops=dict(ops),
        loads=dict(loads),
        stores=dict(stores),
        serialized="wgmma.mma_async instructions are serialized" in assembler_notes,
    )


def _width(modifiers: list[str]) -> int:
    return next((_WIDTH_OF_MODIFIER[m] for m in modifiers if m in _WIDTH_OF_MODIFIER), 32)


def vector_share(accesses: Mapping[int, int], width: int) -> float:
    """Return the share of bytes moved by accesses at least ``width`` bits wide, each instruction run once.

    ``accesses`` counts instructions by width in bits. Without accesses the share is 0.
    """
    total = sum(bits * count for bits, count in accesses.items())
    wide = sum(bits * count for bits, count in accesses.items() if bits >= width)
    return wide / total if total else 0.0


def resident_blocks(registers: int, threads: int, shared_bytes: int, sm: SmLimits = SM_90) -> int:
    """Return how many blocks fit on one multiprocessor at a time, which may be 0.

    Args:
        registers: registers per thread.
        threads: threads per block.
        shared_bytes: static and dynamic shared memory of a block, without the system's reserve.
        sm: the limits of the multiprocessor.
    """
    warps = math.ceil(threads / 32)
    if shared_bytes > sm.shared_bytes_per_block or registers > sm.registers_per_thread:
        return 0
    per_warp = _round_up(registers * 32, sm.register_unit)
    # Each of the four schedulers has a quarter of the register file, so warps are placed in fours.
    by_registers = _round_down(sm.registers // per_warp, sm.warp_unit) // warps if registers else sm.blocks
    by_shared = sm.shared_bytes // _round_up(shared_bytes + sm.reserved_shared, sm.shared_unit)
    return min(sm.blocks, sm.warps // warps, by_registers, by_shared)


def _round_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit


def _round_down(value: int, unit: int) -> int:
    return value // unit * unit


@dataclass(frozen=True)
class Regression:
    """One figure that became worse.

    Attributes:
        figure: its name.
        before: its value in the baseline.
        after: its value now.
        reason: what the change means.
    """

    figure: str
    before: object
    after: object
    reason: str

    def __str__(self) -> str:
        return f"{self.figure} {self.before} -> {self.after}: {self.reason}"


def faults(figures: Figures) -> list[Regression]:
    """Return the faults that no shipped kernel may have, independent of the baseline.

    These are spills, serialised matrix instructions, and blocks that do not fit on a multiprocessor.
    """
    found = []
    if figures.serialized:
        meaning = "each warp-group matrix instruction waits for the one before (ptxas notes C7510 to C7520)"
        found.append(Regression("matrix instructions", "overlapped", "serialised", meaning))
    if figures.spills or figures.stack_bytes:
        spilled = f"{figures.spills} local accesses, {figures.stack_bytes} stack bytes"
        found.append(Regression("spills", 0, spilled, "registers spill to local memory"))
    if figures.blocks_per_sm == 0:
        used = (
            f"{figures.registers} registers, {figures.threads} threads, {figures.shared_bytes} shared bytes"
        )
        found.append(Regression("resident blocks", "at least 1", 0, f"no block of {used} fits in sm_90"))
    return found


def compare(before: Figures, after: Figures) -> list[Regression]:
    """Return the regressions from ``before`` to ``after``.

    A regression is: a tensor-core instruction lost or replaced by a slower class; a new spill or stack frame;
    fewer resident warps; lost TMA, asynchronous copies or register reallocation; narrower global loads or
    stores. Accesses have narrowed if, for any width of the baseline, the share of bytes moved by accesses at
    least that wide falls by more than :data:`SHARE_SLACK`, unless TMA replaces them. A change in the number
    of registers alone is not a regression.
    """
    found = [*_compare_tensor_cores(before, after)]
    if after.spills > before.spills or after.stack_bytes > before.stack_bytes:
        was, now = (f"{f.spills} local accesses, {f.stack_bytes} stack bytes" for f in (before, after))
        found.append(Regression("spills", was, now, "registers spill to local memory"))
    if after.occupancy < before.occupancy:
        was, now = (f"{f.occupancy:.0%} ({f.blocks_per_sm} blocks)" for f in (before, after))
        registers = f"registers {before.registers} -> {after.registers}"
        shared = f"shared memory {before.shared_bytes} -> {after.shared_bytes} bytes"
        found.append(Regression("occupancy", was, now, f"fewer resident warps; {registers}, {shared}"))
    loads_by_tma = after.op("UTMALDG") > before.op("UTMALDG")
    stores_by_tma = after.op("UTMASTG") > before.op("UTMASTG")
    for name, replaced, meaning in (
        ("UTMALDG", False, "loads no longer go through TMA"),
        ("UTMASTG", False, "stores no longer go through TMA"),
        ("LDGSTS", loads_by_tma, "loads to shared memory are no longer asynchronous"),
        ("USETMAXREG", False, "warps are no longer specialised"),
    ):
        if before.op(name) and not after.op(name) and not replaced:
            found.append(Regression(name, before.op(name), 0, meaning))
    if not loads_by_tma:
        found += _compare_widths("global loads", before.loads, after.loads)
    if not stores_by_tma:
        found += _compare_widths("global stores", before.stores, after.stores)
    return found


def _compare_tensor_cores(before: Figures, after: Figures) -> Iterator[Regression]:
    grouped_before = any(before.op(name) for name in WARP_GROUP_MMA)
    grouped_after = any(after.op(name) for name in WARP_GROUP_MMA)
    for name in WARP_GROUP_MMA:
        if before.op(name) and not after.op(name):
            yield Regression(name, before.op(name), 0, "the matmul lost its tensor-core instruction")
    for name in WARP_MMA:
        if before.op(name) and not after.op(name) and not grouped_after:
            yield Regression(name, before.op(name), 0, "the matmul lost its tensor-core instruction")
        if grouped_before and after.op(name) and not before.op(name):
            yield Regression(name, 0, after.op(name), "a matmul fell from a warp-group to a warp instruction")


def _compare_widths(figure: str, before: Mapping[int, int], after: Mapping[int, int]) -> list[Regression]:
    if not before or not after:
        return []
    for width in sorted(before, reverse=True):
        was, now = vector_share(before, width), vector_share(after, width)
        if now < was - SHARE_SLACK:
            wide = f"of bytes at least {width} bits wide"
            spelled_before = f"{was:.0%} {wide} [{spell_widths(before)}]"
            spelled_after = f"{now:.0%} [{spell_widths(after)}]"
            return [Regression(figure, spelled_before, spelled_after, "a vectorised access narrowed")]
    return []


def spell_widths(accesses: Mapping[int, int]) -> str:
    """Format the counts of :data:`WIDTHS`, widest first, such as ``"8/0/1/0/0"``."""
    return "/".join(str(accesses.get(width, 0)) for width in WIDTHS)
