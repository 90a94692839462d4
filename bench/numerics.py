"""Check every kernel family against float64 on the device that is timed, at the preset's sizes.

The unit tests check the arithmetic in Triton's interpreter on a CPU. These checks cover the compiled code:
bf16 and fp8 matrix instructions, tensor copies, vector stores. Outputs are filled with NaN first, and KV
slots outside the segments hold NaN.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any
from unittest.mock import patch

import torch

from bench.cases import Setting
from streamchar import kernels as K
from streamchar.kernels._shared.compat import FP8
from streamchar.kernels._shared.rope import rope_tables
from streamchar.kernels.attention.reference import joint_attention_reference, slots_in_segments
from streamchar.kernels.experts import reference as experts
from streamchar.kernels.experts.arguments import ExpertArgs
from streamchar.kernels.frames.reference import pack_frames_reference
from streamchar.kernels.modulation.arguments import ModulationArgs
from streamchar.kernels.modulation.reference import modulation_reference
from streamchar.kernels.qkv_prologue.arguments import QkvPrologueArgs
from streamchar.kernels.qkv_prologue.reference import qkv_prologue_reference
from streamchar.kernels.sampler.arguments import SamplerArgs
from streamchar.kernels.sampler.reference import sampler_step_reference
from streamchar.numerics import EPSILON, relative_error

#: Byte of a NaN in float8_e4m3fn.
_FP8_NAN = 0x7F


@dataclass(frozen=True)
class Check:
    """One comparison with float64.

    Attributes:
        name: family and variant.
        error: ``||out - reference|| / ||reference||``; infinite if there is a NaN.
        bound: largest error that the rounding of the dtype explains.
    """

    name: str
    error: float
    bound: float

    @property
    def passed(self) -> bool:
        """Whether the error is within the bound."""
        return self.error <= self.bound

    def as_dict(self) -> dict[str, object]:
        """Return the fields and the verdict as plain JSON values."""
        return asdict(self) | {"passed": self.passed}


def all_checks(setting: Setting) -> Iterator[Check]:
    """Yield the checks of every family: the setting's dtype, and on a GPU also fp16 and fp8."""
    families: list[Callable[[Setting, torch.dtype], Iterator[Check]]] = [
        _attention,
        _qkv_prologue,
        _modulation,
        _experts,
        _sampler,
        _frames,
    ]
    dtypes = [setting.dtype] + ([torch.float16] if setting.device.type == "cuda" else [])
    for family in families:
        for dtype in dtypes:
            yield from _caught(family.__name__, family(setting, dtype))
    if setting.device.type == "cuda":
        for fp8 in (_attention_fp8, _qkv_prologue_fp8, _experts_fp8):
            yield from _caught(fp8.__name__, fp8(setting))


def _caught(name: str, checks: Iterator[Check]) -> Iterator[Check]:
    """Report a family that raises as a failed check, so that the other families still run."""
    try:
        yield from checks
    except Exception as error:  # a kernel may raise anything on a new device
        reason = (str(error).splitlines() or [""])[0][:120]
        yield Check(f"{name.strip('_')} did not run: {type(error).__name__}: {reason}", float("inf"), 0.0)


@contextmanager
def poisoned() -> Iterator[None]:
    """Make ``torch.empty`` fill its tensors, which all outputs are, with NaN or the largest integer."""
    empty = torch.empty

    def filled(*args: Any, **options: Any) -> torch.Tensor:
        made = empty(*args, **options)
        if made.dtype == FP8:
            made.view(torch.uint8).fill_(_FP8_NAN)
        elif made.is_floating_point():
            made.fill_(float("nan"))
        else:
            made.fill_(torch.iinfo(made.dtype).max)
        return made

    with patch.object(torch, "empty", filled):
        yield


def _check(name: str, dtype: torch.dtype, out: torch.Tensor, reference: torch.Tensor, growth: float) -> Check:
    # All arithmetic is fp32, so with fp32 outputs the error is that of its sums and exponentials.
    growth = max(growth, 16.0) if dtype == torch.float32 and growth else growth
    spelled = str(dtype).removeprefix("torch.")
    return Check(f"{name} {spelled}", relative_error(out, reference), growth * EPSILON[dtype])


def _spans(setting: Setting) -> tuple[list[list[tuple[int, int]]], int]:
    """Return segments of two rows, a first and a later chunk, with odd lengths and gaps, and the capacity."""
    preset = setting.preset
    tokens, cached = preset.noisy_tokens, preset.cached_tokens
    reference, sink = preset.reference_tokens, preset.sink_tokens
    chunk = (cached + 32, tokens)
    first = [(0, reference), (reference, 0), (reference + sink, 0), chunk]
    later = [(0, reference - 3), (reference + 16, sink - 19), (reference + sink, sink - 1), chunk]
    return [first, later], (cached + 32 + tokens + 15) // 16 * 16


def _attention(setting: Setting, dtype: torch.dtype) -> Iterator[Check]:
    preset, dit = setting.preset, setting.preset.dit
    for head_dim in (64, 128):
        draw = setting.random(head_dim)
        spans, capacity = _spans(setting)
        table = K.segment_table(spans, capacity, setting.device)
        q = draw(2, preset.noisy_tokens, dit.heads, head_dim, dtype=dtype)
        k, v = (draw(2, capacity, dit.heads // 2, head_dim, dtype=dtype) for _ in "kv")
        outside = ~slots_in_segments(table, capacity)
        k[outside], v[outside] = float("nan"), float("nan")
        with poisoned():
            out, lse = K.joint_attention(q, k, v, table, return_lse=True, backend=setting.ours)
        scale = head_dim**-0.5
        for row in range(2):
            one = slice(row, row + 1)
            expected, expected_lse = joint_attention_reference(
                q[one].double(), k[one].double(), v[one].double(), table[one], scale
            )
            name = f"attention d{head_dim} row {row}"
            yield _check(name, dtype, out[one], expected, 1.0)
            yield _check(f"{name} log-sum-exp", torch.float32, lse[one], expected_lse, 64.0)


def _attention_fp8(setting: Setting) -> Iterator[Check]:
    preset, dit = setting.preset, setting.preset.dit
    for head_dim in (64, 128):
        draw = setting.random(head_dim)
        spans, capacity = _spans(setting)
        table = K.segment_table(spans, capacity, setting.device, alignment=16)
        shapes = [(2, preset.noisy_tokens, dit.heads)] + 2 * [(2, capacity, dit.heads)]
        q8, k8, v8 = ((draw(*shape, head_dim).float() * 64).clamp(-448, 448).to(FP8) for shape in shapes)
        scale = torch.full((2, dit.heads), 1 / 64, device=setting.device)
        outside = ~slots_in_segments(table, capacity)
        for x in (k8, v8):
            x.view(torch.uint8)[outside] = _FP8_NAN
        exact = [(x.double() / 64) for x in (q8, k8, v8)]
        v8_t = v8.permute(0, 2, 3, 1).contiguous()
        with poisoned():
            out = K.joint_attention_fp8(q8, k8, v8_t, table, scale, scale, scale, backend="triton")
        for row in range(2):
            one = slice(row, row + 1)
            expected, _ = joint_attention_reference(*(x[one] for x in exact), table[one], head_dim**-0.5)
            # Each probability is rounded to e4m3, an error of at most half an epsilon.
            yield _check(f"attention d{head_dim} row {row}", FP8, out[one], expected, 0.5)


def _qkv_prologue_inputs(setting: Setting, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    preset, dit = setting.preset, setting.preset.dit
    draw = setting.random(2)
    tokens = preset.noisy_tokens
    generator = torch.Generator().manual_seed(2)
    positions = torch.rand((tokens, 3), generator=generator, dtype=torch.float64) * 32 - 16
    cos, sin = (table.to(setting.device) for table in rope_tables(positions, dit.head_dim))
    # The first row uses the vector stores of aligned runs, the second the stores of runs with gaps.
    slots = K.slot_table([[(16, tokens)], [(11, tokens)]], tokens + 16, setting.device)
    slots[1, ::7] = -1
    norms = draw(dit.head_dim, dtype=dtype), draw(dit.head_dim, dtype=dtype)
    return draw(2, tokens, 3 * dit.dim, dtype=dtype), *norms, cos, sin, slots


def _qkv_prologue(setting: Setting, dtype: torch.dtype) -> Iterator[Check]:
    dit, capacity = setting.preset.dit, setting.preset.noisy_tokens + 16
    given = _qkv_prologue_inputs(setting, dtype)
    shape = (2, capacity, dit.heads, dit.head_dim)
    caches = [torch.zeros(shape, dtype=dtype, device=setting.device) for _ in "kv"]
    wide = [cache.double() for cache in caches]
    with poisoned():
        q = K.qkv_prologue(*given, *caches, num_heads=dit.heads, backend=setting.ours)
    exact = [x.double() if x.is_floating_point() else x for x in given]
    expected = qkv_prologue_reference(QkvPrologueArgs(*exact, *wide, dit.heads))
    yield _check("qkv_prologue q", dtype, q, expected, 1.0)
    yield _check("qkv_prologue k", dtype, caches[0], wide[0], 1.0)
    yield _check("qkv_prologue v", dtype, caches[1], wide[1], 0.0)


def _qkv_prologue_fp8(setting: Setting) -> Iterator[Check]:
    dit = setting.preset.dit
    capacity = (setting.preset.noisy_tokens + 31) // 16 * 16
    given = _qkv_prologue_inputs(setting, torch.bfloat16)
    k8 = torch.zeros((2, capacity, dit.heads, dit.head_dim), device=setting.device).to(FP8)
    v8 = torch.zeros((2, dit.heads, dit.head_dim, capacity), device=setting.device).to(FP8)
    scale = torch.full((2, dit.heads), 1 / 64, device=setting.device)
    with poisoned():
        q8 = K.qkv_prologue_fp8(*given, k8, v8, scale, scale, scale, num_heads=dit.heads, backend="triton")
    wide = [torch.zeros((2, capacity, dit.heads, dit.head_dim), device=setting.device).double() for _ in "kv"]
    exact = [x.double() if x.is_floating_point() else x for x in given]
    q = qkv_prologue_reference(QkvPrologueArgs(*exact, *wide, dit.heads))
    yield _check("qkv_prologue q", FP8, q8.double() / 64, q, 0.5)
    yield _check("qkv_prologue k", FP8, k8.double() / 64, wide[0], 0.5)
    yield _check("qkv_prologue v", FP8, v8.double().permute(0, 3, 1, 2) / 64, wide[1], 0.5)


def _modulation(setting: Setting, dtype: torch.dtype) -> Iterator[Check]:
    dim, tokens = setting.preset.dit.dim, setting.preset.noisy_tokens
    draw = setting.random(3)
    x, branch = draw(2, tokens, dim, dtype=dtype), draw(2, tokens, dim, dtype=dtype)
    gate, scale, shift = draw(2, 3, 3, dim, dtype=dtype).unbind(2)
    index = torch.randint(0, 3, (2, tokens), dtype=torch.int32).to(setting.device)
    exact = [each.double() for each in (x, branch, gate, scale, shift)]
    for norm in ("rms", "layer"):
        with poisoned():
            residual, out = K.gated_norm_modulate(
                x, branch, gate, scale, shift, index, norm=norm, backend=setting.ours
            )
        expected = modulation_reference(ModulationArgs(*exact, index, norm))
        yield _check(f"modulation {norm} residual", dtype, residual, expected[0], 1.0)
        yield _check(f"modulation {norm}", dtype, out, expected[1], 1.0)
        with poisoned():
            values, token_scale = K.norm_modulate_fp8(x, scale, shift, index, norm=norm, backend=setting.ours)
        plain = modulation_reference(ModulationArgs(exact[0], None, None, *exact[3:], index, norm))
        yield _check(f"modulation {norm}", FP8, values.double() * token_scale[..., None], plain[1], 0.5)


def _expert_inputs(setting: Setting, dtype: torch.dtype) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    preset, dit = setting.preset, setting.preset.dit
    draw = setting.random(4)
    up: list[torch.Tensor] = [draw(1, preset.noisy_tokens, dit.dim, dtype=dtype)]
    down: list[torch.Tensor] = [
        draw(1, preset.video_tokens, dit.video_ffn, dtype=dtype),
        draw(1, preset.audio_tokens, dit.audio_ffn, dtype=dtype),
    ]
    for hidden in (dit.video_ffn, dit.audio_ffn):
        up += [draw(hidden, dit.dim, dtype=dtype) * dit.dim**-0.5, draw(hidden, dtype=dtype)]
        down += [draw(dit.dim, hidden, dtype=dtype) * hidden**-0.5, draw(dit.dim, dtype=dtype)]
    index = torch.randint(0, 3, (1, preset.noisy_tokens), dtype=torch.int32).to(setting.device)
    down += [draw(1, preset.noisy_tokens, dit.dim, dtype=dtype), draw(1, 3, dit.dim, dtype=dtype), index]
    return up, down


def _experts(setting: Setting, dtype: torch.dtype) -> Iterator[Check]:
    video = setting.preset.video_tokens
    up, down = _expert_inputs(setting, dtype)
    with poisoned():
        hidden = K.expert_up(*up, num_video=video, backend=setting.ours)
    expected = experts.expert_up_reference(ExpertArgs(up[0].double(), None, *up[1:], video))
    for name, out, reference in zip(("video", "audio"), hidden, expected, strict=True):
        yield _check(f"experts up {name}", dtype, out, reference, 1.0)
    with poisoned():
        out = K.expert_down(*down, backend=setting.ours)
    args = ExpertArgs(*down[:6], video, residual=down[6], gate=down[7], row_index=down[8])
    yield _check("experts down", dtype, out, experts.expert_down_reference(args, torch.float64), 1.0)


def _experts_fp8(setting: Setting) -> Iterator[Check]:
    video = setting.preset.video_tokens
    up, down = _expert_inputs(setting, torch.bfloat16)

    def quantized(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        values, scale = K.quantize_fp8(x if x.dim() == 3 else x[None])
        return (values, scale) if x.dim() == 3 else (values[0], scale[0])

    (x8, x_scale), (wv, sv), (wa, sa) = (quantized(up[index]) for index in (0, 1, 3))
    given = [x8, x_scale, wv, sv, up[2], wa, sa, up[4]]
    with poisoned():
        hidden = K.expert_up_fp8(*given, num_video=video, backend="triton")
    args = ExpertArgs(x8, None, wv, up[2], wa, up[4], video, x_scale, None, sv, sa)
    expected = experts.expert_up_reference(args, torch.float64)
    # The operands are exact here, so the error is the tensor core's narrow accumulation and one rounding.
    for name, out, reference in zip(("video", "audio"), hidden, expected, strict=True):
        yield _check(f"experts fp8 up {name}", torch.bfloat16, out, reference, 1.5)
    (hv, hsv), (ha, hsa), (wv, sv), (wa, sa) = (quantized(down[index]) for index in (0, 1, 2, 4))
    given = [hv, hsv, ha, hsa, wv, sv, down[3], wa, sa, down[5]]
    with poisoned():
        out = K.expert_down_fp8(*given, *down[6:], backend="triton")
    args = ExpertArgs(hv, ha, wv, down[3], wa, down[5], video, hsv, hsa, sv, sa, *down[6:])
    reference = experts.expert_down_reference(args, torch.float64)
    yield _check("experts fp8 down", torch.bfloat16, out, reference, 1.5)


def _sampler(setting: Setting, dtype: torch.dtype) -> Iterator[Check]:
    preset = setting.preset
    draw = setting.random(5)
    video = (2, preset.chunk.latent_frames, preset.picture.channels, *preset.picture.latent_size)
    audio = (2, preset.audio_tokens, preset.dit.audio_channels)
    x = [draw(*shape, dtype=torch.float32) for shape in (video, audio)]
    v = [draw(*shape, dtype=dtype) for shape in (video, audio)]
    sigmas = torch.tensor([*preset.sampler.sigmas, 0.0], device=setting.device)
    step = torch.tensor([0, preset.sampler.steps - 1], dtype=torch.int32, device=setting.device)
    seed = torch.tensor([7, 2**40], device=setting.device)
    chunk = torch.tensor([0, 10**6], device=setting.device)
    exact = [each.double() for each in (*x, *v)]
    expected = sampler_step_reference(SamplerArgs(*exact, sigmas, step, seed, chunk))
    K.sampler_step(*x, *v, sigmas, step, seed, chunk, backend=setting.ours)
    for name, out, reference in zip(("video", "audio"), x, expected, strict=True):
        # Box-Muller in fp32: a logarithm, a square root and a sine with an error of a few epsilons each.
        yield _check(
            f"sampler {name} of {str(dtype).removeprefix('torch.')} velocities,",
            torch.float32,
            out,
            reference,
            16.0,
        )


def _frames(setting: Setting, dtype: torch.dtype) -> Iterator[Check]:
    preset = setting.preset
    draw = setting.random(6)
    shape = (3, preset.frames, preset.picture.height, preset.picture.width)
    frames = draw(*shape, dtype=dtype).transpose(0, 1)
    with poisoned():
        made = K.pack_frames(frames, yuv=True, backend=setting.ours)
    for name, out, reference in zip(
        ("rgb", "yuv"),
        made,
        pack_frames_reference(frames.double(), yuv=True),
        strict=True,
    ):
        assert out is not None
        assert reference is not None
        wrong = (out.int() - reference.int()).abs()
        # Values near a half may round either way: a difference of one, in few values.
        worst = wrong.max().item() > 1 or wrong.count_nonzero().item() > 1e-3 * wrong.numel()
        yield Check(
            f"frames {name} {str(dtype).removeprefix('torch.')}",
            float("inf") if worst else wrong.float().mean().item(),
            1e-3,
        )
