"""Look up each token's row of a table, for the PyTorch paths."""

import torch


def rows_of_tokens(rows: torch.Tensor, row_index: torch.Tensor) -> torch.Tensor:
    """Return the row of each token, in a shape that broadcasts over tokens.

    Args:
        rows: [batch, rows, dim].
        row_index: [batch, tokens], integers; clamped to [0, rows).

    Returns:
        [batch, tokens, dim]; or [batch, 1, dim] if the index is in host memory and the tokens of each batch
        row agree, as those of one segment do. This avoids a copy per token, and a sum over tokens in the
        backward pass.
    """
    index = row_index.long().clamp(0, rows.shape[1] - 1)
    if index.device.type == "cpu" and not torch.compiler.is_compiling() and _tokens_agree(index):
        index = index[:, :1]
    return rows.gather(1, index[..., None].expand(-1, -1, rows.shape[2]))


def _tokens_agree(index: torch.Tensor) -> bool:
    return index.shape[1] > 0 and bool((index == index[:, :1]).all())
