"""Each token's row of a table, for the PyTorch paths."""

import torch


def rows_of_tokens(rows: torch.Tensor, row_index: torch.Tensor) -> torch.Tensor:
    """Return the row that each token reads, to be broadcast over tokens.

    Args:
        rows: [batch, rows, dim].
        row_index: [batch, tokens], clamped to the rows there are.

    Returns:
        [batch, tokens, dim]; or [batch, 1, dim] where an index in host memory shows that the tokens of a
        batch row agree, as those of one segment do: nothing is then copied for every token, nor summed over in the
        backward pass.
    """
    index = row_index.long().clamp(0, rows.shape[1] - 1)
    readable = index.device.type == "cpu" and not torch.compiler.is_compiling()
    if readable and index.shape[1] and bool((index == index[:, :1]).all()):
        index = index[:, :1]
    return rows.gather(1, index[..., None].expand(-1, -1, rows.shape[2]))
