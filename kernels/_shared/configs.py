"""Tiles, warps and stages of the matrix kernels, and the measured choice between Triton and cuBLAS.

Figures marked *prediction* come from counting and from compiling for sm_90. Nothing in this file has been
timed on a GPU unless the text says so.

``choices.json`` records whether the Triton kernel or cuBLAS is faster for the expert products that were
timed::

    {"schema": 1, "entries": [{
        "device": "NVIDIA H100 80GB HBM3",   name of the GPU
        "op": "expert_up",                   or "expert_down"
        "dtype": "bfloat16",                 of the operands; "float8_e4m3fn" for fp8
        "m_video": 2048, "m_audio": 32,      rows of each expert, all batch rows together
        "n": 14336, "k": 3072,               output and input width of the video expert
        "triton_us": 251.0, "cublas_us": 274.0,   medians of one interleaved run
        "choice": "triton"                   the faster of the two
    }]}

(The figures above only show the format.) :func:`record_choice` writes entries, :func:`measured` looks up the
entries of a product, and :func:`pick` chooses the entry for its rows.
"""

import json
import math
import os
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch

from .checks import require
from .compat import FP8

Choice = Literal["triton", "cublas"]
#: Rows of the video and of the audio expert, and the faster implementation.
Measured = tuple[int, int, Choice]

#: Streaming multiprocessors of an H100 or H200 SXM: the grid of a persistent kernel compiled without a GPU.
HOPPER_SMS = 132
CHOICES_PATH = Path(__file__).with_name("choices.json")
CHOICES_SCHEMA = 1
EXPERT_OPS = ("expert_up", "expert_down")


@dataclass(frozen=True)
class GemmConfig:
    """Tiling of a persistent matrix product ``A [m, k] @ W [n, k]^T``.

    Attributes:
        block_m: rows of a tile of the output.
        block_n: columns of a tile of the output.
        block_k: depth of one step of the loop.
        group_m: rows of tiles that are computed before the next column of tiles.
        num_warps: warps per program.
        num_stages: steps whose operands are in flight or in use in shared memory.
        split_epilogue: store the two halves of a tile's columns one after the other, in half the registers.
        flatten: load the first steps of the next tile while this one finishes.
        blocks_per_sm: programs that share a multiprocessor.
        promote: fp8 only: add the result of each step in fp32 registers, because the tensor core sums fp8
            products with about 14 bits (arXiv 2412.19437 section 3.3.2).
    """

    block_m: int
    block_n: int
    block_k: int
    group_m: int
    num_warps: int
    num_stages: int
    split_epilogue: bool = True
    flatten: bool = False
    blocks_per_sm: int = 1
    promote: bool = False

    def tiles(self, m: int, n: int) -> int:
        """Return the number of output tiles of m rows and n columns."""
        return math.ceil(m / self.block_m) * math.ceil(n / self.block_n)


# Wide tiles read the fewest bytes per FLOP: a bf16 step does 85 FLOP for each byte that it loads from L2 at
# 128 x 256, and 64 at 128 x 128. Eight warps hold 128 accumulators a thread; four warps would spill.
# 4 stages x 48 KB = 192 KB of the 227 KB that a program may have.
_WIDE = GemmConfig(128, 256, 64, group_m=16, num_warps=8, num_stages=4)
_WIDE_FP8 = GemmConfig(128, 256, 128, group_m=16, num_warps=8, num_stages=4)
# 6 stages x 32 KB = 192 KB.
_SQUARE = GemmConfig(128, 128, 64, group_m=16, num_warps=8, num_stages=6)
_SQUARE_FP8 = GemmConfig(128, 128, 128, group_m=16, num_warps=8, num_stages=6)
# 96 KB and at most 185 registers x 128 threads: two programs fit on a multiprocessor.
_SMALL = GemmConfig(64, 128, 64, group_m=8, num_warps=4, num_stages=4, blocks_per_sm=2)
_SMALL_FP8 = GemmConfig(64, 128, 128, group_m=8, num_warps=4, num_stages=4, blocks_per_sm=2)
# There is no fp32 matrix instruction, so the product runs on FMA units. It is meant for tests.
_FP32 = GemmConfig(64, 64, 32, group_m=8, num_warps=8, num_stages=2)


def gemm_config(dtype: torch.dtype, m_video: int, n: int, k: int, num_sms: int = HOPPER_SMS) -> GemmConfig:
    """Pick the tiling of an expert product.

    The time of a tile depends only on its size, so a launch takes a whole number of waves of ``num_sms``
    tiles. For preset ``5b`` on 132 SMs (prediction):

    ====================================  =======  ==============  =======================================
    product                               tile     video tiles     waves, with the audio tiles
    ====================================  =======  ==============  =======================================
    up, 2048 x 14336, k 3072              128x256  16 x 56 = 896   6.79; 16 more tiles of equal depth: 6.91
    down, 2048 x 3072, k 14336            128x256  16 x 12 = 192   1.45, so 2: 0.73 of the SMs in use
    down, 2048 x 3072, k 14336            128x128  16 x 24 = 384   2.91, so 3: 0.97 of the SMs in use
    ====================================  =======  ==============  =======================================

    So the down projection uses the square tile: 3 waves of half the size instead of 2. Its 24 audio tiles,
    which are 0.29 as deep (k 4096), fit twice in the 12 SMs that the third wave leaves idle.

    Args:
        dtype: dtype of the operands.
        m_video: rows of the video expert, all batch rows together.
        n: output width of the video expert.
        k: input width of the video expert.
        num_sms: multiprocessors of the device.

    Returns:
        The tiling for both experts of the launch.
    """
    if dtype in (torch.float32, torch.float64):
        return _FP32
    fp8 = dtype == FP8
    wide, square, small = (_WIDE_FP8, _SQUARE_FP8, _SMALL_FP8) if fp8 else (_WIDE, _SQUARE, _SMALL)
    promote = fp8 and promotes(k)
    # A launch of less than one wave gains more from using more SMs than from wide tiles.
    config = small if square.tiles(m_video, n) < num_sms else square
    if config is square and not promote:
        # The wide tile loads three quarters of the bytes. This does not make up for idle SMs if it keeps less
        # than four fifths as many busy.
        wide_share = _share_of_sms(wide.tiles(m_video, n), num_sms)
        if wide_share >= 0.8 * _share_of_sms(square.tiles(m_video, n), num_sms):
            config = wide
    return replace(config, promote=True) if promote else config


def promotes(k: int) -> bool:
    """Return whether fp8 products over ``k`` elements are summed in fp32 registers, step by step.

    This needs a second set of accumulators, with which the wide tile spills, and steps overlap less. The
    error without it (prediction): each of the k / 32 sums in the tensor core truncates 2**-14 of the value so
    far. That adds up to 0.4 % over k 3072, a tenth of the error of rounding the operands to fp8, and to 1.8 %
    over k 14336, half of that error.
    """
    return k > 4096


def _share_of_sms(tiles: int, num_sms: int) -> float:
    return tiles / (math.ceil(tiles / num_sms) * num_sms)


@dataclass(frozen=True)
class AttentionConfig:
    """Tiling of joint attention.

    Attributes:
        block_m: queries of a program.
        block_n: keys of a full tile.
        tail_n: keys of a masked tile at the end of a segment, a divisor of ``block_n``.
        num_warps: warps per program.
        num_stages: tiles of keys and values in flight or in use in shared memory.
    """

    block_m: int
    block_n: int
    tail_n: int
    num_warps: int
    num_stages: int


# Compiled for sm_90 at head_dim 128 (Triton 3.6.0 and 3.7.1): 128 x 128 with 8 warps takes 200 registers and,
# with 3 stages, 224 KB of the 227 KB of shared memory; 4 warps at the same tile would spill. In fp8 it takes
# 176 registers and 112 KB. Cost of the tile (prediction): 2080 queries of 24 heads are 17 x 24 = 408 programs
# on 132 SMs, 3.09 waves, so the short last tiles of the heads are launched last, to fill the fourth wave.
# 64 x 64 with 4 warps puts two programs on an SM, 792 on 264 places, exactly 3.0 waves, but reads every key
# twice as often from shared memory, which is then at its bandwidth limit. ``python -m bench.h100 --tune``
# times both tiles and others. Warp specialisation was compiled and rejected: with descriptors made in the
# kernel, which it requires, and 4 warps, neither Triton version moved registers between warps (no
# USETMAXREG), and 128 x 128 spilled.
_ATTENTION = AttentionConfig(block_m=128, block_n=128, tail_n=32, num_warps=8, num_stages=3)
# There is no fp32 matrix instruction, so the product runs on FMA units. It is meant for tests.
_ATTENTION_FP32 = AttentionConfig(block_m=32, block_n=32, tail_n=16, num_warps=4, num_stages=1)


def attention_config(dtype: torch.dtype, head_dim: int) -> AttentionConfig:
    """Pick the tiling of joint attention for operands of ``dtype`` and heads of ``head_dim`` (64 or 128)."""
    return _ATTENTION_FP32 if dtype == torch.float32 else _ATTENTION


def measured(
    op: str, dtype: torch.dtype, n: int, k: int, device_name: str, path: Path = CHOICES_PATH
) -> tuple[Measured, ...]:
    """Return the measurements of an expert product, at any number of rows.

    Args:
        op: ``"expert_up"`` or ``"expert_down"``.
        dtype: dtype of the operands.
        n: output width of the video expert.
        k: input width of the video expert.
        device_name: ``torch.cuda.get_device_properties(...).name``.
        path: the table, which is read once per process.
    """
    return _table(path).get((device_name, op, _spelled(dtype), n, k), ())


def pick(entries: tuple[Measured, ...], m_video: int, m_audio: int) -> Choice:
    """Return the implementation that was measured to be faster at this number of rows.

    An entry applies if its rows fill the same number of tiles of 128 rows, because this determines the
    launch. Of several such entries, the one nearest in rows is used.

    Args:
        entries: measurements of the product, from :func:`measured`.
        m_video: rows of the video expert, all batch rows together.
        m_audio: rows of the audio expert, all batch rows together.

    Returns:
        the choice; ``"cublas"`` if nothing was measured, because an untimed kernel must not replace a library
        that is known to be fast.

    Can be traced: rows may be symbols of ``torch.compile``, which then guards on the comparisons.
    """
    choice: Choice = "cublas"
    nearest = None
    for video, audio, faster in entries:
        if _tiles(video) == _tiles(m_video) and _tiles(audio) == _tiles(m_audio):
            distance = abs(video - m_video) + abs(audio - m_audio)
            if nearest is None or distance < nearest:
                nearest, choice = distance, faster
    return choice


def record_choice(
    path: Path,
    *,
    device_name: str,
    op: str,
    dtype: torch.dtype,
    m_video: int,
    m_audio: int,
    n: int,
    k: int,
    triton_us: float,
    cublas_us: float,
) -> Choice:
    """Write one measurement to the table at ``path``, replacing an earlier one of the same product and rows.

    Args:
        path: a table in the format of this module's description; created if it does not exist.
        device_name: ``torch.cuda.get_device_properties(...).name``.
        op: ``"expert_up"`` or ``"expert_down"``.
        dtype: dtype of the operands.
        m_video: rows of the video expert, all batch rows together.
        m_audio: rows of the audio expert, all batch rows together.
        n: output width of the video expert.
        k: input width of the video expert.
        triton_us: median time of the Triton kernel, in microseconds.
        cublas_us: median time of the library path in the same run, in microseconds.

    Returns:
        the faster of the two, as recorded.

    Raises:
        KernelArgumentError: a figure cannot be a measurement, or the table has another schema.
    """
    entry: dict[str, Any] = {
        "device": device_name,
        "op": op,
        "dtype": _spelled(dtype),
        "m_video": m_video,
        "m_audio": m_audio,
        "n": n,
        "k": k,
        "triton_us": triton_us,
        "cublas_us": cublas_us,
        "choice": "triton" if triton_us < cublas_us else "cublas",
    }
    _check_entry(entry, "")
    entries = _read(path) if path.exists() else []
    entries = [old for old in entries if _product(old) != _product(entry)] + [entry]
    entries.sort(key=lambda each: tuple(map(str, _product(each))))
    text = json.dumps({"schema": CHOICES_SCHEMA, "entries": entries}, indent=2) + "\n"
    # Replace the file as a whole, so that stopping the benchmark leaves no half-written table.
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    os.replace(partial, path)
    _table.cache_clear()
    return "triton" if entry["choice"] == "triton" else "cublas"


@cache
def _table(path: Path) -> dict[tuple[Any, ...], tuple[Measured, ...]]:
    table: dict[tuple[Any, ...], tuple[Measured, ...]] = {}
    for entry in _read(path):
        key = tuple(entry[name] for name in ("device", "op", "dtype", "n", "k"))
        table[key] = (*table.get(key, ()), (entry["m_video"], entry["m_audio"], entry["choice"]))
    return table


def _read(path: Path) -> list[dict[str, Any]]:
    content = json.loads(path.read_text())
    schema = content.get("schema") if isinstance(content, dict) else None
    require(schema == CHOICES_SCHEMA, f"{path.name} schema", str(CHOICES_SCHEMA), schema, "record it anew")
    entries: list[dict[str, Any]] = content.get("entries")
    require(isinstance(entries, list), f"{path.name} entries", "a list", type(entries).__name__)
    for index, entry in enumerate(entries):
        _check_entry(entry, f"{path.name} entries[{index}].")
    return entries


def _check_entry(entry: dict[str, Any], where: str) -> None:
    require(
        isinstance(entry.get("device"), str) and entry["device"] != "",
        f"{where}device",
        "the name of a GPU",
        repr(entry.get("device")),
    )
    require(entry.get("op") in EXPERT_OPS, f"{where}op", " or ".join(EXPERT_OPS), repr(entry.get("op")))
    dtypes = ("bfloat16", "float16", "float32", "float8_e4m3fn")
    require(entry.get("dtype") in dtypes, f"{where}dtype", " or ".join(dtypes), repr(entry.get("dtype")))
    for name, least in {"m_video": 0, "m_audio": 0, "n": 1, "k": 1}.items():
        value = entry.get(name)
        require(type(value) is int and value >= least, f"{where}{name}", f"an int >= {least}", repr(value))
    require(entry["m_video"] + entry["m_audio"] > 0, f"{where}m_video + m_audio", "at least 1 row", "0")
    for name in ("triton_us", "cublas_us"):
        value = entry.get(name)
        measured = isinstance(value, float | int) and not isinstance(value, bool)
        require(
            measured and math.isfinite(value) and value > 0,  # type: ignore[arg-type, operator]
            f"{where}{name}",
            "a finite time above 0 us",
            repr(value),
        )
    faster = "triton" if entry["triton_us"] < entry["cublas_us"] else "cublas"
    require(
        entry.get("choice") == faster,
        f"{where}choice",
        f"{faster!r}, the faster one",
        repr(entry.get("choice")),
    )


def _product(entry: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(entry[name] for name in ("device", "op", "dtype", "n", "k", "m_video", "m_audio"))


def _tiles(rows: int) -> int:
    return (rows + 127) // 128


def _spelled(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
