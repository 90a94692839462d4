"""The operations that are timed: inputs at a preset's shapes, ours, the peers, and what each must move.

A case builds one input set from a seed and returns its contenders as calls without arguments. The first
contender is ours; the others are peers that compute the same thing, which the runner checks.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from bench import eager, peers
from streamchar import kernels as K
from streamchar.config import Preset
from streamchar.kernels._compat import FP8
from streamchar.kernels.rope import audio_positions, rope_tables, video_positions
from streamchar.roofline import Unit

Call = Callable[[], Any]

#: Latent frames of a chunk in the paper, T.
PAPER_LATENT_FRAMES = 9


#: The contender that ``backend="auto"`` takes for an expert product in place of ours.
CUBLAS = "cuBLAS path"


@dataclass(frozen=True)
class Case:
    """One operation at one shape.

    Attributes:
        name: family, shape and dtype.
        family: kernel family.
        build: from a seed to contenders, ours first.
        flop: floating-point operations of a call.
        bytes: bytes that a call must move.
        unit: what does the arithmetic.
        comparable: whether all contenders return the same values to rounding; a noise draw does not.
        targets: for a peer's name the least ratio peer / ours that is aimed at.
        product: for expert products, what the table of measured choices is keyed by.
    """

    name: str
    family: str
    build: Callable[[int], dict[str, Call]]
    flop: float
    bytes: float
    unit: Unit = "fp32"
    comparable: bool = True
    targets: dict[str, float] = field(default_factory=dict)
    product: dict[str, Any] | None = None

    @property
    def least_share(self) -> float | None:
        """The least share of the measured copy bandwidth that a memory-bound pass aims at."""
        return 0.85 if self.unit == "fp32" else None


@dataclass(frozen=True)
class Setting:
    """Where and at what size the cases run.

    Attributes:
        preset: every size.
        device: where.
        dtype: of the activations; bf16 on a GPU.
        compiled: whether ``torch.compile`` peers are built.
    """

    preset: Preset
    device: torch.device
    dtype: torch.dtype
    compiled: bool

    @property
    def ours(self) -> K.Backend:
        """The backend that is timed as ours: the kernel on a GPU, the PyTorch path on a CPU."""
        return "triton" if self.device.type == "cuda" else "torch"

    def random(self, seed: int) -> Callable[..., torch.Tensor]:
        """Return a function drawing normal tensors on the device."""
        generator = torch.Generator(self.device).manual_seed(seed)

        def draw(*shape: int, dtype: torch.dtype | None = None) -> torch.Tensor:
            return torch.randn(shape, generator=generator, device=self.device).to(dtype or self.dtype)

        return draw

    def peers(self, function: Callable[..., Any]) -> dict[str, Callable[..., Any]]:
        """Return the function as it stands and, where asked for, compiled."""
        found = {"eager": function}
        if self.compiled:
            found["compiled"] = torch.compile(
                function, mode="max-autotune-no-cudagraphs", dynamic=False, fullgraph=True
            )
        return found


def all_cases(setting: Setting) -> Iterator[Case]:
    """Yield every case of every family, the most telling first."""
    yield from attention_cases(setting)
    yield from prologue_cases(setting)
    yield from modulation_cases(setting)
    yield from sampler_cases(setting)
    yield from egress_cases(setting)
    yield from expert_cases(setting)


def attention_cases(setting: Setting) -> Iterator[Case]:
    """Yield the chunk's attention, the first chunk's, the paper's chunk, and square anchors."""
    preset, dit = setting.preset, setting.preset.dit
    chunk, cached = preset.noisy_tokens, preset.cached_tokens
    nine = preset.with_latent_frames(PAPER_LATENT_FRAMES)
    lengths = {
        "chunk": (chunk, cached + chunk, dit.heads, dit.head_dim),
        "first chunk": (chunk, preset.reference_tokens + chunk, dit.heads, dit.head_dim),
        f"chunk of T = {PAPER_LATENT_FRAMES}": (
            nine.noisy_tokens,
            nine.cached_tokens + nine.noisy_tokens,
            dit.heads,
            dit.head_dim,
        ),
        "square": (2 * chunk, 2 * chunk, dit.heads, dit.head_dim),
        "chunk, other head_dim": (chunk, cached + chunk, dit.dim // 64, 64)
        if dit.head_dim == 128
        else (chunk, cached + chunk, max(dit.dim // 128, 1), 128),
    }
    for label, (q_len, kv_len, heads, head_dim) in lengths.items():
        yield _attention(setting, label, q_len, kv_len, heads, head_dim)
        if setting.device.type == "cuda":
            yield _attention_fp8(setting, label, q_len, kv_len, heads, head_dim)


def _attention(setting: Setting, label: str, q_len: int, kv_len: int, heads: int, head_dim: int) -> Case:
    rivals = peers.attention(setting.device, setting.compiled)

    def build(seed: int) -> dict[str, Call]:
        draw = setting.random(seed)
        q = draw(1, q_len, heads, head_dim)
        k, v = draw(1, kv_len, heads, head_dim), draw(1, kv_len, heads, head_dim)
        table = _segments(setting, kv_len)
        calls: dict[str, Call] = {
            "streamchar": lambda: K.joint_attention(q, k, v, table, backend=setting.ours)
        }
        return calls | {name: _bind(function, q, k, v) for name, function in rivals.items()}

    width = heads * head_dim * torch.empty(0, dtype=setting.dtype).element_size()
    return Case(
        f"attention {label} {q_len} x {kv_len}, {heads} x {head_dim}",
        "attention",
        build,
        flop=4.0 * q_len * kv_len * heads * head_dim,
        bytes=2.0 * (q_len + kv_len) * width,
        unit="bf16",
        targets=dict.fromkeys(rivals, 0.9),
    )


def _attention_fp8(setting: Setting, label: str, q_len: int, kv_len: int, heads: int, head_dim: int) -> Case:
    rivals = peers.attention(setting.device, setting.compiled)
    rivals_fp8 = peers.attention_fp8(setting.device)
    capacity = -(-kv_len // 16) * 16

    def build(seed: int) -> dict[str, Call]:
        draw = setting.random(seed)
        wide = [draw(1, length, heads, head_dim) for length in (q_len, capacity, capacity)]
        # Normal values reach past 5 about once in a tensor this large; 1/64 keeps them far from 448.
        q8, k8, v8 = ((x.float() * 64).clamp(-448, 448).to(FP8) for x in wide)
        v8_t = v8.permute(0, 2, 3, 1).contiguous()
        scale = torch.full((1, heads), 1 / 64, device=setting.device)
        table = _segments(setting, kv_len, alignment=16)
        calls: dict[str, Call] = {
            "streamchar": lambda: K.joint_attention_fp8(q8, k8, v8_t, table, scale, scale, scale)
        }
        q, k, v = (x[:, :length] for x, length in zip(wide, (q_len, kv_len, kv_len), strict=True))
        calls |= {name: _bind(function, q, k, v) for name, function in rivals.items()}
        eight = (q8, k8[:, :kv_len], v8[:, :kv_len], scale)
        return calls | {name: _bind(function, *eight) for name, function in rivals_fp8.items()}

    return Case(
        f"attention fp8 {label} {q_len} x {kv_len}, {heads} x {head_dim}",
        "attention",
        build,
        flop=4.0 * q_len * kv_len * heads * head_dim,
        bytes=(3.0 * q_len + 2.0 * kv_len) * heads * head_dim,
        unit="fp8",
        targets=dict.fromkeys(rivals, 1.0) | dict.fromkeys(rivals_fp8, 0.9),
    )


def _segments(setting: Setting, kv_len: int, alignment: int = 1) -> torch.Tensor:
    """Cut kv_len slots into the model's segments, short of what does not fit: the same work as one run."""
    preset = setting.preset
    spans, start = [], 0
    for length in (preset.reference_tokens, preset.sink_tokens, preset.motion_tokens):
        length = min(length, kv_len - start)
        spans.append((start, length))
        start += length
    spans.append((start, kv_len - start))
    return K.segment_table([spans], kv_len, setting.device, alignment=alignment)


def prologue_cases(setting: Setting) -> Iterator[Case]:
    """Yield the chunk's QKV prologue, in the activations' dtype and in fp8."""
    preset, dit = setting.preset, setting.preset.dit
    tokens, heads, head_dim = preset.noisy_tokens, dit.heads, dit.head_dim
    capacity = preset.cached_tokens + tokens
    rivals = setting.peers(eager.qkv_prologue)

    def inputs(seed: int) -> tuple[torch.Tensor, ...]:
        draw = setting.random(seed)
        rows, columns = (size // preset.picture.patch for size in preset.picture.latent_size)
        positions = torch.cat(
            [
                video_positions(preset.chunk.latent_frames, rows, columns),
                audio_positions(preset.audio_tokens, preset.picture.temporal_stride),
            ]
        )
        cos, sin = (table.to(setting.device) for table in rope_tables(positions, head_dim))
        slots = K.slot_table([[(preset.cached_tokens, tokens)]], capacity, setting.device)
        return draw(1, tokens, 3 * dit.dim), draw(head_dim), draw(head_dim), cos, sin, slots

    def build(seed: int) -> dict[str, Call]:
        given = inputs(seed)
        memory = setting.random(seed + 1)
        caches = [tuple(memory(1, capacity, heads, head_dim) for _ in "kv") for _ in range(1 + len(rivals))]
        calls: dict[str, Call] = {
            "streamchar": lambda: K.qkv_prologue(*given, *caches[0], num_heads=heads, backend=setting.ours)
        }
        for (name, function), cache in zip(rivals.items(), caches[1:], strict=True):
            calls[name] = _bind(function, *given, *cache, heads)
        return calls

    def build_fp8(seed: int) -> dict[str, Call]:
        given = inputs(seed)
        k8 = torch.zeros((1, capacity, heads, head_dim), device=setting.device).to(FP8)
        v8 = torch.zeros((1, heads, head_dim, capacity), device=setting.device).to(FP8)
        scale = torch.full((1, heads), 1 / 64, device=setting.device)
        return {
            "streamchar": lambda: K.qkv_prologue_fp8(
                *given, k8, v8, scale, scale, scale, num_heads=heads, backend=setting.ours
            )
        }

    elements = 3.0 * tokens * dit.dim
    size = torch.empty(0, dtype=setting.dtype).element_size()
    yield Case(
        f"prologue {tokens} tokens",
        "qkv",
        build,
        flop=8.0 * elements,
        bytes=2.0 * elements * size,
        targets={"compiled": 1.3},
    )
    yield Case(
        f"prologue fp8 {tokens} tokens",
        "qkv",
        build_fp8,
        flop=9.0 * elements,
        bytes=elements * (size + 1),
    )


def modulation_cases(setting: Setting) -> Iterator[Case]:
    """Yield the three forms of modulation that a block runs."""
    preset, dim = setting.preset, setting.preset.dit.dim
    tokens = preset.noisy_tokens
    elements = float(tokens * dim)
    size = torch.empty(0, dtype=setting.dtype).element_size()
    rivals, gated_rivals = setting.peers(eager.norm_modulate), setting.peers(eager.gated_norm_modulate)

    def inputs(seed: int) -> tuple[torch.Tensor, ...]:
        draw = setting.random(seed)
        gate, scale, shift = draw(1, 2, 3, dim).unbind(2)
        index = torch.zeros((1, tokens), dtype=torch.int32, device=setting.device)
        index[:, preset.video_tokens :] = 1
        return draw(1, tokens, dim), draw(1, tokens, dim), gate, scale, shift, index

    def build(seed: int) -> dict[str, Call]:
        x, _, _, scale, shift, index = inputs(seed)
        calls: dict[str, Call] = {
            "streamchar": lambda: K.norm_modulate(x, scale, shift, index, backend=setting.ours)
        }
        return calls | {name: _bind(function, x, scale, shift, index) for name, function in rivals.items()}

    def build_gated(seed: int) -> dict[str, Call]:
        given = inputs(seed)
        calls: dict[str, Call] = {"streamchar": lambda: K.gated_norm_modulate(*given, backend=setting.ours)}
        return calls | {name: _bind(function, *given) for name, function in gated_rivals.items()}

    def build_gated_fp8(seed: int) -> dict[str, Call]:
        given = inputs(seed)
        return {"streamchar": lambda: K.gated_norm_modulate_fp8(*given, backend=setting.ours)}

    target = {"compiled": 1.3}
    yield Case(
        f"modulation {tokens} x {dim}", "modulation", build, 8 * elements, 2 * elements * size, targets=target
    )
    yield Case(
        f"modulation gated {tokens} x {dim}",
        "modulation",
        build_gated,
        10 * elements,
        4 * elements * size,
        targets=target,
    )
    yield Case(
        f"modulation gated fp8 {tokens} x {dim}",
        "modulation",
        build_gated_fp8,
        12 * elements,
        elements * (3 * size + 1),
    )


def sampler_cases(setting: Setting) -> Iterator[Case]:
    """Yield one few-step update of both modalities."""
    preset = setting.preset
    video = (1, preset.chunk.latent_frames, preset.picture.channels, *preset.picture.latent_size)
    audio = (1, preset.audio_tokens, preset.dit.audio_channels)
    rivals = setting.peers(eager.sampler_step)
    size = torch.empty(0, dtype=setting.dtype).element_size()

    def build(seed: int) -> dict[str, Call]:
        draw = setting.random(seed)
        x = draw(*video, dtype=torch.float32), draw(*audio, dtype=torch.float32)
        v = draw(*video), draw(*audio)
        sigmas = torch.tensor([*preset.sampler.sigmas, 0.0], device=setting.device)
        step = torch.ones(1, dtype=torch.int32, device=setting.device)
        seeds = torch.full((1,), seed, dtype=torch.int64, device=setting.device)
        chunk = torch.zeros(1, dtype=torch.int64, device=setting.device)
        calls: dict[str, Call] = {
            "streamchar": lambda: K.sampler_step(*x, *v, sigmas, step, seeds, chunk, backend=setting.ours)
        }
        for name, function in rivals.items():
            calls[name] = _bind(function, *(each.clone() for each in x), *v, sigmas, step)
        return calls

    elements = float(torch.Size(video).numel() + torch.Size(audio).numel())
    yield Case(
        f"sampler {int(elements)} latents",
        "sampler",
        build,
        flop=60 * elements,
        bytes=elements * (8 + size),
        comparable=False,
        targets={"compiled": 1.3},
    )


def egress_cases(setting: Setting) -> Iterator[Case]:
    """Yield the bytes of a chunk's frames, as RGB and as planar YUV."""
    preset = setting.preset
    frames, height, width = preset.frames, preset.picture.height, preset.picture.width
    pixels = float(frames * height * width)
    size = torch.empty(0, dtype=setting.dtype).element_size()

    def case(form: str, peer: Callable[..., torch.Tensor], written: float, flop: float) -> Case:
        rivals = setting.peers(peer)
        kept = 0 if form == "rgb" else 1

        def build(seed: int) -> dict[str, Call]:
            x = setting.random(seed)(3, frames, height, width).clamp(-1, 1).transpose(0, 1)
            calls: dict[str, Call] = {
                "streamchar": lambda: K.egress(x, rgb=form == "rgb", yuv=form == "yuv", backend=setting.ours)[
                    kept
                ]
            }
            return calls | {name: _bind(function, x) for name, function in rivals.items()}

        return Case(
            f"egress {form} {frames} x {height} x {width}",
            "egress",
            build,
            flop=flop * pixels,
            bytes=(3 * size + written) * pixels,
            targets={"compiled": 1.0},
        )

    yield case("rgb", eager.egress_rgb, 3.0, 12)
    yield case("yuv", eager.egress_yuv, 1.5, 20)


def expert_cases(setting: Setting) -> Iterator[Case]:
    """Yield both products of the modality experts, in the activations' dtype and in fp8."""
    preset, dit = setting.preset, setting.preset.dit
    tokens, video, dim = preset.noisy_tokens, preset.video_tokens, dit.dim
    audio = tokens - video
    dtypes = [setting.dtype] + ([FP8] if setting.device.type == "cuda" else [])

    def weights(draw: Callable[..., torch.Tensor], up: bool) -> list[torch.Tensor]:
        made = []
        for hidden in (dit.video_ffn, dit.audio_ffn):
            shape = (hidden, dim) if up else (dim, hidden)
            made += [draw(*shape) * shape[1] ** -0.5, draw(shape[0])]
        return made

    def tail(draw: Callable[..., torch.Tensor]) -> tuple[torch.Tensor, ...]:
        index = torch.zeros((1, tokens), dtype=torch.int32, device=setting.device)
        index[:, video:] = 1
        return draw(1, tokens, dim), draw(1, 2, dim), index

    up_rivals, down_rivals = setting.peers(eager.expert_up), setting.peers(eager.expert_down)

    def build_up(seed: int) -> dict[str, Call]:
        draw = setting.random(seed)
        x, w = draw(1, tokens, dim), weights(draw, up=True)
        calls: dict[str, Call] = {
            "streamchar": lambda: K.expert_up(x, *w, num_video=video, backend=setting.ours)
        }
        if setting.device.type == "cuda":
            calls[CUBLAS] = lambda: K.expert_up(x, *w, num_video=video, backend="torch")
        return calls | {name: _bind(function, x, *w, video) for name, function in up_rivals.items()}

    def build_down(seed: int) -> dict[str, Call]:
        draw = setting.random(seed)
        h = draw(1, video, dit.video_ffn), draw(1, audio, dit.audio_ffn)
        given = (*h, *weights(draw, up=False), *tail(draw))
        # As the model's modulation gives it.
        ours = (*given[:-2], given[-2].float(), given[-1])
        calls: dict[str, Call] = {"streamchar": lambda: K.expert_down(*ours, backend=setting.ours)}
        if setting.device.type == "cuda":
            calls[CUBLAS] = lambda: K.expert_down(*ours, backend="torch")
        return calls | {name: _bind(function, *given) for name, function in down_rivals.items()}

    def quantized(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return K.quantize_fp8(x if x.dim() == 3 else x[None])

    def weights_fp8(draw: Callable[..., torch.Tensor], up: bool) -> list[torch.Tensor]:
        made = []
        w_video, b_video, w_audio, b_audio = weights(draw, up)
        for w, b in ((w_video, b_video), (w_audio, b_audio)):
            values, scale = quantized(w)
            made += [values[0], scale[0], b]
        return made

    def build_up_fp8(seed: int) -> dict[str, Call]:
        draw = setting.random(seed)
        given = (*quantized(draw(1, tokens, dim)), *weights_fp8(draw, up=True))
        return {
            "streamchar": lambda: K.expert_up_fp8(*given, num_video=video, backend="triton"),
            CUBLAS: lambda: K.expert_up_fp8(*given, num_video=video, backend="torch"),
        }

    def build_down_fp8(seed: int) -> dict[str, Call]:
        draw = setting.random(seed)
        h = (*quantized(draw(1, video, dit.video_ffn)), *quantized(draw(1, audio, dit.audio_ffn)))
        given = (*h, *weights_fp8(draw, up=False), *tail(draw))
        return {
            "streamchar": lambda: K.expert_down_fp8(*given, backend="triton"),
            CUBLAS: lambda: K.expert_down_fp8(*given, backend="torch"),
        }

    for dtype in dtypes:
        size = torch.empty(0, dtype=dtype).element_size()
        name = "fp8 " if dtype == FP8 else ""
        weight_count = dim * (dit.video_ffn + dit.audio_ffn)
        hidden_count = video * dit.video_ffn + audio * dit.audio_ffn
        flop = 2.0 * dim * hidden_count
        for op, build in (
            ("expert_up", build_up_fp8 if dtype == FP8 else build_up),
            ("expert_down", build_down_fp8 if dtype == FP8 else build_down),
        ):
            up = op == "expert_up"
            streams = tokens * dim * size + hidden_count * setting.dtype.itemsize
            if not up:
                streams = hidden_count * size + 2 * tokens * dim * setting.dtype.itemsize
            yield Case(
                f"{op} {name}{video} + {audio} tokens",
                "experts",
                build,
                flop=flop,
                bytes=float(weight_count * size + streams),
                unit="fp8" if dtype == FP8 else "bf16",
                product={
                    "op": op,
                    "dtype": dtype,
                    "m_video": video,
                    "m_audio": audio,
                    "n": dit.video_ffn if up else dim,
                    "k": dim if up else dit.video_ffn,
                },
            )


def _bind(function: Callable[..., Any], *arguments: Any) -> Call:
    return lambda: function(*arguments)
