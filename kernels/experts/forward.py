"""The FFN of two modality experts as a grouped GEMM: one persistent launch up, one down.

Tokens [0, num_video) of every batch row belong to the video expert and the others to the audio expert. Each
expert has its own weights and its own hidden width. Fused into the products: bias and GELU going up, bias and
gated residual going down, and for fp8 operands the scales of token and channel.

One program per SM walks the tiles of the video expert and then, in the same numbering, those of the audio
expert, so that the few audio tiles run on SMs that the last wave of video tiles leaves idle. Operands are
loaded through tensor descriptors (TMA), which also fill reads past an edge with zeros.

For M tokens, width d and hidden width F a product moves (M d + F d + M F) elements and does 2 M F d FLOP:
1.8e11 FLOP over 0.16 GB for 2048 x 3072 x 14336 in bf16, compute-bound. In a launch of their own, the 32
audio tokens would take 8e8 FLOP, bound by the 25 MB of their weights.
"""

from typing import Any

import torch

from .._shared.checks import require_aligned
from .._shared.compat import FP8, INTERPRETED, TensorDescriptor, tl, triton
from .._shared.configs import HOPPER_SMS, GemmConfig, gemm_config
from .._shared.dispatch import Launch
from .._shared.math import gelu_tanh
from .arguments import ExpertArgs

#: Few programs, so that each also walks several tiles in the interpreter.
_INTERPRETED_SMS = 3


@triton.jit
def _experts_kernel(
    out_video_ptr,
    out_audio_ptr,
    a_video_desc,
    a_audio_desc,
    w_video_desc,
    w_audio_desc,
    bias_video_ptr,
    bias_audio_ptr,
    a_scale_video_ptr,
    a_scale_audio_ptr,
    w_scale_video_ptr,
    w_scale_audio_ptr,
    residual_ptr,
    gate_ptr,
    row_index_ptr,
    batch,
    num_video,
    num_audio,
    n_video,
    n_audio,
    k_video,
    k_audio,
    num_gate_rows,
    gate_stride_b,
    gate_stride_r,
    UP: tl.constexpr,
    FP8: tl.constexpr,
    PROMOTE: tl.constexpr,
    UPCAST: tl.constexpr,
    SPLIT: tl.constexpr,
    FLATTEN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
):
    num_programs = tl.num_programs(0)
    tokens = num_video + num_audio
    first = tl.program_id(0)
    for expert in tl.static_range(2):
        out_ptr = (out_video_ptr, out_audio_ptr)[expert]
        a_desc = (a_video_desc, a_audio_desc)[expert]
        w_desc = (w_video_desc, w_audio_desc)[expert]
        bias_ptr = (bias_video_ptr, bias_audio_ptr)[expert]
        rows = (num_video, num_audio)[expert]
        n = (n_video, n_audio)[expert]
        k = (k_video, k_audio)[expert]
        # One side of the product is the joint sequence, in which audio follows video. The other side is the
        # expert's own tensor: the output going up, the input going down.
        start = (0, num_video)[expert]
        a_tokens, a_start = (tokens, start) if UP else (rows, 0)
        out_tokens, out_start = (rows, 0) if UP else (tokens, start)

        row_tiles = tl.cdiv(rows, BLOCK_M)
        tiles_m = batch * row_tiles
        tiles_n = tl.cdiv(n, BLOCK_N)
        num_tiles = tiles_m * tiles_n
        group_tiles = GROUP_M * tiles_n
        for tile in tl.range(first, num_tiles, num_programs, flatten=FLATTEN):
            # GROUP_M tiles down before the next column: programs in flight then share both operands in L2.
            group_m = (tile // group_tiles) * GROUP_M
            group_height = tl.minimum(tiles_m - group_m, GROUP_M)
            tile_m = group_m + (tile % group_tiles) % group_height
            col = (tile % group_tiles) // group_height * BLOCK_N
            b = tile_m // row_tiles
            row = (tile_m % row_tiles) * BLOCK_M
            a_row = b * a_tokens + a_start + row

            # The last tile of an expert also reads the rows after it. No stored row depends on them.
            acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
            for step in tl.range(tl.cdiv(k, BLOCK_K)):
                a = a_desc.load([a_row, step * BLOCK_K])
                w = w_desc.load([col, step * BLOCK_K])
                if UPCAST:
                    acc += tl.dot(a.to(tl.float32), w.to(tl.float32).T, input_precision="ieee")
                elif PROMOTE:
                    # max_num_imprecise_acc would do the same, but ptxas then serialises the matrix
                    # instructions (its note C7514).
                    acc += tl.dot(a, w.T)
                else:
                    acc = tl.dot(a, w.T, acc, input_precision="ieee")

            tile_rows = row + tl.arange(0, BLOCK_M)
            row_mask = tile_rows < rows
            token = (b * out_tokens + out_start + tile_rows).to(tl.int64)
            parts = (acc,)
            if SPLIT:
                parts = acc.reshape(BLOCK_M, 2, BLOCK_N // 2).permute(0, 2, 1).split()
            for part in tl.static_range(2 if SPLIT else 1):
                y = parts[part]
                cols = col + part * (BLOCK_N // 2) + tl.arange(0, y.shape[1])
                col_mask = cols < n
                if FP8:
                    a_scale_ptr = (a_scale_video_ptr, a_scale_audio_ptr)[expert]
                    w_scale_ptr = (w_scale_video_ptr, w_scale_audio_ptr)[expert]
                    a_scale = tl.load(a_scale_ptr + a_row + tl.arange(0, BLOCK_M), mask=row_mask, other=0.0)
                    w_scale = tl.load(w_scale_ptr + cols, mask=col_mask, other=0.0)
                    y = y * a_scale[:, None] * w_scale[None, :]
                y += tl.load(bias_ptr + cols, mask=col_mask, other=0.0).to(tl.float32)[None, :]
                offsets = token[:, None] * n + cols[None, :]
                mask = row_mask[:, None] & col_mask[None, :]
                if UP:
                    y = gelu_tanh(y)
                else:
                    gate_row = tl.load(row_index_ptr + token, mask=row_mask, other=0)
                    gate_row = tl.minimum(tl.maximum(gate_row, 0), num_gate_rows - 1).to(tl.int64)
                    gate_rows = gate_ptr + b.to(tl.int64) * gate_stride_b + gate_row * gate_stride_r
                    gate = tl.load(gate_rows[:, None] + cols[None, :], mask=mask, other=0.0)
                    residual = tl.load(residual_ptr + offsets, mask=mask, other=0.0)
                    y = residual.to(tl.float32) + gate.to(tl.float32) * y
                tl.store(out_ptr + offsets, y.to(out_ptr.dtype.element_ty), mask=mask)
        # Continue the numbering for the next expert, so that it starts on the programs that are free first.
        first += tl.cdiv(tl.maximum(num_tiles - first, 0), num_programs) * num_programs - num_tiles


def launch(args: ExpertArgs, config: GemmConfig | None = None) -> Launch:
    """Build the launch of a projection: up where ``args.a_audio`` is None, else down."""
    up, num_video, gate = args.a_audio is None, args.num_video, args.gate
    # The joint sequence is one tensor for both experts: the input going up, the output going down.
    a_video, a_audio = args.a_video, args.a_video if args.a_audio is None else args.a_audio
    out_audio = args.out_video if args.out_audio is None else args.out_audio
    batch, num_audio = a_audio.shape[0], a_audio.shape[1] - (num_video if up else 0)
    device, dtype = args.w_video.device, args.w_video.dtype
    num_sms = _INTERPRETED_SMS if device.type == "cpu" else HOPPER_SMS
    if device.type == "cuda":
        num_sms = torch.cuda.get_device_properties(device).multi_processor_count
    (n_video, k_video), (n_audio, k_audio) = args.w_video.shape, args.w_audio.shape
    if config is None:
        config = gemm_config(dtype, batch * num_video, n_video, k_video, num_sms)

    def described(name: str, tensor: torch.Tensor, rows: int) -> Any:
        require_aligned(name, tensor)
        return TensorDescriptor.from_tensor(tensor.reshape(-1, tensor.shape[-1]), [rows, config.block_k])

    # An expert without tokens has no operand to describe. Its loop takes no step, so any descriptor works.
    a_video, a_audio = (a_video if num_video else a_audio), (a_audio if num_audio else a_video)
    kernel_args = {
        "out_video_ptr": args.out_video,
        "out_audio_ptr": out_audio,
        "a_video_desc": described("x" if up else "h_video", a_video, config.block_m),
        "a_audio_desc": described("x" if up else "h_audio", a_audio, config.block_m),
        "w_video_desc": described("w_video", args.w_video, config.block_n),
        "w_audio_desc": described("w_audio", args.w_audio, config.block_n),
        "bias_video_ptr": args.b_video,
        "bias_audio_ptr": args.b_audio,
        "a_scale_video_ptr": args.a_scale_video,
        "a_scale_audio_ptr": args.a_scale_video if up else args.a_scale_audio,
        "w_scale_video_ptr": args.w_scale_video,
        "w_scale_audio_ptr": args.w_scale_audio,
        "residual_ptr": args.residual,
        "gate_ptr": gate,
        "row_index_ptr": args.row_index,
        "batch": batch,
        "num_video": num_video,
        "num_audio": num_audio,
        "n_video": n_video,
        "n_audio": n_audio,
        "k_video": k_video,
        "k_audio": k_audio,
        "num_gate_rows": gate.shape[1] if gate is not None else 0,
        "gate_stride_b": gate.stride(0) if gate is not None else 0,
        "gate_stride_r": gate.stride(1) if gate is not None else 0,
        "UP": up,
        "FP8": dtype == FP8,
        "PROMOTE": config.promote,
        "UPCAST": INTERPRETED and dtype != torch.float32,
        "SPLIT": config.split_epilogue,
        "FLATTEN": config.flatten,
        "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n,
        "BLOCK_K": config.block_k,
        "GROUP_M": config.group_m,
    }
    tiles = batch * (config.tiles(num_video, n_video) + config.tiles(num_audio, n_audio))
    grid = (min(num_sms * config.blocks_per_sm, tiles),)
    return Launch(_experts_kernel, grid, kernel_args, config.num_warps, config.num_stages, device=device)


def shipped() -> dict[str, Launch]:
    """Return the launches that the codegen gate compiles, on meta tensors of the ``5b`` preset's shapes."""
    launches, dim, (wide, narrow) = {}, 3072, (14336, 4096)
    for label, dtype, out_dtype in (
        ("bf16", torch.bfloat16, torch.bfloat16),
        ("fp16", torch.float16, torch.float16),
        ("fp8", FP8, torch.bfloat16),
    ):
        w_up, w_down = _meta(dtype, wide, dim), _meta(dtype, dim, wide)
        up = (w_up, _meta(out_dtype, wide), _meta(dtype, narrow, dim), _meta(out_dtype, narrow))
        down = (w_down, _meta(out_dtype, dim), _meta(dtype, dim, narrow), _meta(out_dtype, dim))
        scale = _meta(torch.float32, 1) if dtype == FP8 else None
        # A chunk of 8 latent frames with its audio, and the reference image, which is one frame by itself.
        for case, video, audio in (("", 2048, 32), (" one frame", 256, 0)):
            x, out = _meta(dtype, 1, video + audio, dim), _meta(out_dtype, 1, video + audio, dim)
            h_out = (_meta(out_dtype, 1, video, wide), _meta(out_dtype, 1, audio, narrow))
            h_in = (_meta(dtype, 1, video, wide), _meta(dtype, 1, audio, narrow))
            gating = (out, _meta(torch.float32, 1, 3, 6, dim)[:, :, 5], _meta(torch.int32, 1, video + audio))
            args = ExpertArgs(x, None, *up, video, scale, None, scale, scale)
            launches[f"experts/up{case} {label}"] = launch(
                args._replace(out_video=h_out[0], out_audio=h_out[1])
            )
            args = ExpertArgs(*h_in, *down, video, scale, scale, scale, scale, *gating, out)
            launches[f"experts/down{case} {label}"] = launch(args)
    return launches


def _meta(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")
