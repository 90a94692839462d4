"""The FFN of two modality experts as a grouped GEMM: one persistent launch up, one down.

Tokens [0, num_video) of every batch row belong to the video expert and the rest to the audio expert; each
expert has weights of its own and a hidden width of its own. Fused into the products: bias and GELU on the
way up, bias and gated residual on the way down, and for fp8 operands the scales of token and channel.

A program per SM walks the tiles of the video expert and then, in the same numbering, those of the audio
expert, so that the few audio tiles run on SMs that the last wave of video tiles leaves idle. Operands come
through tensor descriptors (TMA), which also fill reads past an edge with zeros.

For M tokens, width d and hidden width F a product moves (M d + F d + M F) elements and does 2 M F d FLOP:
1.8e11 FLOP over 0.16 GB for 2048 x 3072 x 14336 in bf16, compute-bound. Apart, the 32 audio tokens would
take 8e8 FLOP and a launch of their own, bound by the 25 MB of their weights.
"""

from typing import Any

import torch
from torch.nn.functional import gelu, linear

from ._checks import require_aligned, require_dtype
from ._compat import FP8, INTERPRETED, TensorDescriptor, tl, triton
from ._dispatch import Backend, Launch, use_triton
from ._expert_checks import FLOATS, check_down, check_up
from ._math import gelu_tanh
from ._rows import rows_of_tokens
from .configs import HOPPER_SMS, GemmConfig, Measured, gemm_config, measured, pick

#: Few programs, so that each walks several tiles in the interpreter too.
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
        # One side of the product is the joint sequence, where audio follows video, the other the expert's own
        # tensor: going up that is the output, going down the input.
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

            # The last tile of an expert also reads rows that follow; no row that is stored depends on them.
            acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
            for step in tl.range(tl.cdiv(k, BLOCK_K)):
                a = a_desc.load([a_row, step * BLOCK_K])
                w = w_desc.load([col, step * BLOCK_K])
                if UPCAST:
                    acc += tl.dot(a.to(tl.float32), w.to(tl.float32).T, input_precision="ieee")
                elif PROMOTE:
                    # max_num_imprecise_acc would say the same, but ptxas then serialises the matrix
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
        # Number the next expert's tiles on from this one's: it starts on the programs that are free first.
        first += tl.cdiv(tl.maximum(num_tiles - first, 0), num_programs) * num_programs - num_tiles


def expert_up(
    x: torch.Tensor,
    w_video: torch.Tensor,
    b_video: torch.Tensor,
    w_audio: torch.Tensor,
    b_audio: torch.Tensor,
    *,
    num_video: int,
    backend: Backend = "auto",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Apply each modality's up projection and GELU: ``gelu_tanh(x W^T + b)``.

    Args:
        x: [batch, tokens, dim], bf16, fp16 or fp32 (fp64 on the PyTorch path), contiguous.
        w_video: [hidden_video, dim] in x.dtype, contiguous.
        b_video: [hidden_video] in x.dtype.
        w_audio: [hidden_audio, dim], as ``w_video``.
        b_audio: [hidden_audio], as ``b_video``.
        num_video: tokens [0, num_video) are video, the rest audio; either may be none.
        backend: ``"auto"``, ``"triton"`` or ``"torch"``. On CUDA ``"auto"`` takes the Triton kernel where
            ``choices.json`` records that it was measured to be faster than cuBLAS, and cuBLAS elsewhere.

    Returns:
        h_video [batch, num_video, hidden_video] and h_audio [batch, tokens - num_video, hidden_audio], in
        x.dtype.

    Raises:
        KernelArgumentError: a shape, dtype, stride or device does not fit, or a row is not a multiple of 16
            bytes.
        BackendUnavailableError: ``backend="triton"`` where Triton cannot run.

    Source: feed-forward of arXiv 1706.03762 equation 2 with the GELU of arXiv 1606.08415 section 2.
    """
    require_dtype("x", x, FLOATS)
    weights = (w_video, b_video, w_audio, b_audio)
    check_up("x", x, weights, num_video)
    m_video, m_audio = x.shape[0] * num_video, x.shape[0] * (x.shape[1] - num_video)
    if not runs_triton("expert_up", backend, w_video, m_video, m_audio, x, *weights):
        return (
            gelu(linear(x[:, :num_video], w_video, b_video), approximate="tanh"),
            gelu(linear(x[:, num_video:], w_audio, b_audio), approximate="tanh"),
        )
    h_video, h_audio = empty_hidden(x, w_video, w_audio, num_video, x.dtype)
    experts_op(h_video, h_audio, x, None, *weights)
    return h_video, h_audio


def expert_down(
    h_video: torch.Tensor,
    h_audio: torch.Tensor,
    w_video: torch.Tensor,
    b_video: torch.Tensor,
    w_audio: torch.Tensor,
    b_audio: torch.Tensor,
    residual: torch.Tensor,
    gate: torch.Tensor,
    row_index: torch.Tensor,
    *,
    backend: Backend = "auto",
) -> torch.Tensor:
    """Apply each modality's down projection and add it, gated: ``residual + gate[row] * (h W^T + b)``.

    Args:
        h_video: [batch, num_video, hidden_video], bf16, fp16 or fp32 (fp64 on the PyTorch path), contiguous.
        h_audio: [batch, num_audio, hidden_audio] in the same dtype; either may have no tokens.
        w_video: [dim, hidden_video] in h_video.dtype, contiguous.
        b_video: [dim] in h_video.dtype.
        w_audio: [dim, hidden_audio], as ``w_video``.
        b_audio: [dim], as ``b_video``.
        residual: [batch, num_video + num_audio, dim] in h_video.dtype, contiguous.
        gate: [batch, rows, dim], modulation rows, any float dtype, last dimension contiguous.
        row_index: [batch, num_video + num_audio] int32, the modulation row of each token; clamped to
            [0, rows).
        backend: see :func:`expert_up`.

    Returns:
        [batch, num_video + num_audio, dim] in residual.dtype.

    Raises:
        KernelArgumentError: a shape, dtype, stride or device does not fit, or a row is not a multiple of 16
            bytes.
        BackendUnavailableError: ``backend="triton"`` where Triton cannot run.

    Source: arXiv 1706.03762 equation 2; gate of adaLN-Zero, arXiv 2212.09748 section 3.2.
    """
    require_dtype("h_video", h_video, FLOATS)
    weights = (w_video, b_video, w_audio, b_audio)
    check_down("h", h_video, h_audio, weights, residual, gate, row_index)
    require_dtype("residual", residual, (h_video.dtype,))
    batch, m_video, m_audio = h_video.shape[0], h_video.shape[1], h_audio.shape[1]
    others = (h_video, h_audio, *weights, residual, gate)
    if not runs_triton("expert_down", backend, w_video, batch * m_video, batch * m_audio, *others):
        branch = (linear(h_video, w_video, b_video), linear(h_audio, w_audio, b_audio))
        return gated_residual(residual, gate, row_index, torch.cat(branch, 1))
    out = torch.empty(residual.shape, dtype=residual.dtype, device=residual.device)
    no_scales = (None, None, None, None)
    experts_op(out, None, h_video, h_audio, *weights, *no_scales, residual, gate, row_index)
    return out


def expert_up_reference(
    x: torch.Tensor,
    w_video: torch.Tensor,
    b_video: torch.Tensor,
    w_audio: torch.Tensor,
    b_audio: torch.Tensor,
    *,
    num_video: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute :func:`expert_up` in plain PyTorch, unrounded, in fp32 or, for fp64 input, in fp64."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    x = x.to(wide)
    up_video = x[:, :num_video] @ w_video.to(wide).t() + b_video.to(wide)
    up_audio = x[:, num_video:] @ w_audio.to(wide).t() + b_audio.to(wide)
    return gelu(up_video, approximate="tanh"), gelu(up_audio, approximate="tanh")


def expert_down_reference(
    h_video: torch.Tensor,
    h_audio: torch.Tensor,
    w_video: torch.Tensor,
    b_video: torch.Tensor,
    w_audio: torch.Tensor,
    b_audio: torch.Tensor,
    residual: torch.Tensor,
    gate: torch.Tensor,
    row_index: torch.Tensor,
) -> torch.Tensor:
    """Compute :func:`expert_down` in plain PyTorch, unrounded, in fp32 or, for fp64 input, in fp64."""
    wide = torch.float64 if h_video.dtype == torch.float64 else torch.float32
    video = h_video.to(wide) @ w_video.to(wide).t() + b_video.to(wide)
    audio = h_audio.to(wide) @ w_audio.to(wide).t() + b_audio.to(wide)
    return gated_residual(residual.to(wide), gate.to(wide), row_index, torch.cat((video, audio), 1))


def gated_residual(
    residual: torch.Tensor, gate: torch.Tensor, row_index: torch.Tensor, branch: torch.Tensor
) -> torch.Tensor:
    """Compute ``residual + gate[row] * branch`` in residual.dtype."""
    return torch.addcmul(residual, rows_of_tokens(gate, row_index), branch).to(residual.dtype)


def empty_hidden(
    x: torch.Tensor, w_video: torch.Tensor, w_audio: torch.Tensor, num_video: int, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Allocate (h_video, h_audio) for the tokens of x."""
    batch, tokens, _ = x.shape
    h_video = torch.empty((batch, num_video, w_video.shape[0]), dtype=dtype, device=x.device)
    h_audio = torch.empty((batch, tokens - num_video, w_audio.shape[0]), dtype=dtype, device=x.device)
    return h_video, h_audio


def runs_triton(
    op: str, backend: Backend, w_video: torch.Tensor, m_video: int, m_audio: int, *tensors: torch.Tensor
) -> bool:
    """Say whether the Triton kernel serves a call with these rows of each expert."""
    if not use_triton(backend, w_video, *tensors):
        return False
    if backend == "triton":
        return True
    n, k = w_video.shape
    return pick(_measured(op, w_video.dtype, n, k, w_video.device.index), m_video, m_audio) == "triton"


# A graph that torch.compile traces holds the table as it is when tracing; the files are not read inside it.
@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _measured(op: str, dtype: torch.dtype, n: int, k: int, device: int | None) -> tuple[Measured, ...]:
    return measured(op, dtype, n, k, torch.cuda.get_device_properties(device).name)


def _launch(
    out_video: torch.Tensor,
    out_audio: torch.Tensor | None,
    a_video: torch.Tensor,
    a_audio: torch.Tensor | None,
    w_video: torch.Tensor,
    b_video: torch.Tensor,
    w_audio: torch.Tensor,
    b_audio: torch.Tensor,
    a_scale_video: torch.Tensor | None = None,
    a_scale_audio: torch.Tensor | None = None,
    w_scale_video: torch.Tensor | None = None,
    w_scale_audio: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    gate: torch.Tensor | None = None,
    row_index: torch.Tensor | None = None,
    config: GemmConfig | None = None,
) -> Launch:
    # The side that is the joint sequence is one tensor for both experts: A going up, the output going down.
    up = a_audio is None
    a_audio = a_video if a_audio is None else a_audio
    out_audio = out_video if out_audio is None else out_audio
    batch, num_video = (out_video if up else a_video).shape[:2]
    num_audio = (out_audio if up else a_audio).shape[1]
    device = w_video.device
    num_sms = _INTERPRETED_SMS if device.type == "cpu" else HOPPER_SMS
    if device.type == "cuda":
        num_sms = torch.cuda.get_device_properties(device).multi_processor_count
    (n_video, k_video), (n_audio, k_audio) = w_video.shape, w_audio.shape
    if config is None:
        config = gemm_config(w_video.dtype, batch * num_video, n_video, k_video, num_sms)

    def described(name: str, tensor: torch.Tensor, rows: int) -> Any:
        require_aligned(name, tensor)
        return TensorDescriptor.from_tensor(tensor.reshape(-1, tensor.shape[-1]), [rows, config.block_k])

    # An expert without tokens has no operand to describe; its loop takes no step, so any descriptor will do.
    a_video, a_audio = (a_video if num_video else a_audio), (a_audio if num_audio else a_video)
    args = {
        "out_video_ptr": out_video,
        "out_audio_ptr": out_audio,
        "a_video_desc": described("x" if up else "h_video", a_video, config.block_m),
        "a_audio_desc": described("x" if up else "h_audio", a_audio, config.block_m),
        "w_video_desc": described("w_video", w_video, config.block_n),
        "w_audio_desc": described("w_audio", w_audio, config.block_n),
        "bias_video_ptr": b_video,
        "bias_audio_ptr": b_audio,
        "a_scale_video_ptr": a_scale_video,
        "a_scale_audio_ptr": a_scale_video if up else a_scale_audio,
        "w_scale_video_ptr": w_scale_video,
        "w_scale_audio_ptr": w_scale_audio,
        "residual_ptr": residual,
        "gate_ptr": gate,
        "row_index_ptr": row_index,
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
        "FP8": w_video.dtype == FP8,
        "PROMOTE": config.promote,
        "UPCAST": INTERPRETED and w_video.dtype != torch.float32,
        "SPLIT": config.split_epilogue,
        "FLATTEN": config.flatten,
        "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n,
        "BLOCK_K": config.block_k,
        "GROUP_M": config.group_m,
    }
    tiles = batch * (config.tiles(num_video, n_video) + config.tiles(num_audio, n_audio))
    grid = (min(num_sms * config.blocks_per_sm, tiles),)
    return Launch(_experts_kernel, grid, args, config.num_warps, config.num_stages, device=device)


@torch.library.custom_op("streamchar::experts", mutates_args=("out_video", "out_audio"))
def experts_op(
    out_video: torch.Tensor,
    out_audio: torch.Tensor | None,
    a_video: torch.Tensor,
    a_audio: torch.Tensor | None,
    w_video: torch.Tensor,
    b_video: torch.Tensor,
    w_audio: torch.Tensor,
    b_audio: torch.Tensor,
    a_scale_video: torch.Tensor | None = None,
    a_scale_audio: torch.Tensor | None = None,
    w_scale_video: torch.Tensor | None = None,
    w_scale_audio: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    gate: torch.Tensor | None = None,
    row_index: torch.Tensor | None = None,
) -> None:
    """Launch a projection: up where ``a_audio`` is None, down where ``out_audio`` is None."""
    weights = (w_video, b_video, w_audio, b_audio)
    scales = (a_scale_video, a_scale_audio, w_scale_video, w_scale_audio)
    _launch(out_video, out_audio, a_video, a_audio, *weights, *scales, residual, gate, row_index).run()


@experts_op.register_fake
def _(*args: object) -> None:
    return None


def shipped() -> dict[str, Launch]:
    """Return the launches that the codegen gate compiles, on meta tensors of the ``5b`` preset's shapes."""
    launches, dim, (wide, narrow) = {}, 3072, (14336, 4096)
    for label, dtype, out_dtype in (
        ("bf16", torch.bfloat16, torch.bfloat16),
        ("fp16", torch.float16, torch.float16),
        ("fp8", FP8, torch.bfloat16),
    ):
        up = (*_meta_weights(dtype, out_dtype, wide, dim), *_meta_weights(dtype, out_dtype, narrow, dim))
        down = (*_meta_weights(dtype, out_dtype, dim, wide), *_meta_weights(dtype, out_dtype, dim, narrow))
        scale = _meta(torch.float32, 1) if dtype == FP8 else None
        # A chunk of 8 latent frames with its audio, and the reference image, which is one frame by itself.
        for case, video, audio in (("", 2048, 32), (" one frame", 256, 0)):
            x, out = _meta(dtype, 1, video + audio, dim), _meta(out_dtype, 1, video + audio, dim)
            h_out = (_meta(out_dtype, 1, video, wide), _meta(out_dtype, 1, audio, narrow))
            h_in = (_meta(dtype, 1, video, wide), _meta(dtype, 1, audio, narrow))
            gating = (out, _meta(torch.float32, 1, 3, 6, dim)[:, :, 5], _meta(torch.int32, 1, video + audio))
            launches[f"experts/up{case} {label}"] = _launch(*h_out, x, None, *up, scale, None, scale, scale)
            launches[f"experts/down{case} {label}"] = _launch(
                out, None, *h_in, *down, scale, scale, scale, scale, *gating
            )
    return launches


def _meta(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _meta_weights(
    dtype: torch.dtype, bias_dtype: torch.dtype, rows: int, width: int
) -> tuple[torch.Tensor, torch.Tensor]:
    return _meta(dtype, rows, width), _meta(bias_dtype, rows)
