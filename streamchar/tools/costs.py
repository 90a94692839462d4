"""FLOP and bytes of every kernel of a chunk, and the least time they take on a device.

The floor of a launch is the larger of its FLOP over the matrix rate and its bytes over the memory bandwidth.
Bytes count device memory only: each launch reads its inputs once and writes its outputs once.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

from ..config import Preset

Precision = Literal["bf16", "fp8"]
#: Execution unit of a kernel: tensor cores in bf16 or fp8, or the fp32 units.
Unit = Literal["bf16", "fp8", "fp32"]

#: Bytes per element of each precision.
BYTES = {"bf16": 2, "fp8": 1}
FP32_BYTES = 4


@dataclass(frozen=True)
class Device:
    """The peak rates of one GPU.

    Attributes:
        name: display name.
        bandwidth: device memory bandwidth from the datasheet, in bytes per second.
        copy_bandwidth: bandwidth measured with a large copy, in bytes per second; None if not measured.
        flops: FLOP per second by unit: tensor cores as measured on large GEMMs, fp32 from the datasheet.
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
            "bandwidth and fp32: datasheet; bf16: GEMM of 8192^3; fp8: Triton GEMM, 0.98 of cuBLAS",
        ),
        "h200": Device(
            "H200 SXM",
            4.8e12,
            4.3e12,
            MappingProxyType({"bf16": 788e12, "fp8": 1190e12, "fp32": 67e12}),
            "bandwidth and fp32: datasheet; copy and bf16 GEMM: measured for this project; fp8: as H100",
        ),
    }
)


@dataclass(frozen=True)
class Cost:
    """FLOP and bytes of one kernel launch.

    Attributes:
        name: kernel family and role, such as ``"attention/joint"``.
        flop: floating-point operations.
        bytes: bytes that must cross device memory.
        unit: execution unit of the arithmetic.
        launches: number of launches in the pass that the kernel belongs to.
    """

    name: str
    flop: float
    bytes: float
    unit: Unit = "bf16"
    launches: int = 1

    def compute_seconds(self, device: Device) -> float:
        """Return the time of the arithmetic alone, at the measured rate."""
        return self.flop / device.flops[self.unit]

    def memory_seconds(self, device: Device) -> float:
        """Return the time of the memory traffic alone, at the datasheet bandwidth."""
        return self.bytes / device.bandwidth

    def floor_seconds(self, device: Device) -> float:
        """Return the least time of one launch: the larger of compute and memory time."""
        return max(self.compute_seconds(device), self.memory_seconds(device))

    def bound(self, device: Device) -> Literal["compute", "memory"]:
        """Return which of the two limits the launch."""
        return "compute" if self.compute_seconds(device) > self.memory_seconds(device) else "memory"


def gemm_cost(name: str, m: int, n: int, k: int, precision: Precision, extra_bytes: float = 0.0) -> Cost:
    """Return the cost of ``[m, k] @ [k, n]``: 2 m n k FLOP, operands in ``precision``, result in bf16."""
    moved = BYTES[precision] * (m * k + k * n) + BYTES["bf16"] * m * n
    return Cost(name, 2.0 * m * n * k, moved + extra_bytes, precision)


def attention_cost(
    name: str, q_len: int, kv_len: int, heads: int, head_dim: int, precision: Precision
) -> Cost:
    """Return the cost of attention: 4 N_q N_kv d FLOP, q, k and v in ``precision``, output in bf16.

    Args:
        name: kernel family and role.
        q_len: number of query tokens, N_q.
        kv_len: number of key and value tokens, N_kv.
        heads: number of heads; d = heads * head_dim.
        head_dim: size of a head.
        precision: precision of q, k and v.
    """
    dim = heads * head_dim
    moved = BYTES[precision] * (q_len + 2 * kv_len) * dim + BYTES["bf16"] * q_len * dim
    return Cost(name, 4.0 * q_len * kv_len * dim, moved, precision)


def elementwise_cost(
    name: str, elements: float, reads: float, writes: float, flop_per_element: float
) -> Cost:
    """Return the cost of a fused pass on the fp32 units; ``reads`` and ``writes`` are bytes per element."""
    return Cost(name, flop_per_element * elements, (reads + writes) * elements, "fp32")


def layer_costs(
    config: Preset, video: int, audio: int, kv_len: int, precision: Precision = "bf16"
) -> list[Cost]:
    """Return the costs of one pass of ``video`` and ``audio`` tokens through all blocks.

    Args:
        config: preset with the sizes of the transformer.
        video: number of video tokens computed, including conditioning tokens if they are recomputed.
        audio: number of audio tokens computed.
        kv_len: number of tokens that each of them attends to.
        precision: precision of GEMM operands and of q, k and v.

    Returns:
        One cost per launch of a block, each with ``launches`` = number of blocks.
    """
    dit = config.dit
    dim, tokens, wide, out = dit.dim, video + audio, BYTES["bf16"], BYTES[precision]
    stream = float(tokens * dim)
    hidden = video * dit.video_ffn + audio * dit.audio_ffn
    rotary_tables = 2 * tokens * (dit.head_dim // 2) * FP32_BYTES

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

    qkv = elementwise_cost("qkv_prologue/rope", 3 * stream, wide, out, 10)
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
    """Return the costs of the kernels of one denoising step at the preset's shapes.

    The few-step update reads x in fp32 and v in bf16 and writes x, with about 60 FLOP per element including
    its noise.
    """
    kv_len = config.cached_tokens + config.noisy_tokens
    height, width = config.picture.latent_size
    latent = config.chunk.latent_frames * config.picture.channels * height * width
    latent += config.audio_tokens * config.dit.audio_channels
    update = elementwise_cost("sampler/renoise", latent, FP32_BYTES + BYTES["bf16"], FP32_BYTES, 60)
    return [*layer_costs(config, config.video_tokens, config.audio_tokens, kv_len, precision), update]


def frames_cost(config: Preset, yuv: bool = True) -> Cost:
    """Return the cost of packing the decoder's bf16 output into bytes, once per chunk.

    A pixel takes 3 bytes as RGB and 3/2 bytes as YUV 4:2:0.
    """
    pixels = config.frames * config.picture.height * config.picture.width
    return elementwise_cost(
        "frames/yuv" if yuv else "frames/rgb", pixels, 6, 1.5 if yuv else 3, 20 if yuv else 10
    )


def motion_commit_costs(config: Preset, precision: Precision = "bf16") -> list[Cost]:
    """Return the costs of the clean pass over the finished chunk.

    Its tokens attend to reference, sink and themselves. The last block computes only keys and values.
    """
    stored = {"modulation/norm", "gemm/qkv", "qkv_prologue/rope"}
    return [
        cost if cost.name in stored else replace(cost, launches=cost.launches - 1)
        for cost in layer_costs(config, config.motion_tokens, 0, config.cached_tokens, precision)
    ]


def recompute_costs(config: Preset, precision: Precision = "bf16") -> list[Cost]:
    """Return the costs of a denoising step that recomputes the conditioning instead of caching it.

    All tokens attend to all tokens, as in comparable networks. Our own baseline
    (:class:`bench.baseline.Recompute`) commits role by role, so that conditioning tokens attend only to those
    before them; that is 10 % less in total.
    """
    video = config.cached_tokens + config.video_tokens
    return layer_costs(config, video, config.audio_tokens, video + config.audio_tokens, precision)


def orchestrator_cost(config: Preset, tokens: int, context: int) -> Cost:
    """Return the cost of the language model on ``tokens`` positions over ``context``, in bf16.

    It takes 2 FLOP per weight and token. All matrices are read once, the keys and values of the context are
    read, and those of the tokens are written. The embedding is a lookup, and there is no output head:
    conditions are taken from the last block.
    """
    lm = config.orchestrator
    attention = 4.0 * tokens * context * lm.heads * lm.head_dim * lm.layers
    cache = 2 * (context + tokens) * lm.kv_heads * lm.head_dim * lm.layers
    return Cost(
        f"orchestrator/{tokens} tokens",
        2.0 * tokens * lm.matrix_parameters + attention,
        BYTES["bf16"] * (lm.matrix_parameters + cache),
    )


def total_flop(costs: Iterable[Cost]) -> float:
    """Return the FLOP of all launches."""
    return sum(cost.flop * cost.launches for cost in costs)


def total_bytes(costs: Iterable[Cost]) -> float:
    """Return the bytes of all launches."""
    return sum(cost.bytes * cost.launches for cost in costs)


def total_compute_seconds(costs: Iterable[Cost], device: Device) -> float:
    """Return the time of the arithmetic of all launches, as if memory traffic were free."""
    return sum(cost.compute_seconds(device) * cost.launches for cost in costs)


def total_floor_seconds(costs: Iterable[Cost], device: Device) -> float:
    """Return the sum of the floors of all launches; they run one after another."""
    return sum(cost.floor_seconds(device) * cost.launches for cost in costs)


def repeated(costs: Iterable[Cost], times: int) -> list[Cost]:
    """Return the costs with ``times`` as many launches."""
    return [replace(cost, launches=cost.launches * times) for cost in costs]


def chunk_costs(config: Preset, precision: Precision = "bf16") -> dict[str, list[Cost]]:
    """Return the costs of the stages of one chunk in the steady state, critical path first.

    The orchestrator always runs in bf16, because each of its steps is bound by reading its weights.
    """
    lm, steps = config.orchestrator, config.sampler.steps
    prefix = lm.transcript_tokens + round(lm.history_seconds * config.clock.frame_rate)
    plan = orchestrator_cost(config, config.audio_tokens, prefix + config.audio_tokens)
    return {
        f"{steps} orchestrator steps": repeated([plan], steps),
        f"{steps} denoising steps": repeated(kernel_costs(config, precision), steps),
        "frames": [frames_cost(config)],
        "orchestrator prefill (overlapped)": [orchestrator_cost(config, prefix, prefix)],
        "motion commit (overlapped)": motion_commit_costs(config, precision),
    }
