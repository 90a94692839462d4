"""Triton kernels of a chunk step, each with a plain PyTorch path behind the same public function.

The folder installs as ``streamchar.kernels``. Seen from the repository root it can also be found under the
bare name ``kernels``, which ``transformers`` and ``diffusers`` probe for another project; imported that way
it exposes nothing, so that no operator is registered twice.
"""

if __name__ == "streamchar.kernels":
    from ._checks import BackendUnavailableError, KernelArgumentError
    from ._dispatch import Backend
    from .attention import joint_attention, joint_attention_fp8
    from .egress import egress
    from .experts import expert_down, expert_up
    from .experts_fp8 import expert_down_fp8, expert_up_fp8
    from .modulation import (
        gated_norm_modulate,
        gated_norm_modulate_fp8,
        norm_modulate,
        norm_modulate_fp8,
        quantize_fp8,
    )
    from .qkv import qkv_prologue, qkv_prologue_fp8
    from .rope import audio_positions, rope_tables, video_positions
    from .sampler import sampler_noise, sampler_step
    from .segments import segment_table, slot_table

    __all__ = [
        "Backend",
        "BackendUnavailableError",
        "KernelArgumentError",
        "audio_positions",
        "egress",
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
