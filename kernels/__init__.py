"""Triton kernels of a chunk's denoising step, each with a PyTorch path behind the same public function.

The folder installs as ``streamchar.kernels``. It can also be loaded by itself, from any path and under any
name: it imports only from its own folder, and each loaded copy registers its operators in a namespace of its
own.
"""

from ._shared.checks import BackendUnavailableError, KernelArgumentError
from ._shared.dispatch import Backend
from ._shared.rope import audio_positions, rope_tables, video_positions
from ._shared.segments import segment_table, slot_table
from .attention import joint_attention, joint_attention_fp8
from .experts import expert_down, expert_down_fp8, expert_up, expert_up_fp8
from .frames import pack_frames
from .modulation import (
    gated_norm_modulate,
    gated_norm_modulate_fp8,
    norm_modulate,
    norm_modulate_fp8,
    quantize_fp8,
)
from .qkv_prologue import qkv_prologue, qkv_prologue_fp8
from .sampler import sampler_noise, sampler_step

__all__ = [
    "Backend",
    "BackendUnavailableError",
    "KernelArgumentError",
    "audio_positions",
    "expert_down",
    "expert_down_fp8",
    "expert_up",
    "expert_up_fp8",
    "gated_norm_modulate",
    "gated_norm_modulate_fp8",
    "joint_attention",
    "joint_attention_fp8",
    "norm_modulate",
    "norm_modulate_fp8",
    "pack_frames",
    "qkv_prologue",
    "qkv_prologue_fp8",
    "quantize_fp8",
    "rope_tables",
    "sampler_noise",
    "sampler_step",
    "segment_table",
    "slot_table",
    "video_positions",
]
