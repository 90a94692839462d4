"""Muon moves all directions of a matrix equally, and trains matrices only."""

import pytest
import torch
from torch import nn

from streamchar.train.optim.muon import Muon, matrices, orthogonalise


@pytest.mark.parametrize("shape", [(16, 16), (8, 40), (40, 8)], ids=str)
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_orthogonalising_keeps_singular_vectors(shape, scale, rng):
    left, values, right = torch.linalg.svd(torch.randn(shape, generator=rng), full_matrices=False)
    values = torch.linspace(1.0, 0.1, len(values))
    found = orthogonalise(scale * left * values @ right)
    assert found.dtype == torch.float32
    # The iteration ends between about 0.7 and 1.2; 0.1 is for bf16.
    within = left.T @ found @ right.T
    assert ((within.diagonal() > 0.6) & (within.diagonal() < 1.3)).all()
    assert (within - within.diagonal().diag()).norm() < 0.1 * within.norm()


def test_zero_stays_zero():
    assert torch.equal(orthogonalise(torch.zeros(4, 6)), torch.zeros(4, 6))


def test_matrices_are_trained_weights_but_no_embeddings():
    net = nn.ModuleDict(
        {
            "linear": nn.Linear(3, 4),
            "conv": nn.Conv2d(3, 4, 3),
            "depthwise": nn.Conv1d(4, 4, 3, groups=4),
            "norm": nn.LayerNorm(4),
            "embedding": nn.Embedding(5, 4),
            "column": nn.Linear(3, 1),
            "frozen": nn.Linear(3, 4).requires_grad_(False),
        }
    )
    assert {id(each) for each in matrices(net)} == {id(net["linear"].weight), id(net["conv"].weight)}


def test_the_step_size_does_not_depend_on_the_gradient(rng):
    for scale in (1e-4, 1e4):
        weight = torch.zeros(8, 8, requires_grad=True)
        weight.grad = scale * torch.randn(8, 8, generator=rng)
        Muon([weight], lr=0.02).step()
        values = torch.linalg.svdvals(weight.detach()) / 0.02
        # The smallest singular values of a random matrix may not have reached 1.
        assert values.max() < 1.3
        assert values.median() > 0.6


def test_a_least_squares_problem_is_solved(rng):
    inputs = torch.randn(256, 8, generator=rng)
    target = 0.3 * torch.randn(4, 8, generator=rng)
    weight = torch.zeros(4, 8, requires_grad=True)
    optimizer = Muon([weight], lr=0.05)
    for step in range(300):
        optimizer.param_groups[0]["lr"] = 0.05 * (1 - step / 300)
        optimizer.zero_grad()
        (inputs @ (weight - target).T).square().mean().backward()
        optimizer.step()
    assert (weight - target).norm() < 0.01 * target.norm()


def test_decay_applies_only_to_parameters_with_a_gradient():
    idle, pulled = torch.ones(4, 4), torch.ones(4, 4)
    pulled.grad = torch.zeros(4, 4)
    Muon([idle, pulled], lr=0.1, weight_decay=0.5).step()
    assert torch.equal(idle, torch.ones(4, 4))
    torch.testing.assert_close(pulled, torch.full((4, 4), 0.95))
