"""The pointer reads the middle of the token it attends to, inside the transcript, and can be trained."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from streamchar.model.durations import pointer_prior, token_times
from streamchar.model.pointer import PlannedPointer, ProgressPointer, pointer_loss
from streamchar.text.transcript_window import Word
from tests.closeness import assert_close

DIM, CAPACITY = 16, 7


def sharp(device, dtype=torch.float64, offset=0.0):
    """Return a pointer whose query and key are the identity, with a constant offset in tokens."""
    pointer = ProgressPointer(DIM).to(device=device, dtype=dtype)
    with torch.no_grad():
        for linear in (pointer.query, pointer.key):
            linear.weight.copy_(torch.eye(DIM))
            linear.bias.zero_()
        pointer.offset.weight.zero_()
        pointer.offset.bias.fill_(torch.atanh(torch.tensor(offset / pointer.reach)).item())
    return pointer


def transcript(device, dtype=torch.float64):
    """Return states that no two tokens share, loud enough for a softmax to pick one."""
    return 60 * torch.eye(CAPACITY, DIM, device=device, dtype=dtype)[None]


def rows(device, *lengths):
    return torch.tensor(lengths, dtype=torch.int32, device=device)


def test_attention_on_token_i_reads_its_middle(device):
    states = transcript(device)
    position = sharp(device)(states, states, rows(device, CAPACITY))
    # exp(-60 * 60 / 4) is 0 even in float64: what remains is one rounding of a sum.
    expected = torch.arange(CAPACITY, device=device) + 0.5
    assert_close(position[0], expected.double(), torch.float64, growth=2)


def test_even_attention_reads_the_middle_of_the_used_tokens(device):
    states = torch.ones(3, CAPACITY, DIM, device=device, dtype=torch.float64)
    position = sharp(device)(states[:, :2], states, rows(device, 7, 4, 1))
    expected = torch.tensor([[3.5, 3.5], [2.0, 2.0], [0.5, 0.5]], device=device).double()
    assert_close(position, expected, torch.float64, growth=CAPACITY)


@pytest.mark.parametrize(("offset", "expected"), [(1.25, 3.75), (-1.25, 1.25), (3.5, 4.0), (-3.5, 0.0)])
def test_the_offset_moves_the_reading_and_the_ends_clamp_it(offset, expected, device):
    states = transcript(device)
    position = sharp(device, offset=offset)(states[:, 2:3], states, rows(device, 4))
    # tanh of the fp32 atanh that set the offset: fp32 precision.
    assert_close(position, torch.full_like(position, expected), torch.float32, growth=4)


def test_the_offset_never_passes_its_reach(device):
    pointer = sharp(device)
    with torch.no_grad():
        pointer.offset.bias.fill_(1e9)
    states = transcript(device)
    position = pointer(states[:, :1], states, rows(device, CAPACITY))
    assert position.item() == pytest.approx(0.5 + pointer.reach)


@pytest.mark.parametrize("heads", [1, 4])
def test_several_heads_average_their_readings(heads, device, rng):
    pointer = ProgressPointer(DIM, heads).to(device).double()
    conditions = torch.randn(2, 3, DIM, generator=rng, dtype=torch.float64).to(device)
    states = torch.randn(2, CAPACITY, DIM, generator=rng, dtype=torch.float64).to(device)
    lengths = [5, 7]
    position = pointer(conditions, states, rows(device, *lengths))
    width = DIM // heads
    for row in range(2):
        for token in range(3):
            q, reading = pointer.query(conditions[row, token]), 0.0
            for head in range(heads):
                part = slice(head * width, (head + 1) * width)
                logits = [q[part] @ pointer.key(state)[part] for state in states[row, : lengths[row]]]
                weights = torch.stack(logits).div(width**0.5).softmax(0)
                reading += sum(w * (i + 0.5) for i, w in enumerate(weights)) / heads
            reading += pointer.reach * torch.tanh(pointer.offset(conditions[row, token])).squeeze()
            expected = reading.clamp(0, lengths[row])
            # Two projections, a softmax and a sum: some ten roundings, those of the logits in the exponent.
            assert_close(position[row, token], expected, torch.float64, growth=40)


def test_a_transcript_without_tokens_is_at_position_zero_with_finite_gradients(device, rng):
    pointer = ProgressPointer(DIM, 2).to(device)
    conditions = torch.randn(2, 3, DIM, generator=rng).to(device).requires_grad_()
    states = torch.full((2, CAPACITY, DIM), float("nan"), device=device)
    states[1, 0] = 1.0
    position = pointer(conditions, states, rows(device, 0, 1))
    assert (position[0] == 0).all()
    assert ((position[1] >= 0) & (position[1] <= 1)).all()
    position.sum().backward()
    assert torch.isfinite(conditions.grad).all()
    assert all(torch.isfinite(parameter.grad).all() for parameter in pointer.parameters())


def test_padded_states_do_not_leak_even_as_nan(device, rng):
    pointer = ProgressPointer(DIM, 2).to(device)
    conditions = torch.randn(2, 3, DIM, generator=rng).to(device)
    states = torch.randn(2, CAPACITY, DIM, generator=rng).to(device)
    lengths = rows(device, 3, 6)
    clean = pointer(conditions, states, lengths)
    states[0, 3:], states[1, 6:] = float("nan"), float("inf")
    assert torch.equal(pointer(conditions, states, lengths), clean)


def test_positions_are_exact_in_fp32_although_the_model_is_bf16(device):
    # bf16 has 8 bits: 300.5 would be read as 300 or 302.
    pointer = sharp(device, torch.bfloat16)
    states = torch.zeros(1, 400, DIM, device=device, dtype=torch.bfloat16)
    states[0, 300] = 60.0
    position = pointer(states[:, 300:301], states, rows(device, 400))
    assert position.dtype == torch.float32
    assert position.item() == pytest.approx(300.5, abs=1e-4)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(0, 2**31), st.floats(0.1, 100.0))
def test_positions_stay_inside_the_transcript(seed, scale):
    rng = torch.Generator().manual_seed(seed)
    pointer = ProgressPointer(DIM, 2)
    lengths = torch.randint(0, CAPACITY + 1, (4,), generator=rng, dtype=torch.int32)
    conditions, states = (scale * torch.randn(4, n, DIM, generator=rng) for n in (5, CAPACITY))
    position = pointer(conditions, states, lengths)
    assert ((position >= 0) & (position <= lengths[:, None])).all()


def test_gradients_reach_every_parameter_and_both_inputs(device, rng):
    pointer = ProgressPointer(DIM, 2).to(device)
    conditions = torch.randn(2, 3, DIM, generator=rng).to(device).requires_grad_()
    states = torch.randn(2, CAPACITY, DIM, generator=rng).to(device).requires_grad_()
    position = pointer(conditions, states, rows(device, 4, 7))
    target = torch.tensor([[0.0, 1.0, 2.0], [5.0, 6.0, 7.0]], device=device)
    pointer_loss(position, target, torch.ones_like(target, dtype=torch.bool)).backward()
    assert conditions.grad.abs().sum() > 0
    assert (states.grad[0, :4].abs().sum(-1) > 0).all()
    assert (states.grad[0, 4:] == 0).all()
    for name, parameter in pointer.named_parameters():
        # The same number added to all logits changes no softmax.
        assert name == "key.bias" or parameter.grad.abs().max() > 0, name


def test_a_position_clamped_at_the_end_can_come_back(device):
    pointer = sharp(device, offset=3.9)
    states = transcript(device)
    optimizer = torch.optim.SGD([pointer.offset.bias], lr=0.05)
    target, mask = torch.full((1, 1), 5.0, device=device), torch.ones(1, 1, dtype=torch.bool, device=device)
    for _ in range(200):
        position = pointer(states[:, 4:5], states, rows(device, 6))
        optimizer.zero_grad()
        pointer_loss(position, target, mask).backward()
        optimizer.step()
    assert position.item() == pytest.approx(5.0, abs=0.05)


def test_the_loss_is_smooth_l1_over_what_has_a_target(device):
    position = torch.tensor([[1.0, 2.0, 9.0], [4.0, 5.0, 6.0]], device=device, requires_grad=True)
    nan = float("nan")
    target = torch.tensor([[1.5, nan, 6.0], [nan, 5.0, nan]], device=device)
    loss = pointer_loss(position, target, ~target.isnan())
    assert loss.item() == pytest.approx((0.5 * 0.25 + 2.5 + 0.0) / 3)
    loss.backward()
    assert torch.equal(position.grad.cpu(), torch.tensor([[-0.5, 0.0, 1.0], [0.0, 0.0, 0.0]]) / 3)


def test_the_loss_of_nothing_is_zero(device):
    position = torch.ones(1, 2, device=device, requires_grad=True)
    loss = pointer_loss(position, torch.full_like(position, float("nan")), position.detach() < 0)
    loss.backward()
    assert loss.item() == 0
    assert (position.grad == 0).all()


WORDS = (Word(3, "Say", 0, 2), Word(4, "it,", 2, 6), Word(5, "please.", 7, 9))


@pytest.mark.parametrize(
    ("arguments", "says"), [((16, 3), "heads must be a divisor"), ((16, 1, 0.1), "reach")]
)
def test_a_pointer_that_cannot_be_built_is_refused(arguments, says):
    with pytest.raises(ValueError, match=says):
        ProgressPointer(*arguments)


def planned(durations, progress, lengths, frames=8, draws=1):
    """Return what a pointer that follows the plan says of even or uneven durations."""
    times = token_times(torch.tensor(durations), torch.tensor(progress))
    prior = pointer_prior(times, frames).repeat(1, draws, 1)
    batch, tokens, capacity = prior.shape
    conditions, keys = (torch.full((batch, size, DIM), torch.nan) for size in (tokens, capacity))
    return PlannedPointer(frames).locate(conditions, keys, torch.tensor(lengths, dtype=torch.int32), prior)


def test_the_plan_is_followed_frame_by_frame_from_where_the_speech_has_come_to():
    position = planned([[2.0] * 7, [4.0] * 7], [0.5, 2.0], [7, 7])
    expected = torch.tensor([[0.5 + (f + 1) / 2 for f in range(8)], [2 + (f + 1) / 4 for f in range(8)]])
    torch.testing.assert_close(position, expected.clamp_max(7))


def test_uneven_durations_are_met_at_the_middle_of_every_token():
    # Middles at 1, 4, 6.5 and 7.5 of tokens that take 2, 4, 1 and 1 frames.
    position = planned([[2.0, 4.0, 1.0, 1.0]], [0.0], [4])[0]
    assert position[[0, 3]].tolist() == pytest.approx([0.5, 1.5], abs=1e-4)
    assert position[6].item() == pytest.approx(3.0, abs=1e-4)
    assert (position.diff() > 0).all()


def test_a_plan_ends_where_the_text_ends_and_is_empty_without_one():
    position = planned([[1.5] * 3 + [0.0] * 4, [0.0] * 7, [1.5] + [0.0] * 6], [0.0, 0.0, 0.0], [3, 0, 1])
    assert position[0, -1] == 3
    assert position[1].eq(0).all()
    assert position[2].tolist() == pytest.approx([2 / 3] + [1.0] * 7)


def test_a_plan_serves_every_draw_of_its_chunk():
    one, three = (planned([[2.0, 3.0, 1.0] * 3], [1.0], [9], draws=draws) for draws in (1, 3))
    assert torch.equal(three, one.repeat(1, 3))


def test_a_plan_taken_up_chunk_after_chunk_arrives_on_time():
    durations, progress, ends = [1.0, 3.0, 2.0, 6.0, 1.0, 1.5] * 4, 0.0, []
    for _ in range(4):
        progress = planned([durations], [progress], [24], frames=8)[0, -1].item()
        ends.append(progress)
    exact = [token_at(durations, 8.0 * (chunk + 1)) for chunk in range(4)]
    assert ends == pytest.approx(exact, abs=1.0)


def token_at(durations, time):
    """Walk along the tokens until so much time has gone."""
    for index, duration in enumerate(durations):
        if time < duration:
            return index + time / duration
        time -= duration
    return float(len(durations))


def test_without_a_plan_there_is_nothing_to_follow():
    states = torch.zeros(1, CAPACITY, DIM)
    with pytest.raises(ValueError, match="set duration_dim"):
        PlannedPointer(4)(states[:, :4], states, torch.tensor([3], dtype=torch.int32))
    with pytest.raises(ValueError, match="at least 2"):
        PlannedPointer(1)
