"""Attention in bf16 with gradients on a CPU, computed with matrix products."""

import pytest
import torch

from streamchar.kernels import segment_table
from streamchar.kernels.attention.reference import _attend_by_row, attend, joint_attention_reference
from streamchar.numerics import EPSILON, relative_error
from tests.closeness import assert_close

CAPACITY, HEAD_DIM = 96, 64
SCALE = HEAD_DIM**-0.5
SPANS = [[(0, 7), (0, 0), (40, 45), (90, 3)], [(3, 32), (40, 33), (80, 15), (95, 1)]]
#: Scores, probabilities and output are each rounded once, by at most half an epsilon. For scores of unit
#: variance, an error in a score becomes an equal relative error in its probability. The bound is the sum.
FORWARD = 1.5
#: The backward pass goes through the same products, with as many roundings again.
BACKWARD = 2 * FORWARD


def draw(rng, dtype, kv_heads):
    q = torch.randn(2, 37, 4, HEAD_DIM, generator=rng)
    k, v = (torch.randn(2, CAPACITY, kv_heads, HEAD_DIM, generator=rng) for _ in "kv")
    gradient = torch.randn(q.shape, generator=rng)
    return [x.to(dtype) for x in (q, k, v, gradient)]


def outcome(function, q, k, v, gradient):
    leaves = [x.detach().clone().requires_grad_() for x in (q, k, v)]
    out = function(*leaves)
    out.backward(gradient)
    return out.detach(), [leaf.grad for leaf in leaves]


@pytest.mark.parametrize("kv_heads", [4, 2], ids=["full", "grouped"])
def test_output_and_gradients_match_float64(kv_heads, rng, monkeypatch):
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", None)  # must not be called
    q, k, v, gradient = draw(rng, torch.bfloat16, kv_heads)
    segments = segment_table(SPANS, CAPACITY, "cpu")
    out, gradients = outcome(lambda *qkv: attend(*qkv, segments, SCALE), q, k, v, gradient)
    wide = [x.double() for x in (q, k, v, gradient)]
    expected, references = outcome(lambda *qkv: joint_attention_reference(*qkv, segments, SCALE)[0], *wide)
    assert out.dtype == torch.bfloat16
    assert_close(out, expected, torch.bfloat16, FORWARD)
    for ours, reference in zip(gradients, references, strict=True):
        assert_close(ours, reference, torch.bfloat16, BACKWARD)


def test_slots_outside_the_segments_are_not_read_and_get_no_gradient(rng):
    q, k, v, gradient = draw(rng, torch.bfloat16, 4)
    segments = segment_table(SPANS, CAPACITY, "cpu")
    out, (_, of_k, of_v) = outcome(lambda *qkv: attend(*qkv, segments, SCALE), q, k, v, gradient)
    used = torch.zeros(2, CAPACITY, dtype=torch.bool)
    for row, spans in enumerate(SPANS):
        for start, length in spans:
            used[row, start : start + length] = True
    for x in (k, v):
        x[~used] = float("nan")
    again, _ = outcome(lambda *qkv: attend(*qkv, segments, SCALE), q, k, v, gradient)
    assert torch.equal(again, out)
    for found in (of_k, of_v):
        assert not found[~used].any()
        assert found[used].any()


def test_the_trained_path_rounds_no_worse_than_the_fused_one(rng):
    q, k, v, _ = draw(rng, torch.bfloat16, 4)
    segments = segment_table(SPANS, CAPACITY, "cpu")
    expected = joint_attention_reference(q.double(), k.double(), v.double(), segments, SCALE)[0]
    served = relative_error(_attend_by_row(q, k, v, segments, SCALE), expected)
    trained = relative_error(_attend_by_row(q.requires_grad_(), k, v, segments, SCALE), expected)
    assert trained < served + EPSILON[torch.bfloat16]
