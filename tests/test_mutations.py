"""Break each kernel on purpose and see its own tests notice.

A mutant is the family's source with one snippet changed. The family's tests run against it in a nested
pytest session; they must fail. A snippet that no longer stands in the source fails here too, so the list
cannot go stale.
"""

import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

import streamchar.kernels

KERNELS = Path(streamchar.kernels.__file__).parent
NUMERICS = Path(__file__).parent / "numerics"


@dataclass(frozen=True)
class Mutation:
    what: str
    family: str
    original: str
    mutated: str
    caught_by: str

    def __str__(self) -> str:
        return f"{self.family}: {self.what}"


class _Swap:
    """Route the launches of a family through the mutant for one nested session."""

    def __init__(self, family, mutant):
        self.family, self.mutant = family, mutant

    @pytest.fixture(autouse=True)
    def _swap(self, monkeypatch):
        original = importlib.import_module(f"streamchar.kernels.{self.family}")
        for name in vars(original):
            if name.startswith("_launch"):
                monkeypatch.setattr(original, name, getattr(self.mutant, name))
        # Tests shrink tiles by patching the family's config lookup: the mutant must see the same one.
        for name in vars(original):
            if name.endswith("_config"):
                monkeypatch.setattr(self.mutant, name, lambda *a, _n=name: getattr(original, _n)(*a))


def load_mutant(mutation: Mutation, folder: Path):
    source = (KERNELS / f"{mutation.family}.py").read_text()
    assert source.count(mutation.original) == 1, "the snippet to mutate must stand exactly once in the source"
    name = f"_mutant_{abs(hash(mutation))}"
    mutated = source.replace(mutation.original, mutation.mutated)
    # Operators are registered once a process under one name; the mutant's get a namespace of their own.
    mutated = mutated.replace('"streamchar::', f'"streamchar{name}::')
    path = folder / f"{name}.py"
    path.write_text(mutated)
    spec = importlib.util.spec_from_file_location(f"streamchar.kernels.{name}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


MUTATIONS = [
    Mutation(
        "the full tiles of one segment are dropped",
        "attention",
        "        num_tiles += length // BLOCK_N\n",
        "        num_tiles += tl.where(s == 2, 0, length // BLOCK_N)\n",
        "test_matches_float64_on_ragged_segments",
    ),
    Mutation(
        "the tail mask is one slot too wide",
        "attention",
        "row + tl.arange(0, TAIL_N) < end",
        "row + tl.arange(0, TAIL_N) <= end",
        "test_matches_float64_on_ragged_segments",
    ),
    Mutation(
        "values of unused slots are multiplied by zero instead of removed",
        "attention",
        "        v = tl.where(in_segment[:, None], v, 0.0).to(v.dtype)\n",
        "",
        "test_matches_float64_on_ragged_segments",
    ),
    Mutation(
        "the softmax scale is left in base e",
        "attention",
        "scale = softmax_scale * LOG2_E",
        "scale = softmax_scale * 1.0",
        "test_matches_float64_on_ragged_segments",
    ),
    Mutation(
        "the running maximum is not carried over",
        "attention",
        "m_new = tl.maximum(m_i, tl.max(scores, 1) * scale)",
        "m_new = tl.max(scores, 1) * scale + 0.0 * tl.where(l_i > 0, m_i, 0.0)",
        "test_large_scores",
    ),
    Mutation(
        "the length is not clamped to the buffer",
        "attention",
        "    length = tl.minimum(tl.maximum(length, 0), capacity - start)\n",
        "    length = tl.minimum(tl.maximum(length, 0), 2 * capacity)\n",
        "test_a_table_corrupted_on_the_device",
    ),
    Mutation(
        "query heads are dealt round-robin to key heads",
        "attention",
        "head // (num_heads // num_kv_heads)",
        "head % num_kv_heads",
        "test_grouped_queries",
    ),
    Mutation(
        "every batch row reads the first row's table",
        "attention",
        "segments_ptr += batch * NUM_SEGMENTS * 2",
        "segments_ptr += 0 * NUM_SEGMENTS",
        "test_matches_float64_on_ragged_segments",
    ),
    Mutation(
        "the value scale is forgotten",
        "attention",
        "        inverse *= tl.load(v_scale_ptr + batch * num_kv_heads + kv_head)\n",
        "        inverse *= 1.0\n",
        "test_fp8_matches_float64",
    ),
    Mutation(
        "the log-sum-exp keeps base 2",
        "attention",
        "(m_i + tl.log2(l_i) - SHIFT) * LN_2",
        "(m_i + tl.log2(l_i) - SHIFT) * 1.0",
        "test_matches_float64_on_ragged_segments",
    ),
]


@pytest.mark.parametrize("mutation", MUTATIONS, ids=str)
def test_a_wrong_kernel_is_caught(mutation, tmp_path):
    mutant = load_mutant(mutation, tmp_path)
    tests = NUMERICS / f"test_{mutation.family}.py"
    arguments = [str(tests), "-k", mutation.caught_by, "-x", "-q", "--no-header", "-p", "no:cacheprovider"]
    assert pytest.main(arguments, plugins=[_Swap(mutation.family, mutant)]) == pytest.ExitCode.TESTS_FAILED


def test_the_swap_itself_fails_nothing(tmp_path):
    harmless = Mutation(
        "nothing", "attention", "scale = softmax_scale * LOG2_E", "scale = LOG2_E * softmax_scale", ""
    )
    mutant = load_mutant(harmless, tmp_path)
    tests = NUMERICS / "test_attention.py"
    arguments = [str(tests), "-k", "ragged or fp8_matches", "-q", "--no-header", "-p", "no:cacheprovider"]
    assert pytest.main(arguments, plugins=[_Swap("attention", mutant)]) == pytest.ExitCode.OK
