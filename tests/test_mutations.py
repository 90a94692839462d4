"""Break each kernel on purpose and check that its own tests notice.

A mutant is the family's ``forward.py`` with one snippet changed. The family's tests run against it in a
nested pytest session and must fail. A snippet that is no longer in the source fails here too, so the list
stays up to date.
"""

import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

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


class _Swap:
    """Let the operator of a family launch the mutant during one nested session."""

    def __init__(self, family, mutant):
        self.family, self.mutant = family, mutant

    @pytest.fixture(autouse=True)
    def _swap(self, monkeypatch):
        interface = importlib.import_module(f"streamchar.kernels.{self.family}.interface")
        original = importlib.import_module(f"streamchar.kernels.{self.family}.forward")
        monkeypatch.setattr(interface.operator, "launch", self.mutant.launch)
        # Tests shrink tiles by patching the family's config lookup; the mutant must use the same one.
        for name in vars(original):
            if name.endswith("_config"):
                monkeypatch.setattr(self.mutant, name, lambda *a, _n=name: getattr(original, _n)(*a))


def load_mutant(mutation: Mutation, folder: Path):
    source = (KERNELS / mutation.family / "forward.py").read_text()
    assert source.count(mutation.original) == 1, "the snippet to mutate must be in the source exactly once"
    name = f"_mutant_{abs(hash(mutation))}"
    path = folder / f"{name}.py"
    path.write_text(source.replace(mutation.original, mutation.mutated))
    # Inside the family's package, so that its relative imports resolve.
    spec = importlib.util.spec_from_file_location(f"streamchar.kernels.{mutation.family}.{name}", path)
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
    Mutation(
        "the scale is not added to one",
        "modulation",
        "x * (1.0 + scale.to(tl.float32))",
        "x * scale.to(tl.float32)",
        "test_norm_modulate_matches_float64",
    ),
    Mutation(
        "the mean is taken over the padded width",
        "modulation",
        "tl.sum(x * x, 0) / DIM + eps",
        "tl.sum(x * x, 0) / BLOCK_D + eps",
        "test_norm_modulate_matches_float64",
    ),
    Mutation(
        "the padding of a centred row keeps the mean",
        "modulation",
        "tl.where(mask, x - tl.sum(x, 0) / DIM, 0.0)",
        "x - tl.sum(x, 0) / DIM",
        "test_norm_modulate_matches_float64",
    ),
    Mutation(
        "the row index is not clamped from below",
        "modulation",
        "tl.minimum(tl.maximum(row, 0), num_rows - 1)",
        "tl.where(row < 0, -1, tl.minimum(row, num_rows - 1))",
        "test_a_row_index_out_of_range",
    ),
    Mutation(
        "the gate reads the scale's batch stride",
        "modulation",
        "b * gate_stride_b + row",
        "b * x_stride_b + row",
        "test_gated_norm_modulate_matches_float64",
    ),
    Mutation(
        "the last element of a row is dropped",
        "modulation",
        "mask = cols < DIM",
        "mask = cols < DIM - 1",
        "test_norm_modulate_matches_float64",
    ),
    Mutation(
        "the residual is stored without its branch",
        "modulation",
        "        x += gate.to(tl.float32) * branch\n        tl.store(residual_ptr + token * DIM + cols, x.to",
        "        y = x\n        x += gate.to(tl.float32) * branch\n"
        "        tl.store(residual_ptr + token * DIM + cols, y.to",
        "test_gated_norm_modulate_matches_float64",
    ),
    Mutation(
        "the fp8 scale reaches 256 instead of 448",
        "modulation",
        "1e-12) / 448.0",
        "1e-12) / 256.0",
        "test_fp8_output",
    ),
    Mutation(
        "the mean is taken over half a head",
        "qkv_prologue",
        "tl.sum(a * a + b * b, 1) / (2 * HALF) + eps",
        "tl.sum(a * a + b * b, 1) / HALF + eps",
        "test_every_shape_equals_reference",
    ),
    Mutation(
        "k is normalised with the weights of q",
        "qkv_prologue",
        "k_ptr, x_ptr, k_norm_ptr,",
        "k_ptr, x_ptr, q_norm_ptr,",
        "test_every_shape_equals_reference",
    ),
    Mutation(
        "the rotation runs backwards",
        "qkv_prologue",
        "        y_second = b * cos + a * sin\n",
        "        y_second = b * cos - a * sin\n",
        "test_every_shape_equals_reference",
    ),
    Mutation(
        "a token is stored one slot past the end",
        "qkv_prologue",
        "stored = (slot >= 0) & (slot < capacity)",
        "stored = (slot >= 0) & (slot <= capacity)",
        "test_every_shape_equals_reference",
    ),
    Mutation(
        "every batch row uses the first row's slots",
        "qkv_prologue",
        "    slots_ptr += b * tokens\n",
        "    slots_ptr += 0 * tokens\n",
        "test_every_shape_equals_reference",
    ),
    Mutation(
        "k reads the v heads",
        "qkv_prologue",
        "x_ptr = qkv_ptr + NUM_HEADS * HEAD_DIM",
        "x_ptr = qkv_ptr + (NUM_HEADS + KV_HEADS) * HEAD_DIM",
        "test_every_shape_equals_reference",
    ),
    Mutation(
        "k is scaled with the scale of q",
        "qkv_prologue",
        "k_ptr, x_ptr, k_norm_ptr, k_scale_ptr,",
        "k_ptr, x_ptr, k_norm_ptr, q_scale_ptr,",
        "test_every_shape_equals_reference",
    ),
    Mutation(
        "fp8 does not saturate",
        "qkv_prologue",
        "tl.minimum(tl.maximum(x / scale, -448.0), 448.0)",
        "(x / scale)",
        "test_fp8_saturates",
    ),
    Mutation(
        "scattered slots are stored as a run",
        "qkv_prologue",
        "if aligned & (tl.max((v_slot != base + t).to(tl.int32), 0) == 0):",
        "if aligned:",
        "test_runs_of_slots_are_stored_transposed",
    ),
    Mutation(
        "the last tokens have no program",
        "qkv_prologue",
        "programs = triton.cdiv(tokens, block_t) +",
        "programs = tokens // block_t +",
        "test_every_shape_equals_reference",
    ),
    Mutation(
        "the end of the depth is dropped",
        "experts",
        "tl.range(tl.cdiv(k, BLOCK_K))",
        "tl.range(k // BLOCK_K)",
        "test_up_matches_the_reference",
    ),
    Mutation(
        "the last column is dropped",
        "experts",
        "col_mask = cols < n",
        "col_mask = cols < n - 1",
        "test_up_matches_the_reference",
    ),
    Mutation(
        "audio reads the video tokens",
        "experts",
        "(tokens, start) if UP else (rows, 0)",
        "(tokens, 0) if UP else (rows, 0)",
        "test_up_matches_the_reference",
    ),
    Mutation(
        "audio takes the bias of video",
        "experts",
        "(bias_video_ptr, bias_audio_ptr)[expert]",
        "(bias_video_ptr, bias_video_ptr)[expert]",
        "test_up_matches_the_reference",
    ),
    Mutation(
        "GELU is left out",
        "experts",
        "y = gelu_tanh(y)",
        "y = y",
        "test_up_matches_the_reference",
    ),
    Mutation(
        "audio is stored over video",
        "experts",
        "(rows, 0) if UP else (tokens, start)",
        "(rows, 0) if UP else (tokens, 0)",
        "test_down_matches_the_reference",
    ),
    Mutation(
        "the residual is lost",
        "experts",
        "residual.to(tl.float32) + gate.to(tl.float32) * y",
        "gate.to(tl.float32) * y",
        "test_down_matches_the_reference",
    ),
    Mutation(
        "the gate's row is one too far",
        "experts",
        "tl.maximum(gate_row, 0), num_gate_rows - 1)",
        "tl.maximum(gate_row, 0), num_gate_rows)",
        "test_down_matches_the_reference",
    ),
    Mutation(
        "the scale of the channel is forgotten",
        "experts",
        "y * a_scale[:, None] * w_scale[None, :]",
        "y * a_scale[:, None]",
        "test_fp8_matches_the_dequantised_reference",
    ),
    Mutation(
        "x0 is not faded",
        "sampler",
        "x = (1.0 - sigma_next) * (x - sigma * v) + sigma_next * noise",
        "x = (x - sigma * v) + sigma_next * noise",
        "test_step_equals_reference",
    ),
    Mutation(
        "the Euler step runs backwards",
        "sampler",
        "x += (sigma_next - sigma) * v",
        "x += (sigma - sigma_next) * v",
        "test_step_equals_reference",
    ),
    Mutation(
        "guidance starts from the wrong velocity",
        "sampler",
        "v = uncond + guidance * (v - uncond)",
        "v = v + guidance * (v - uncond)",
        "test_step_equals_reference",
    ),
    Mutation(
        "an element past the end is written",
        "sampler",
        "mask = cols < elements",
        "mask = cols <= elements",
        "test_step_equals_reference",
    ),
    Mutation(
        "a step repeats the noise before it",
        "sampler",
        "draw = step + 1",
        "draw = step",
        "test_step_equals_reference",
    ),
    Mutation(
        "the step is not clamped",
        "sampler",
        "tl.minimum(tl.maximum(tl.load(step_ptr + row), 0), num_steps - 1)",
        "tl.load(step_ptr + row)",
        "test_steps_outside_the_schedule_are_clamped",
    ),
    Mutation(
        "sigma does not fall",
        "sampler",
        "sigma_next = tl.load(sigmas_ptr + step + 1)",
        "sigma_next = tl.load(sigmas_ptr + step)",
        "test_step_equals_reference",
    ),
    Mutation(
        "white is 256",
        "frames",
        "x = (x + 1.0) * 127.5",
        "x = (x + 1.0) * 128.0",
        "test_bytes_equal_the_reference",
    ),
    Mutation(
        "bright values wrap round",
        "frames",
        "tl.minimum(tl.where(x > 0.0, x, 0.0), 255.0)",
        "tl.where(x > 0.0, x, 0.0)",
        "test_bytes_equal_the_reference",
    ),
    Mutation(
        "two colours are exchanged in a word",
        "frames",
        "(b0 << 16) | (r1 << 24)",
        "(r1 << 16) | (b0 << 24)",
        "test_bytes_equal_the_reference",
    ),
    Mutation(
        "blue reads green",
        "frames",
        "b = _channel(pointers + 2 * stride_c",
        "b = _channel(pointers + stride_c",
        "test_bytes_equal_the_reference",
    ),
    Mutation(
        "chroma is averaged over half its pixels",
        "frames",
        "r_sum * 0.25",
        "r_sum * 0.5",
        "test_bytes_equal_the_reference",
    ),
    Mutation(
        "luma has the weights of another standard",
        "frames",
        "LUMA_G = tl.constexpr(0.7152)",
        "LUMA_G = tl.constexpr(0.587)",
        "test_bytes_equal_the_reference",
    ),
    Mutation(
        "every frame is the first",
        "frames",
        "frames_ptr += frame * stride_f",
        "frames_ptr += 0 * stride_f",
        "test_bytes_equal_the_reference",
    ),
]


def run_family_tests(family: str, selection: str, mutant: ModuleType) -> int | pytest.ExitCode:
    tests = NUMERICS / f"test_{family}.py"
    arguments = [str(tests), "-k", selection, "-x", "-q", "--no-header", "-p", "no:cacheprovider"]
    return pytest.main(arguments, plugins=[_Swap(family, mutant)])


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: f"{mutation.family}: {mutation.what}")
def test_a_wrong_kernel_is_caught(mutation, tmp_path):
    mutant = load_mutant(mutation, tmp_path)
    outcome = run_family_tests(mutation.family, mutation.caught_by, mutant)
    assert outcome == pytest.ExitCode.TESTS_FAILED


@pytest.mark.parametrize("family", sorted({mutation.family for mutation in MUTATIONS}))
def test_the_swap_itself_fails_nothing(family, tmp_path):
    mutant = load_mutant(Mutation("nothing", family, "def shipped()", "def shipped()", ""), tmp_path)
    used = sorted({mutation.caught_by for mutation in MUTATIONS if mutation.family == family})
    assert run_family_tests(family, " or ".join(used), mutant) == pytest.ExitCode.OK
