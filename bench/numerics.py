"""Every kernel family against float64 on the device it is timed on, at the preset's own sizes.

The interpreter proves the arithmetic on a CPU; this proves the compiled code: bf16 and fp8 matrix
instructions, tensor copies, vector stores. Outputs are overwritten with NaN first, and KV slots outside the
segments hold NaN.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any
from unittest.mock import patch

import torch

from bench.cases import Setting
from streamchar import kernels as K
from streamchar.kernels import attention_torch, experts, experts_fp8, modulation, qkv_torch, sampler
from streamchar.kernels._compat import FP8
from streamchar.kernels.egress import egress_reference
from streamchar.kernels.rope import rope_tables
from streamchar.numerics import EPSILON, relative_error

#: Byte of an e4m3 that is no number.
_FP8_NAN = 0x7F


@dataclass(frozen=True)
class Check:
    """One comparison with float64.

    Attributes:
        name: family and variant.
        error: ``||out - reference|| / ||reference||``; infinite for a NaN.
        bound: the largest error that the dtype's rounding explains.
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
    """Yield the comparison of every family; 16-bit dtypes, and fp8 on a GPU."""
    families: list[Callable[[Setting, torch.dtype], Iterator[Check]]] = [
        _attention,
        _prologue,
        _modulation,
        _experts,
        _sampler,
        _egress,
    ]
    dtypes = [setting.dtype] + ([torch.float16] if setting.device.type == "cuda" else [])
    for family in families:
        for dtype in dtypes:
            yield from _surviving(family.__name__, family(setting, dtype))
    if setting.device.type == "cuda":
        for fp8 in (_attention_fp8, _prologue_fp8, _experts_fp8):
            yield from _surviving(fp8.__name__, fp8(setting))


def _surviving(name: str, checks: Iterator[Check]) -> Iterator[Check]:
    """Turn the failure of a family to run into a failed check, so that the others still have their turn."""
    try:
        yield from checks
    except Exception as error:  # whatever a kernel does on its first day on a device
        reason = (str(error).splitlines() or [""])[0][:120]
        yield Check(f"{name.strip('_')} did not run: {type(error).__name__}: {reason}", float("inf"), 0.0)


@contextmanager
def poisoned() -> Iterator[None]:
    """Fill with NaN, or the largest integer, what is allocated and not initialised: every output."""
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
    # Arithmetic is fp32 throughout: with results in fp32 its own sums and exponents are what is seen.
    growth = max(growth, 16.0) if dtype == torch.float32 and growth else growth
    spelled = str(dtype).removeprefix("torch.")
    return Check(f"{name} {spelled}", relative_error(out, reference), growth * EPSILON[dtype])


def _spans(setting: Setting) -> tuple[list[list[tuple[int, int]]], int]:
    """Two batch rows, a first chunk and a later one, with odd lengths and unused slots between segments."""
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
        outside = ~attention_torch.slots_in_segments(table, capacity)
        k[outside], v[outside] = float("nan"), float("nan")
        with poisoned():
            out, lse = K.joint_attention(q, k, v, table, return_lse=True, backend=setting.ours)
        scale = head_dim**-0.5
        for row in range(2):
            one = slice(row, row + 1)
            expected, expected_lse = attention_torch.joint_attention_reference(
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
        outside = ~attention_torch.slots_in_segments(table, capacity)
        for x in (k8, v8):
            x.view(torch.uint8)[outside] = _FP8_NAN
        exact = [(x.double() / 64) for x in (q8, k8, v8)]
        v8_t = v8.permute(0, 2, 3, 1).contiguous()
        with poisoned():
            out = K.joint_attention_fp8(q8, k8, v8_t, table, scale, scale, scale, backend="triton")
        for row in range(2):
            one = slice(row, row + 1)
            expected, _ = attention_torch.joint_attention_reference(
                *(x[one] for x in exact), table[one], head_dim**-0.5
            )
            # Each probability is rounded to e4m3, half an epsilon at most, one sign or the other.
            yield _check(f"attention d{head_dim} row {row}", FP8, out[one], expected, 0.5)


def _prologue_inputs(setting: Setting, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    preset, dit = setting.preset, setting.preset.dit
    draw = setting.random(2)
    tokens = preset.noisy_tokens
    generator = torch.Generator().manual_seed(2)
    positions = torch.rand((tokens, 3), generator=generator, dtype=torch.float64) * 32 - 16
    cos, sin = (table.to(setting.device) for table in rope_tables(positions, dit.head_dim))
    # The first row takes the vector stores of aligned runs, the second what runs with gaps take.
    slots = K.slot_table([[(16, tokens)], [(11, tokens)]], tokens + 16, setting.device)
    slots[1, ::7] = -1
    norms = draw(dit.head_dim, dtype=dtype), draw(dit.head_dim, dtype=dtype)
    return draw(2, tokens, 3 * dit.dim, dtype=dtype), *norms, cos, sin, slots


def _prologue(setting: Setting, dtype: torch.dtype) -> Iterator[Check]:
    dit, capacity = setting.preset.dit, setting.preset.noisy_tokens + 16
    given = _prologue_inputs(setting, dtype)
    shape = (2, capacity, dit.heads, dit.head_dim)
    caches = [torch.zeros(shape, dtype=dtype, device=setting.device) for _ in "kv"]
    wide = [cache.double() for cache in caches]
    with poisoned():
        q = K.qkv_prologue(*given, *caches, num_heads=dit.heads, backend=setting.ours)
    exact = [x.double() if x.is_floating_point() else x for x in given]
    expected = qkv_torch.qkv_prologue_reference(*exact, *wide, num_heads=dit.heads)
    yield _check("prologue q", dtype, q, expected, 1.0)
    yield _check("prologue k", dtype, caches[0], wide[0], 1.0)
    yield _check("prologue v", dtype, caches[1], wide[1], 0.0)


def _prologue_fp8(setting: Setting) -> Iterator[Check]:
    dit = setting.preset.dit
    capacity = (setting.preset.noisy_tokens + 31) // 16 * 16
    given = _prologue_inputs(setting, torch.bfloat16)
    k8 = torch.zeros((2, capacity, dit.heads, dit.head_dim), device=setting.device).to(FP8)
    v8 = torch.zeros((2, dit.heads, dit.head_dim, capacity), device=setting.device).to(FP8)
    scale = torch.full((2, dit.heads), 1 / 64, device=setting.device)
    with poisoned():
        q8 = K.qkv_prologue_fp8(*given, k8, v8, scale, scale, scale, num_heads=dit.heads, backend="triton")
    wide = [torch.zeros((2, capacity, dit.heads, dit.head_dim), device=setting.device).double() for _ in "kv"]
    exact = [x.double() if x.is_floating_point() else x for x in given]
    q = qkv_torch.qkv_prologue_reference(*exact, *wide, num_heads=dit.heads)
    yield _check("prologue q", FP8, q8.double() / 64, q, 0.5)
    yield _check("prologue k", FP8, k8.double() / 64, wide[0], 0.5)
    yield _check("prologue v", FP8, v8.double().permute(0, 3, 1, 2) / 64, wide[1], 0.5)


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
        expected = modulation.modulation_reference(*exact, index, norm=norm)
        yield _check(f"modulation {norm} residual", dtype, residual, expected[0], 1.0)
        yield _check(f"modulation {norm}", dtype, out, expected[1], 1.0)
        with poisoned():
            values, token_scale = K.norm_modulate_fp8(x, scale, shift, index, norm=norm, backend=setting.ours)
        plain = modulation.modulation_reference(
            exact[0], scale=exact[3], shift=exact[4], row_index=index, norm=norm
        )
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
    expected = experts.expert_up_reference(*(x.double() for x in up), num_video=video)
    for name, out, reference in zip(("video", "audio"), hidden, expected, strict=True):
        yield _check(f"experts up {name}", dtype, out, reference, 1.0)
    with poisoned():
        out = K.expert_down(*down, backend=setting.ours)
    exact = [x.double() if x.is_floating_point() else x for x in down]
    yield _check("experts down", dtype, out, experts.expert_down_reference(*exact), 1.0)


def _experts_fp8(setting: Setting) -> Iterator[Check]:
    video = setting.preset.video_tokens
    up, down = _expert_inputs(setting, torch.bfloat16)

    def quantized(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        values, scale = K.quantize_fp8(x if x.dim() == 3 else x[None])
        return (values, scale) if x.dim() == 3 else (values[0], scale[0])

    given = [*quantized(up[0]), *quantized(up[1]), up[2], *quantized(up[3]), up[4]]
    with poisoned():
        hidden = K.expert_up_fp8(*given, num_video=video, backend="triton")
    expected = experts_fp8.expert_up_fp8_reference(*given, num_video=video, dtype=torch.float64)
    # The operands are exact here: what is left is the tensor core's narrow sums and one rounding.
    for name, out, reference in zip(("video", "audio"), hidden, expected, strict=True):
        yield _check(f"experts fp8 up {name}", torch.bfloat16, out, reference, 1.5)
    given = [*quantized(down[0]), *quantized(down[1])]
    for w, b in (down[2:4], down[4:6]):
        given += [*quantized(w), b]
    with poisoned():
        out = K.expert_down_fp8(*given, *down[6:], backend="triton")
    reference = experts_fp8.expert_down_fp8_reference(*given, *down[6:], dtype=torch.float64)
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
    expected = sampler.sampler_step_reference(*exact, sigmas, step, seed, chunk)
    K.sampler_step(*x, *v, sigmas, step, seed, chunk, backend=setting.ours)
    for name, out, reference in zip(("video", "audio"), x, expected, strict=True):
        # Box-Muller in fp32: a logarithm, a root and a sine of a few epsilons each.
        yield _check(
            f"sampler {name} of {str(dtype).removeprefix('torch.')} velocities,",
            torch.float32,
            out,
            reference,
            16.0,
        )


def _egress(setting: Setting, dtype: torch.dtype) -> Iterator[Check]:
    preset = setting.preset
    draw = setting.random(6)
    shape = (3, preset.frames, preset.picture.height, preset.picture.width)
    frames = draw(*shape, dtype=dtype).transpose(0, 1)
    with poisoned():
        made = K.egress(frames, yuv=True, backend=setting.ours)
    for name, out, reference in zip(
        ("rgb", "yuv"),
        made,
        egress_reference(frames.double(), yuv=True),
        strict=True,
    ):
        assert out is not None
        assert reference is not None
        wrong = (out.int() - reference.int()).abs()
        # Values that lie on a half may round either way: off by one, and seldom.
        worst = wrong.max().item() > 1 or wrong.count_nonzero().item() > 1e-3 * wrong.numel()
        yield Check(
            f"egress {name} {str(dtype).removeprefix('torch.')}",
            float("inf") if worst else wrong.float().mean().item(),
            1e-3,
        )
