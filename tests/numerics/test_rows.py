"""Rows of tokens: one broadcast row if the host can see that the tokens agree, otherwise gathered."""

import pytest
import torch

from streamchar.kernels._shared.rows import rows_of_tokens


def by_loop(rows, index):
    last = rows.shape[1] - 1
    return torch.stack(
        [
            torch.stack([table[min(max(i, 0), last)] for i in line])
            for table, line in zip(rows, index.tolist())
        ]
    )


@pytest.mark.parametrize(
    "index",
    [[[0, 2, 1, 0], [1, 1, 2, 2]], [[2, 2, 2, 2], [0, 0, 0, 0]], [[1, 1, 1, 1], [0, 0, 0, 1]]],
    ids=["mixed", "one each", "one row mixed"],
)
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
def test_every_token_reads_its_row(index, dtype, rng):
    rows = torch.randn(2, 3, 5, generator=rng)
    index = torch.tensor(index, dtype=dtype)
    read = rows_of_tokens(rows, index)
    assert torch.equal(read.expand(2, 4, 5), by_loop(rows, index))


def test_tokens_that_agree_share_one_row():
    rows, index = torch.randn(2, 3, 5), torch.tensor([[1, 1, 1], [2, 2, 2]])
    assert rows_of_tokens(rows, index).shape == (2, 1, 5)
    index[1, 2] = 0
    assert rows_of_tokens(rows, index).shape == (2, 3, 5)


def test_indices_outside_the_table_are_clamped():
    rows = torch.randn(1, 3, 5)
    assert torch.equal(rows_of_tokens(rows, torch.tensor([[-4, 9]])), rows[:, [0, 2]])
    assert torch.equal(rows_of_tokens(rows, torch.tensor([[7, 9]])), rows[:, 2:])


def test_no_tokens_give_an_empty_result():
    assert rows_of_tokens(torch.randn(2, 3, 5), torch.zeros(2, 0, dtype=torch.int64)).shape == (2, 0, 5)


@pytest.mark.parametrize("index", [[[1, 1, 1], [2, 2, 2]], [[0, 1, 1], [2, 2, 0]]], ids=["agree", "differ"])
def test_gradients_are_those_of_reading_token_by_token(index, rng):
    rows = torch.randn(2, 3, 5, generator=rng, dtype=torch.float64)
    index, gradient = torch.tensor(index), torch.randn(2, 3, 5, generator=rng, dtype=torch.float64)
    ours, theirs = (rows.clone().requires_grad_() for _ in range(2))
    (rows_of_tokens(ours, index) * gradient).sum().backward()
    (by_loop(theirs, index) * gradient).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_compiled_code_reads_no_value_on_the_host():
    rows, index = torch.randn(2, 3, 5), torch.ones(2, 4, dtype=torch.int64)
    seen = []

    def backend(module, inputs):
        seen.append(module)
        return module.forward

    read = torch.compile(rows_of_tokens, backend=backend, fullgraph=True)(rows, index)
    assert seen
    assert torch.equal(read, rows_of_tokens(rows, index).expand(2, 4, 5))
