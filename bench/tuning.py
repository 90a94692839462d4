"""Time the candidate tiles of the matrix kernels; the fastest ones are entered in ``configs.py``."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch

from bench.cases import Setting
from bench.timing import compare, input_sets
from streamchar import kernels as K
from streamchar.kernels._shared.compat import FP8
from streamchar.kernels._shared.configs import AttentionConfig, GemmConfig, gemm_config
from streamchar.kernels._shared.dispatch import Launch
from streamchar.kernels.attention import forward as attention
from streamchar.kernels.attention.arguments import AttentionArgs
from streamchar.kernels.experts import forward as experts
from streamchar.kernels.experts.arguments import ExpertArgs

#: Returns, for each candidate, its tile and either its median time or the reason why it failed.
Tuning = Callable[[], list[dict[str, Any]]]

ATTENTION_CANDIDATES = [
    AttentionConfig(block_m, block_n, tail_n=32, num_warps=num_warps, num_stages=num_stages)
    for block_m, block_n, num_warps, num_stages in (
        (128, 128, 8, 2),
        (128, 128, 8, 3),
        (128, 64, 8, 2),
        (128, 64, 8, 3),
        (128, 64, 8, 4),
        (128, 256, 8, 2),
        (64, 64, 4, 2),
        (64, 64, 4, 3),
        (64, 128, 4, 2),
        (64, 128, 4, 3),
    )
]
#: (block_m, block_n, block_k in bytes, num_warps, num_stages, blocks_per_sm)
GEMM_CANDIDATES = [
    (128, 256, 128, 8, 3, 1),
    (128, 256, 128, 8, 4, 1),
    (256, 128, 128, 8, 4, 1),
    (128, 128, 128, 8, 4, 1),
    (128, 128, 128, 8, 6, 1),
    (128, 128, 128, 4, 3, 2),
    (64, 256, 128, 4, 4, 1),
    (64, 128, 128, 4, 4, 2),
]


def all_tunings(setting: Setting) -> Iterator[tuple[str, Tuning]]:
    """Yield a name and a tuning for each matrix kernel at the preset's chunk."""
    preset, dit = setting.preset, setting.preset.dit
    q_len, kv_len = preset.noisy_tokens, preset.cached_tokens + preset.noisy_tokens
    for dtype in (torch.bfloat16, FP8):
        for head_dim in (128, 64):
            name = f"attention d{head_dim} {str(dtype).removeprefix('torch.')}"
            shape = (q_len, kv_len, dit.dim // head_dim, head_dim)
            yield name, partial(_attention, setting, dtype, *shape)
    for up in (True, False):
        for dtype in (torch.bfloat16, FP8):
            name = f"expert_{'up' if up else 'down'} {str(dtype).removeprefix('torch.')}"
            yield name, partial(_experts, setting, dtype, up)


def _attention(
    setting: Setting, dtype: torch.dtype, q_len: int, kv_len: int, heads: int, head_dim: int
) -> list[dict[str, Any]]:
    def launches(config: AttentionConfig, seed: int) -> Launch:
        draw = setting.random(seed)
        q, k, v = (draw(1, length, heads, head_dim).to(dtype) for length in (q_len, kv_len, kv_len))
        scale = torch.ones((1, heads), device=setting.device) if dtype == FP8 else None
        if dtype == FP8:
            v = v.permute(0, 2, 3, 1).contiguous()
        table = K.segment_table([[(0, kv_len)]], kv_len, setting.device)
        out = torch.empty((1, q_len, heads, head_dim), dtype=torch.bfloat16, device=setting.device)
        return attention.launch(AttentionArgs(q, k, v, table, None, scale, scale, scale, out), config)

    moved = 2.0 * (q_len + kv_len) * heads * head_dim * dtype.itemsize
    return _time(setting, ATTENTION_CANDIDATES, launches, moved)


def _experts(setting: Setting, dtype: torch.dtype, up: bool) -> list[dict[str, Any]]:
    preset, dit = setting.preset, setting.preset.dit
    video, tokens = preset.video_tokens, preset.noisy_tokens
    n, k = (dit.video_ffn, dit.dim) if up else (dit.dim, dit.video_ffn)
    default = gemm_config(dtype, video, n, k)
    candidates = [
        replace(
            default,
            block_m=block_m,
            block_n=block_n,
            block_k=block_k // dtype.itemsize,
            num_warps=num_warps,
            num_stages=num_stages,
            blocks_per_sm=blocks_per_sm,
            group_m=group_m,
        )
        for block_m, block_n, block_k, num_warps, num_stages, blocks_per_sm in GEMM_CANDIDATES
        for group_m in (8, 16)
    ]
    # Compiling for sm_90 cannot decide these two: both cost registers and hide an epilogue or a load.
    candidates += [replace(default, flatten=True), replace(default, split_epilogue=False)]

    def launches(config: GemmConfig, seed: int) -> Launch:
        draw = setting.random(seed)
        audio = tokens - video
        hidden = draw(1, video, dit.video_ffn).to(dtype), draw(1, audio, dit.audio_ffn).to(dtype)
        stream = draw(1, tokens, dit.dim).to(dtype)
        shapes = [(width, dit.dim) if up else (dit.dim, width) for width in (dit.video_ffn, dit.audio_ffn)]
        weights = [each for shape in shapes for each in (draw(*shape).to(dtype), draw(shape[0]))]
        scales: list[torch.Tensor | None] = [None] * 4
        if dtype == FP8:
            sizes = [tokens if up else video, audio, shapes[0][0], shapes[1][0]]
            scales = [torch.ones((1, size), device=setting.device) for size in sizes]
        if up:
            both = [torch.empty(each.shape, dtype=setting.dtype, device=setting.device) for each in hidden]
            args = ExpertArgs(stream, None, *weights, video, scales[0], None, *scales[2:])
            return experts.launch(args._replace(out_video=both[0], out_audio=both[1]), config)
        index = torch.zeros((1, tokens), dtype=torch.int32, device=setting.device)
        tail = draw(1, tokens, dit.dim), draw(1, 1, dit.dim), index
        out = torch.empty((1, tokens, dit.dim), dtype=setting.dtype, device=setting.device)
        return experts.launch(ExpertArgs(*hidden, *weights, video, *scales, *tail, out), config)

    moved = float(dit.dim * (dit.video_ffn + dit.audio_ffn) * dtype.itemsize)
    return _time(setting, candidates, launches, moved)


def _time(
    setting: Setting, candidates: Sequence[Any], launch: Callable[[Any, int], Launch], bytes_per_call: float
) -> list[dict[str, Any]]:
    sets = range(input_sets(bytes_per_call, setting.device))
    contenders, failures = {}, {}
    for index, config in enumerate(candidates):
        calls = [launch(config, seed).run for seed in sets]
        try:
            calls[0]()
            torch.cuda.synchronize(setting.device)
        except Exception as error:  # a tile that does not fit is reported as a failure
            failures[index] = f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"
            continue
        contenders[str(index)] = calls
    timings = compare(contenders, setting.device)
    return [
        {
            "config": asdict(config),
            "median_us": timings[str(index)].median_us if str(index) in timings else None,
            "failure": failures.get(index),
        }
        for index, config in enumerate(candidates)
    ]
