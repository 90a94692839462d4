"""The benchmarked operations: inputs at a preset's shapes, contenders, and the bytes and FLOP of a call."""

from collections.abc import Iterator

from bench.cases.attention import PAPER_LATENT_FRAMES, attention_cases
from bench.cases.base import Case, Setting
from bench.cases.experts import CUBLAS, expert_cases
from bench.cases.fused import frames_cases, modulation_cases, qkv_prologue_cases, sampler_cases

__all__ = ["CUBLAS", "PAPER_LATENT_FRAMES", "Case", "Setting", "all_cases"]


def all_cases(setting: Setting) -> Iterator[Case]:
    """Yield the cases of all families, the most important first."""
    yield from attention_cases(setting)
    yield from qkv_prologue_cases(setting)
    yield from modulation_cases(setting)
    yield from sampler_cases(setting)
    yield from frames_cases(setting)
    yield from expert_cases(setting)
