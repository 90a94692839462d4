"""Predict the floor of every kernel and of a whole chunk from its FLOP, its bytes and a device's ceilings.

A floor is the larger of FLOP over the reachable matrix rate and bytes over the memory bandwidth. Bytes are
those that must cross device memory if each launch reads its inputs once and writes its outputs once. Launch
gaps, cache hits between launches and decoders are left out: this is a prediction, never a measurement.

Run as ``python -m streamchar.roofline --preset 5b``.
"""

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Annotated, Literal

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from .config import PRESETS, ConfigError, Preset, preset

Precision = Literal["bf16", "fp8"]
#: What does a kernel's arithmetic: tensor cores in bf16 or fp8, or the fp32 units.
Unit = Literal["bf16", "fp8", "fp32"]

_BYTES = {"bf16": 2, "fp8": 1}
_FP32_BYTES = 4


@dataclass(frozen=True)
class Device:
    """The ceilings of one GPU.

    Attributes:
        name: how it is called.
        bandwidth: device memory, bytes a second, datasheet.
        copy_bandwidth: the same as measured by a large copy, None where it was not measured.
        flops: FLOP a second by unit; tensor cores as measured on large GEMMs, fp32 from the datasheet.
        source: where the figures come from.
    """

    name: str
    bandwidth: float
    copy_bandwidth: float | None
    flops: Mapping[Unit, float]
    source: str


DEVICES: Mapping[str, Device] = MappingProxyType(
    {
        "h100": Device(
            "H100 SXM",
            3.35e12,
            None,
            MappingProxyType({"bf16": 800e12, "fp8": 1190e12, "fp32": 67e12}),
            "bandwidth and fp32: datasheet; bf16: GEMM of 8192 cubed; fp8: Triton GEMM, 0.98 of cuBLAS",
        ),
        "h200": Device(
            "H200 SXM",
            4.8e12,
            4.3e12,
            MappingProxyType({"bf16": 788e12, "fp8": 1190e12, "fp32": 67e12}),
            "bandwidth and fp32: datasheet; copy and bf16 GEMM: measured for this project; fp8: the H100's",
        ),
    }
)


@dataclass(frozen=True)
class Cost:
    """What one launch must do.

    Attributes:
        name: family and role, such as ``"attention/joint"``.
        flop: floating-point operations.
        bytes: bytes that must cross device memory.
        unit: what does the arithmetic.
        launches: how often it runs in the pass that it belongs to.
    """

    name: str
    flop: float
    bytes: float
    unit: Unit = "bf16"
    launches: int = 1

    def compute_seconds(self, device: Device) -> float:
        """Return the time that arithmetic alone takes at the reachable rate."""
        return self.flop / device.flops[self.unit]

    def memory_seconds(self, device: Device) -> float:
        """Return the time that memory traffic alone takes at the datasheet's bandwidth."""
        return self.bytes / device.bandwidth

    def floor_seconds(self, device: Device) -> float:
        """Return the least time of one launch: the larger of compute and memory."""
        return max(self.compute_seconds(device), self.memory_seconds(device))

    def bound(self, device: Device) -> Literal["compute", "memory"]:
        """Say which of the two rules."""
        return "compute" if self.compute_seconds(device) > self.memory_seconds(device) else "memory"


def gemm_cost(name: str, m: int, n: int, k: int, precision: Precision, extra_bytes: float = 0.0) -> Cost:
    """Cost ``[m, k] @ [k, n]``: 2 m n k FLOP; operands in ``precision``, result in bf16."""
    moved = _BYTES[precision] * (m * k + k * n) + _BYTES["bf16"] * m * n
    return Cost(name, 2.0 * m * n * k, moved + extra_bytes, precision)


def attention_cost(
    name: str, q_len: int, kv_len: int, heads: int, head_dim: int, precision: Precision
) -> Cost:
    """Cost q_len over kv_len tokens: 4 N_q N_kv d FLOP; q, k, v in ``precision``, output in bf16."""
    dim = heads * head_dim
    moved = _BYTES[precision] * (q_len + 2 * kv_len) * dim + _BYTES["bf16"] * q_len * dim
    return Cost(name, 4.0 * q_len * kv_len * dim, moved, precision)


def elementwise_cost(
    name: str, elements: float, reads: float, writes: float, flop_per_element: float
) -> Cost:
    """Cost a fused pass that reads and writes the given bytes for each of ``elements``, on the fp32 units."""
    return Cost(name, flop_per_element * elements, (reads + writes) * elements, "fp32")


def layer_costs(
    config: Preset, video: int, audio: int, kv_len: int, precision: Precision = "bf16"
) -> list[Cost]:
    """Cost the launches of one pass of ``video`` and ``audio`` tokens through all blocks.

    Args:
        config: the sizes of the transformer.
        video: video tokens computed, conditioning included where it is recomputed.
        audio: audio tokens computed.
        kv_len: tokens that each of them attends to.
        precision: operands of matrix products, and of the attention's q, k and v.

    Returns:
        a cost for each launch of a block, each with ``launches`` = number of blocks.
    """
    dit = config.dit
    dim, tokens, wide, out = dit.dim, video + audio, _BYTES["bf16"], _BYTES[precision]
    stream = float(tokens * dim)
    hidden = video * dit.video_ffn + audio * dit.audio_ffn
    rotary_tables = 2 * tokens * (dit.head_dim // 2) * _FP32_BYTES

    def quantize(role: str, elements: float) -> list[Cost]:
        if precision == "bf16":
            return []
        return [elementwise_cost(f"modulation/quantize {role}", elements, wide, out, 4)]

    def experts(role: str, extra_bytes: float, fan_in: bool) -> Cost:
        parts = [
            gemm_cost(role, m, *((dim, ffn) if fan_in else (ffn, dim)), precision)
            for m, ffn in ((video, dit.video_ffn), (audio, dit.audio_ffn))
            if m
        ]
        flop, moved = sum(part.flop for part in parts), sum(part.bytes for part in parts)
        return Cost(role, flop, moved + extra_bytes, precision)

    qkv = elementwise_cost("qkv/rope", 3 * stream, wide, out, 10)
    costs = [
        elementwise_cost("modulation/norm", stream, wide, out, 10),
        gemm_cost("gemm/qkv", tokens, 3 * dim, dim, precision),
        replace(qkv, bytes=qkv.bytes + rotary_tables),
        attention_cost("attention/joint", tokens, kv_len, dit.heads, dit.head_dim, precision),
        *quantize("attention", stream),
        gemm_cost("gemm/output", tokens, dim, dim, precision),
        elementwise_cost("modulation/gated norm", stream, 2 * wide, wide + out, 12),
        experts("experts/up", 0.0, fan_in=False),
        *quantize("hidden", hidden),
        experts("experts/down", stream * wide, fan_in=True),
    ]
    return [replace(cost, launches=dit.layers) for cost in costs]


def kernel_costs(config: Preset, precision: Precision = "bf16") -> list[Cost]:
    """Cost every kernel family of a denoising step at the preset's shapes, with its launches a step.

    The few-step update reads x in fp32 and v in bf16 and writes x; about 60 FLOP an element with its noise.
    """
    kv_len = config.cached_tokens + config.noisy_tokens
    height, width = config.picture.latent_size
    latent = config.chunk.latent_frames * config.picture.channels * height * width
    latent += config.audio_tokens * config.dit.audio_channels
    update = elementwise_cost("sampler/renoise", latent, _FP32_BYTES + _BYTES["bf16"], _FP32_BYTES, 60)
    return [*layer_costs(config, config.video_tokens, config.audio_tokens, kv_len, precision), update]


def egress_cost(config: Preset, yuv: bool = True) -> Cost:
    """Cost the decoder's bf16 output becoming bytes, once a chunk: 3 a pixel for RGB, 3/2 for YUV 4:2:0."""
    pixels = config.frames * config.picture.height * config.picture.width
    return elementwise_cost(
        "egress/yuv" if yuv else "egress/rgb", pixels, 6, 1.5 if yuv else 3, 20 if yuv else 10
    )


def motion_commit_costs(config: Preset, precision: Precision = "bf16") -> list[Cost]:
    """Cost the clean pass over the chunk just finished, which attends to reference, sink and itself.

    Of the last block only keys and values are wanted.
    """
    stored = {"modulation/norm", "gemm/qkv", "qkv/rope"}
    return [
        cost if cost.name in stored else replace(cost, launches=cost.launches - 1)
        for cost in layer_costs(config, config.motion_tokens, 0, config.cached_tokens, precision)
    ]


def recompute_costs(config: Preset, precision: Precision = "bf16") -> list[Cost]:
    """Cost a denoising step that computes the conditioning anew instead of reading its keys and values.

    All tokens attend to all, as in the networks of peers; committed role by role, as our own baseline does it
    (:class:`bench.baseline.Recompute`), conditioning attends to what precedes it alone: 10 % less in all.
    """
    video = config.cached_tokens + config.video_tokens
    return layer_costs(config, video, config.audio_tokens, video + config.audio_tokens, precision)


def orchestrator_cost(config: Preset, tokens: int, context: int) -> Cost:
    """Cost the language model on ``tokens`` positions over ``context``, bf16: 2 FLOP a weight and token.

    All matrices are read once; keys and values of the context are read, those of the tokens written. The
    embedding is looked up, and there is no output head: conditions are taken from the last block.
    """
    lm = config.orchestrator
    attention = 4.0 * tokens * context * lm.heads * lm.head_dim * lm.layers
    cache = 2 * (context + tokens) * lm.kv_heads * lm.head_dim * lm.layers
    return Cost(
        f"orchestrator/{tokens} tokens",
        2.0 * tokens * lm.matrix_parameters + attention,
        _BYTES["bf16"] * (lm.matrix_parameters + cache),
    )


def total_flop(costs: Iterable[Cost]) -> float:
    """Add up the FLOP of all launches."""
    return sum(cost.flop * cost.launches for cost in costs)


def total_bytes(costs: Iterable[Cost]) -> float:
    """Add up the bytes of all launches."""
    return sum(cost.bytes * cost.launches for cost in costs)


def total_compute_seconds(costs: Iterable[Cost], device: Device) -> float:
    """Add up arithmetic alone, as if memory were free."""
    return sum(cost.compute_seconds(device) * cost.launches for cost in costs)


def total_floor_seconds(costs: Iterable[Cost], device: Device) -> float:
    """Add up the floors: launches run one after the other, each bound by its own ceiling."""
    return sum(cost.floor_seconds(device) * cost.launches for cost in costs)


def _repeated(costs: Iterable[Cost], times: int) -> list[Cost]:
    return [replace(cost, launches=cost.launches * times) for cost in costs]


def chunk_costs(config: Preset, precision: Precision = "bf16") -> dict[str, list[Cost]]:
    """Cost the stages of one chunk in the steady state, those on the critical path first.

    The orchestrator runs in bf16 either way: each of its steps is bound by reading its weights.
    """
    lm, steps = config.orchestrator, config.sampler.steps
    prefix = lm.transcript_tokens + round(lm.history_seconds * config.clock.frame_rate)
    plan = orchestrator_cost(config, config.audio_tokens, prefix + config.audio_tokens)
    return {
        f"{steps} orchestrator steps": _repeated([plan], steps),
        f"{steps} denoising steps": _repeated(kernel_costs(config, precision), steps),
        "egress": [egress_cost(config)],
        "orchestrator prefill (overlapped)": [orchestrator_cost(config, prefix, prefix)],
        "motion commit (overlapped)": motion_commit_costs(config, precision),
    }


def kernel_table(config: Preset, device: Device, precision: Precision) -> Table:
    """Lay out the floor of every kernel family, a launch and a denoising step."""
    out = _table(
        f"prediction: kernels of a {config.name} denoising step in {precision} on {device.name}, "
        f"{config.noisy_tokens} x {config.cached_tokens + config.noisy_tokens} tokens",
        "kernel", "launches", "FLOP", "bytes", "FLOP/byte",
        "compute us", "memory us", "floor us", "bound", "step ms",
    )  # fmt: skip
    costs = kernel_costs(config, precision)
    for cost in [*costs, replace(egress_cost(config), launches=0)]:
        out.add_row(
            cost.name,
            str(cost.launches) if cost.launches else "once a chunk",
            f"{cost.flop:.2e}",
            f"{cost.bytes:.2e}",
            f"{cost.flop / cost.bytes:.1f}",
            f"{cost.compute_seconds(device) * 1e6:.1f}",
            f"{cost.memory_seconds(device) * 1e6:.1f}",
            f"{cost.floor_seconds(device) * 1e6:.1f}",
            cost.bound(device),
            f"{cost.floor_seconds(device) * cost.launches * 1e3:.2f}",
        )
    out.add_section()
    for label, share in (("one layer", config.dit.layers), ("one step", 1)):
        chosen = [cost for cost in costs if share == 1 or cost.launches == share]
        out.add_row(
            label,
            str(sum(cost.launches for cost in chosen) // share),
            f"{total_flop(chosen) / share:.2e}",
            f"{total_bytes(chosen) / share:.2e}",
            f"{total_flop(chosen) / total_bytes(chosen):.1f}",
            f"{total_compute_seconds(chosen, device) / share * 1e6:.1f}",
            f"{total_bytes(chosen) / share / device.bandwidth * 1e6:.1f}",
            f"{total_floor_seconds(chosen, device) / share * 1e6:.1f}",
            "",
            f"{total_floor_seconds(chosen, device) / share * 1e3:.2f}",
        )
    return out


def chunk_table(config: Preset, device: Device) -> Table:
    """Lay out a chunk's stages in bf16 and fp8 beside the playback budget and the uncached alternative."""
    budget = config.seconds
    out = _table(
        f"prediction: one {config.name} chunk on {device.name}, {config.chunk.latent_frames} latent frames = "
        f"{config.frames} frames = {budget * 1e3:.0f} ms of playback",
        "stage", "FLOP", "bf16 arithmetic ms", "bf16 floor ms", "fp8 floor ms", "bf16 share of budget",
    )  # fmt: skip

    def row(stage: str, bf16: list[Cost], fp8: list[Cost]) -> None:
        floor = total_floor_seconds(bf16, device)
        out.add_row(
            stage,
            f"{total_flop(bf16):.2e}",
            f"{total_compute_seconds(bf16, device) * 1e3:.1f}",
            f"{floor * 1e3:.1f}",
            f"{total_floor_seconds(fp8, device) * 1e3:.1f}",
            f"{floor / budget:.1%}",
        )

    stages, stages8 = chunk_costs(config), chunk_costs(config, "fp8")
    for stage, costs in stages.items():
        row(stage, costs, stages8[stage])
    out.add_section()
    for label, chosen in (
        ("critical path", [stage for stage in stages if "overlapped" not in stage]),
        ("all work", list(stages)),
    ):
        row(label, *([cost for stage in chosen for cost in each[stage]] for each in (stages, stages8)))
    out.add_section()
    steps = config.sampler.steps
    anew = [_repeated(recompute_costs(config, precision), steps) for precision in ("bf16", "fp8")]
    row(f"{steps} steps, conditioning recomputed", *anew)
    return out


def _table(title: str, *headings: str) -> Table:
    out = Table(title=title, title_justify="left", box=box.SIMPLE, padding=(0, 1, 0, 0))
    for heading in headings:
        out.add_column(heading, justify="right" if out.columns else "left", no_wrap=True)
    return out


def notes(config: Preset, device: Device) -> list[str]:
    """Return what the tables leave unsaid: the ceilings, and what is read for the weights alone."""
    weights = _BYTES["bf16"] * config.dit.parameters
    copy = f", {device.copy_bandwidth / 1e12:.2f} as measured by a copy" if device.copy_bandwidth else ""
    rates = ", ".join(f"{unit} {rate / 1e12:.0f}" for unit, rate in device.flops.items())
    return [
        f"ceilings: {device.bandwidth / 1e12:.2f} TB/s{copy}; TFLOP/s {rates} ({device.source})",
        f"transformer weights: {config.dit.parameters / 1e9:.2f} G, "
        f"{weights / device.bandwidth * 1e3:.2f} ms a step to read them in bf16",
        "not modelled: embeddings and output heads (under 1 %), decoders, launch gaps, copies to the host",
    ]


def main(
    preset_name: Annotated[str, typer.Option("--preset", help=" or ".join(PRESETS))] = "5b",
    device: Annotated[str, typer.Option(help=" or ".join(DEVICES))] = "h100",
    latent_frames: Annotated[
        int | None, typer.Option(help="T, latent frames a chunk; the preset's own")
    ] = None,
) -> None:
    """Print the predicted floor of every kernel and of a whole chunk. Nothing is measured."""
    console = Console(width=None if sys.stdout.isatty() else 200, highlight=False)
    try:
        config = preset(preset_name)
        if latent_frames is not None:
            config = config.with_latent_frames(latent_frames)
        if device not in DEVICES:
            raise ConfigError("device", " or ".join(map(repr, DEVICES)), repr(device))
    except ConfigError as error:
        console.print(f"roofline: {error}", style="red", markup=False)
        raise typer.Exit(2) from None
    ceilings = DEVICES[device]
    console.print(kernel_table(config, ceilings, "bf16"))
    console.print(kernel_table(config, ceilings, "fp8"))
    console.print(chunk_table(config, ceilings))
    for note in notes(config, ceilings):
        console.print(note, markup=False, soft_wrap=True)


if __name__ == "__main__":
    typer.run(main)
