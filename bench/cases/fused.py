"""Cases of the memory-bound fused passes: QKV prologue, modulation, sampler, frames."""

from collections.abc import Callable, Iterator

import torch

from bench import eager
from bench.cases.base import Call, Case, Setting, bind
from streamchar import kernels as K
from streamchar.kernels._shared.compat import FP8
from streamchar.kernels._shared.rope import audio_positions, rope_tables, video_positions


def qkv_prologue_cases(setting: Setting) -> Iterator[Case]:
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
        draw = setting.random(seed + 1)
        caches = [tuple(draw(1, capacity, heads, head_dim) for _ in "kv") for _ in range(1 + len(rivals))]
        calls: dict[str, Call] = {
            "streamchar": lambda: K.qkv_prologue(*given, *caches[0], num_heads=heads, backend=setting.ours)
        }
        for (name, function), cache in zip(rivals.items(), caches[1:], strict=True):
            qkv, *weights, slots = given
            calls[name] = bind(function, qkv, tuple(weights[:2]), tuple(weights[2:]), slots, cache, heads)
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
        f"qkv_prologue {tokens} tokens",
        "qkv_prologue",
        build,
        flop=8.0 * elements,
        bytes=2.0 * elements * size,
        targets={"compiled": 1.3},
    )
    yield Case(
        f"qkv_prologue fp8 {tokens} tokens",
        "qkv_prologue",
        build_fp8,
        flop=9.0 * elements,
        bytes=elements * (size + 1),
    )


def modulation_cases(setting: Setting) -> Iterator[Case]:
    """Yield the three variants of modulation that a block runs."""
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
        return calls | {name: bind(function, x, scale, shift, index) for name, function in rivals.items()}

    def build_gated(seed: int) -> dict[str, Call]:
        given = inputs(seed)
        calls: dict[str, Call] = {"streamchar": lambda: K.gated_norm_modulate(*given, backend=setting.ours)}
        x, branch, *modulation, index = given
        peer = (x, branch, tuple(modulation), index)
        return calls | {name: bind(function, *peer) for name, function in gated_rivals.items()}

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
    """Yield one sampler update of both modalities."""
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
            calls[name] = bind(function, tuple(each.clone() for each in x), v, sigmas, step)
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


def frames_cases(setting: Setting) -> Iterator[Case]:
    """Yield the conversion of a chunk's frames to bytes, as RGB and as planar YUV."""
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
                "streamchar": lambda: K.pack_frames(
                    x, rgb=form == "rgb", yuv=form == "yuv", backend=setting.ours
                )[kept]
            }
            return calls | {name: bind(function, x) for name, function in rivals.items()}

        return Case(
            f"frames {form} {frames} x {height} x {width}",
            "frames",
            build,
            flop=flop * pixels,
            bytes=(3 * size + written) * pixels,
            targets={"compiled": 1.0},
        )

    yield case("rgb", eager.frames_rgb, 3.0, 12)
    yield case("yuv", eager.frames_yuv, 1.5, 20)
