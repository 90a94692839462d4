"""The FFN of the video and the audio expert as a grouped GEMM."""

from .fp8 import expert_down_fp8, expert_up_fp8
from .interface import expert_down, expert_up

__all__ = ["expert_down", "expert_down_fp8", "expert_up", "expert_up_fp8"]
