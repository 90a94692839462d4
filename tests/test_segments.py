import pytest
import torch

from streamchar.kernels import KernelArgumentError, segment_table, slot_table


def test_segments_are_starts_and_lengths_per_row(device):
    table = segment_table([[(0, 4), (4, 0), (6, 2)], [(1, 1), (2, 3), (7, 1)]], 8, device)
    assert table.dtype == torch.int32
    assert table.device.type == device.type
    assert table.tolist() == [[[0, 4], [4, 0], [6, 2]], [[1, 1], [2, 3], [7, 1]]]


def test_slots_follow_their_spans_in_token_order(device):
    assert slot_table([[(5, 2), (0, 3)], [(2, 5)]], 8, device).tolist() == [[5, 6, 0, 1, 2], [2, 3, 4, 5, 6]]


def test_a_row_may_have_no_token_at_all():
    assert slot_table([[(3, 0)]], 8).shape == (1, 0)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "rows must be at least one batch row, got 0"),
        ([[(-1, 2)]], r"rows\[0\]\[0\].start must be at least 0, got -1"),
        ([[(0, 2)], [(0, -2)]], r"rows\[1\]\[0\].length must be at least 0, got -2"),
        ([[(6, 3)]], r"start \+ length must be at most 8 \(capacity of this cache\), got 9; shorten"),
        ([[(2, 3), (0, 3)]], r"rows\[0\]\[0\].start must be at least 3 \(end of rows\[0\]\[1\]\), got 2"),
        ([[(0, 8), (3, 1)]], "segments overlap"),
    ],
)
@pytest.mark.parametrize("build", [segment_table, slot_table])
def test_a_wrong_span_is_named_with_value_limit_and_remedy(build, rows, message):
    with pytest.raises(KernelArgumentError, match=message):
        build(rows, 8)


def test_an_empty_segment_overlaps_nothing():
    assert segment_table([[(0, 8), (3, 0)]], 8).shape == (1, 2, 2)


def test_rows_must_agree_in_number():
    with pytest.raises(KernelArgumentError, match=r"rows\[1\] must be 2 segments like rows\[0\], got 1"):
        segment_table([[(0, 1), (1, 1)], [(0, 1)]], 8)
    with pytest.raises(KernelArgumentError, match=r"rows\[1\] must be 2 tokens like rows\[0\], got 3"):
        slot_table([[(0, 2)], [(0, 3)]], 8)


def test_a_start_off_the_alignment_is_refused():
    assert segment_table([[(16, 3)]], 32, alignment=16).tolist() == [[[16, 3]]]
    with pytest.raises(KernelArgumentError, match=r"rows\[0\]\[1\].start must be a multiple of 16, got 20"):
        segment_table([[(16, 3), (20, 1)]], 32, alignment=16)
