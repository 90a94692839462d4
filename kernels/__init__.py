"""Triton kernels of a chunk step, each with a plain PyTorch path behind the same public function.

The folder installs as ``streamchar.kernels``. Seen from the repository root it can also be found under the
bare name ``kernels``, which ``transformers`` and ``diffusers`` probe for another project; imported that way
it exposes nothing, so that no operator is registered twice.
"""

if __name__ == "streamchar.kernels":
    from ._checks import BackendUnavailableError, KernelArgumentError
    from .modulation import (
        gated_norm_modulate,
        gated_norm_modulate_fp8,
        norm_modulate,
        norm_modulate_fp8,
        quantize_fp8,
    )
    from .segments import segment_table, slot_table

    __all__ = [
        "BackendUnavailableError",
        "KernelArgumentError",
        "gated_norm_modulate",
        "gated_norm_modulate_fp8",
        "norm_modulate",
        "norm_modulate_fp8",
        "quantize_fp8",
        "segment_table",
        "slot_table",
    ]
