"""Text on the time line of the audio: where each token lies, and that the plan follows the pointer."""

import math
from dataclasses import fields, replace

import pytest
import torch

from streamchar.config import OrchestratorConfig
from streamchar.model.durations import (
    TYPICAL_DURATION,
    DurationPredictor,
    planned_times,
    pointer_prior,
    token_times,
)
from streamchar.model.orchestrator import Orchestrator, OrchestratorState
from streamchar.model.packing import Prefix
from streamchar.model.pointer import PlannedPointer
from tests.closeness import assert_close
from tests.engine.small import one_pass

CONFIG = OrchestratorConfig(
    dim=64,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=16,
    ffn=96,
    vocabulary=50,
    history_seconds=0.5,
    transcript_tokens=10,
    rope_theta=10000.0,
    duration_dim=16,
)
CHANNELS, CHUNK, HISTORY, TEXT = 6, 5, 12, CONFIG.transcript_tokens
LENGTHS = ([TEXT, 4, 7, 0], [HISTORY, 9, 0, 5])
# As in test_orchestrator: a layer rounds about ten times in a row.
GROWTH = 10 * CONFIG.layers


def times_by_loop(durations, progress):
    """Walk along the tokens: each takes its duration, and what has been said lies before zero."""
    said = sum(d * min(max(progress - i, 0.0), 1.0) for i, d in enumerate(durations))
    times, start = [], -said
    for duration in durations:
        times.append(start + duration / 2)
        start += duration
    return times


@pytest.mark.parametrize("progress", [0.0, 0.25, 3.0, 4.75, 6.0])
def test_times_are_those_of_a_walk_along_the_tokens(progress, rng):
    durations = torch.rand((2, 6), generator=rng, dtype=torch.float64) * 3
    times = token_times(durations, torch.full((2,), progress, dtype=torch.float64))
    expected = torch.tensor([times_by_loop(row, progress) for row in durations.tolist()], dtype=torch.float64)
    torch.testing.assert_close(times, expected)


def test_the_token_being_said_holds_the_present():
    durations = torch.tensor([[2.0, 1.0, 4.0]])
    for progress, token in ((0.5, 0), (1.5, 1), (2.9, 2)):
        middle = token_times(durations, torch.tensor([progress]))[0, token]
        assert middle.abs() <= durations[0, token] / 2


def test_padding_never_changes_a_prediction(rng):
    predictor = DurationPredictor(50, 16).double().requires_grad_(False)
    predictor.reset_parameters(rng)
    torch.nn.init.normal_(predictor.out.weight, std=0.25, generator=rng)  # off the bounds of a logarithm
    ids = torch.randint(50, (2, 7), generator=rng)
    valid = torch.arange(7) < torch.tensor([7, 4])[:, None]
    ids[1, 4:] = -(10**9)
    alone = [predictor(ids[:1], valid[:1]), predictor(ids[1:, :4], valid[1:, :4])]
    together = predictor(ids, valid)
    longer = torch.cat((ids, torch.full((2, 5), 10**9)), 1)
    padded = predictor(longer, torch.cat((valid, torch.zeros(2, 5, dtype=torch.bool)), 1))
    assert alone[0].std() > 0.1
    for made in (together, padded):
        torch.testing.assert_close(made[0, :7], alone[0][0])
        torch.testing.assert_close(made[1, :4], alone[1][0])
        assert made[1, 4:].eq(0).all()


def test_untrained_predictions_are_of_a_typical_length(rng):
    predictor = DurationPredictor(50, 64)
    predictor.reset_parameters(rng)
    ids = torch.randint(50, (1, 40), generator=rng)
    durations = predictor(ids, torch.ones_like(ids, dtype=torch.bool))
    assert ((durations > TYPICAL_DURATION / 2) & (durations < 2 * TYPICAL_DURATION)).all()


def test_the_prior_peaks_at_the_token_planned_for_a_frame():
    times = token_times(torch.full((1, 8), 2.0), torch.tensor([2.0]))  # middles at -3, -1, 1, 3, ...
    prior = pointer_prior(times, 6)
    assert prior.shape == (1, 6, 8)
    for frame, row in enumerate(prior[0]):
        assert row.argmax() == (times[0] - (frame + 1)).abs().argmin()
    assert prior[0, 0, 2] == 0  # that token's middle is at the end of the first frame


def test_times_are_read_back_from_their_prior(rng):
    # A window of 96 tokens reaches some 150 frames ahead.
    times = torch.rand((2, 96), generator=rng) * 150 - 20
    torch.testing.assert_close(planned_times(pointer_prior(times, 32)), times, rtol=0, atol=2e-3)


def build(rng, config=CONFIG):
    orchestrator = Orchestrator(config, CHANNELS, CHUNK)
    orchestrator.reset_parameters(rng)
    with torch.no_grad():
        if orchestrator.durations is not None:
            orchestrator.durations.out.weight.normal_(generator=rng)
    return orchestrator


def draw(rng, draws=None):
    """Draw a chunk's inputs, poisoned wherever a length says that nothing lies."""
    spoken, heard = LENGTHS
    batch = len(spoken)
    ids = torch.randint(0, CONFIG.vocabulary, (batch, TEXT), generator=rng)
    history = torch.randn(batch, HISTORY, CHANNELS, generator=rng)
    for row in range(batch):
        ids[row, spoken[row] :] = -(10**9)
        history[row, heard[row] :] = float("nan")
    leading = (batch,) if draws is None else (batch, draws)
    x_audio = torch.randn(*leading, CHUNK, CHANNELS, generator=rng)
    sigma = torch.rand(leading, generator=rng)
    progress = torch.tensor([3.5, 4.0, 0.0, 0.0])
    spoken, heard = (torch.tensor(values, dtype=torch.int32) for values in LENGTHS)
    return ids, spoken, history, heard, x_audio, sigma, progress


def streamed(orchestrator, inputs):
    *prefix, x_audio, sigma, progress = inputs
    state = orchestrator.new_state(len(sigma))
    for field in fields(OrchestratorState):
        tensor = getattr(state, field.name)
        tensor.fill_(float("nan") if tensor.is_floating_point() else -7)
    orchestrator.prefill(state, Prefix(*prefix, progress))
    return orchestrator.step(state, x_audio, sigma)


def test_a_streamed_chunk_is_that_of_one_pass(rng):
    orchestrator, inputs = build(rng), draw(rng)
    with torch.no_grad():
        conditions, position = one_pass(orchestrator, *inputs)
    again = streamed(orchestrator, inputs)
    assert_close(again[0], conditions, torch.float32, 2 * GROWTH)
    assert_close(again[1], position, torch.float32, 2 * GROWTH)


def test_a_slower_pace_is_that_of_longer_durations_and_training_does_not_see_it(rng):
    orchestrator, inputs = build(rng), draw(rng)
    orchestrator.durations.out.weight.data.mul_(0.1)  # off the bounds of a logarithm
    slower = Orchestrator(replace(CONFIG, duration_scale=1.5), CHANNELS, CHUNK)
    slower.load_state_dict(orchestrator.state_dict())
    with torch.no_grad():
        plain = one_pass(orchestrator, *inputs)
        for made, expected in zip(one_pass(slower, *inputs), plain, strict=True):
            assert torch.equal(made, expected)
        orchestrator.durations.out.bias.add_(math.log(1.5))
        conditions, position = one_pass(orchestrator, *inputs)
    # An exponential of a sum rounds otherwise than a product; twenty frames away that turns a phase by 1e-5.
    for made, expected, before in zip(streamed(slower, inputs), (conditions, position), plain, strict=True):
        torch.testing.assert_close(made, expected, rtol=0, atol=1e-4)
        assert (expected - before).abs().max() > 0.01


def test_draws_that_share_a_prefix_are_those_made_one_at_a_time(rng):
    orchestrator, inputs = build(rng), draw(rng, draws=3)
    *prefix, x_audio, sigma, progress = inputs
    with torch.no_grad():
        conditions, position = one_pass(orchestrator, *inputs)
        for index in range(3):
            alone = one_pass(orchestrator, *prefix, x_audio[:, index], sigma[:, index], progress)
            assert_close(conditions[:, index], alone[0], torch.float32, 2 * GROWTH)
            assert_close(position[:, index], alone[1], torch.float32, 2 * GROWTH)


def test_draws_are_as_good_without_a_plan(rng):
    orchestrator = build(rng, replace(CONFIG, duration_dim=0))
    *prefix, x_audio, sigma, _ = draw(rng, draws=2)
    with torch.no_grad():
        conditions, position = one_pass(orchestrator, *prefix, x_audio, sigma)
        alone = one_pass(orchestrator, *prefix, x_audio[:, 1], sigma[:, 1])
    assert_close(conditions[:, 1], alone[0], torch.float32, 2 * GROWTH)
    assert_close(position[:, 1], alone[1], torch.float32, 2 * GROWTH)


def test_progress_moves_the_plan_and_the_pointer_with_it(rng):
    orchestrator, inputs = build(rng), draw(rng)
    with torch.no_grad():
        orchestrator.pointer.query.weight.zero_()  # the plan alone decides
        orchestrator.pointer.offset.weight.zero_()
        positions = [
            one_pass(orchestrator, *inputs[:6], torch.tensor([said, 0.0, 0.0, 0.0]))[1][0]
            for said in (0.0, 2.0, 6.0)
        ]
    assert (positions[0] < positions[1]).all()
    assert (positions[1] < positions[2]).all()
    assert (positions[0].diff() > 0).all()


def test_an_orchestrator_follows_its_plan_where_that_is_its_pointer(rng):
    orchestrator, inputs = build(rng), draw(rng)
    with torch.no_grad():
        conditions = one_pass(orchestrator, *inputs)[0]
        orchestrator.pointer = PlannedPointer(CHUNK)
        again, position = one_pass(orchestrator, *inputs)
        streaming = streamed(orchestrator, inputs)[1]
        other = one_pass(orchestrator, *inputs[:4], torch.randn_like(inputs[4]), *inputs[5:])[1]
    assert torch.equal(again, conditions)  # what is said depends on no pointer
    assert torch.equal(position, other)  # and the place on no audio
    assert_close(streaming, position, torch.float32, 2 * GROWTH)
    assert (position[0].diff() >= 0).all()
    assert position[3].eq(0).all()


def test_no_progress_is_the_beginning(rng):
    orchestrator, inputs = build(rng), draw(rng)
    with torch.no_grad():
        nothing = one_pass(orchestrator, *inputs[:6])[0]
        zero = one_pass(orchestrator, *inputs[:6], torch.zeros(4))[0]
        later = one_pass(orchestrator, *inputs)[0]
    assert torch.equal(nothing, zero)
    assert not torch.allclose(nothing[0], later[0])


def test_durations_are_learned_from_durations_alone(rng):
    orchestrator, inputs = build(rng), draw(rng)
    orchestrator.durations.reset_parameters(rng)  # a plan that leaves the pointer something to decide
    conditions, position = one_pass(orchestrator, *inputs)
    (conditions.square().sum() + position.sum()).backward()
    assert all(parameter.grad is None for parameter in orchestrator.durations.parameters())
    assert orchestrator.pointer.query.weight.grad.abs().max() > 0
