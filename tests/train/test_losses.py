"""Every loss of every stage on an answer that is known: Gaussians in closed form, the rest by hand."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from streamchar.data.character import FACE_BOX, MOUTH_BOX
from streamchar.train.aligner import SILENCE, AlignerStage, Timeline
from streamchar.train.clips import FACE_WEIGHT, MOUTH_WEIGHT, pixel_weights
from streamchar.train.loop import LoopConfig
from streamchar.train.orchestrator import DRAWS, speech_losses
from streamchar.train.spectral import spectral_loss
from streamchar.train.student import GUIDANCE, StudentStage
from streamchar.train.teacher import flow_losses
from streamchar.train.vae import VaeStage, edge_loss
from tests.train.gaussian import (
    MINIATURE,
    Forgetful,
    Gaussian,
    best_velocity,
    joint_data,
    least_error,
)

#: Mean and deviation of video and audio; a deviation of 0 leaves the best velocity no error at all.
WIDE = {"video": (0.7, 0.5), "audio": (-1.2, 0.3)}
POINTS = {"video": (0.7, 0.0), "audio": (-1.2, 0.0)}
ROWS = 32
CPU = torch.device("cpu")


def best_loss(sigmas, **parts):
    """Return the loss of the best velocity, six deviations of a draw to either side.

    Args:
        sigmas: a level a row.
        parts: deviation of the data, and elements of a row.
    """
    mean = variance = 0.0
    for std, elements in parts.values():
        errors = least_error(sigmas.double(), std) / len(sigmas)
        mean += float(errors.sum())
        # A squared normal variable of mean e has the variance 2 e^2.
        variance += float((2 * errors**2 / elements).sum())
    # At the lowest levels, 1e-3, the rounding of x is divided by the level.
    return pytest.approx(mean, abs=6 * variance**0.5 + 1e-5)


@pytest.mark.parametrize("data", [WIDE, POINTS], ids=["wide", "points"])
def test_the_best_velocity_has_the_flow_losses_of_its_gaussian(data, rng):
    batch = joint_data(ROWS, **data, rng=rng)
    model = Gaussian(**data)
    losses = flow_losses(model, Forgetful(), batch, rng)
    assert len(model.sigmas) == 3 * ROWS
    for name, clean in (("video", batch.video), ("audio", batch.speech.audio)):
        part = {name: (data[name][1], clean[0].numel())}
        assert losses[name].item() == best_loss(model.sigmas, **part), name


@pytest.mark.parametrize("off", [(0.5, 0.0), (0.0, -2.0)], ids=["video", "audio"])
def test_a_flow_loss_is_the_square_of_what_a_velocity_is_off_by(off, rng):
    model = Gaussian(**POINTS)
    step = model.dit.step

    def shifted(*arguments):
        return tuple(v + each for v, each in zip(step(*arguments), off, strict=True))

    model.dit.step = shifted
    losses = flow_losses(model, Forgetful(), joint_data(ROWS, **POINTS, rng=rng), rng)
    assert losses["video"].item() == pytest.approx(off[0] ** 2, abs=1e-3)
    assert losses["audio"].item() == pytest.approx(off[1] ** 2, abs=1e-3)


class Speech:
    """A speech model with the best velocity of its sound, and pointer and durations off by so much."""

    def __init__(self, audio, truth, tokens=0.0, frames=0.0):
        self.audio, self.truth, self.tokens, self.frames = audio, truth, tokens, frames
        self.orchestrator = self
        self.sigmas = torch.empty(0)

    def velocity(self, states):
        return states

    def __call__(self, text_ids, text_lengths, history, history_lengths, x_audio, sigma, progress):
        assert ((progress >= 0) & (progress <= text_lengths)).all()
        self.sigmas = sigma.flatten()
        position = self.truth.position[:, None].expand(-1, DRAWS, -1)
        return best_velocity(x_audio, sigma, *self.audio), position + self.tokens

    def durations(self, text_ids, valid):
        # What is planned past the end of a text must count for nothing.
        return (self.truth.durations + self.frames).masked_fill(~valid, 1e6)


@pytest.fixture
def spoken(rng):
    """Speech in rows of different length, with places and durations."""
    speech = joint_data(ROWS, **WIDE, rng=rng).speech
    text = speech.text_ids.shape[1]
    return replace(
        speech,
        text_lengths=torch.randint(4, text + 1, (ROWS,), generator=rng, dtype=torch.int32),
        position=10 * torch.rand(speech.position.shape, generator=rng),
        durations=4 * torch.rand(ROWS, text, generator=rng),
    )


def test_the_best_velocity_has_the_speech_loss_of_its_gaussian(spoken, rng):
    model = Speech(WIDE["audio"], spoken)
    losses = speech_losses(model, spoken, rng)
    assert losses["flow"].item() == best_loss(model.sigmas, audio=(WIDE["audio"][1], spoken.audio[0].numel()))
    assert losses["pointer"].item() == 0
    assert losses["durations"].item() == 0


@pytest.mark.parametrize(
    ("off", "pointer", "durations"),
    # Smooth L1: x^2 / (2 beta) up to beta, |x| - beta / 2 from there on; beta is 1 token and 0.25 frames.
    [(0.2, 0.02, 0.08), (-0.1, 0.005, 0.02), (3.0, 2.5, 2.875)],
)
def test_pointer_and_durations_are_off_by_what_is_known(off, pointer, durations, spoken, rng):
    losses = speech_losses(Speech(WIDE["audio"], spoken, tokens=off, frames=off), spoken, rng)
    assert losses["pointer"].item() == pytest.approx(pointer, rel=1e-4)
    assert losses["durations"].item() == pytest.approx(durations, rel=1e-4)


def student_of(**models):
    """Return a student's stage of these models, without what building one takes."""
    stage = object.__new__(StudentStage)
    stage.preset, stage.device = MINIATURE, CPU
    stage.levels = (*MINIATURE.sampler.sigmas, 0.0)
    stage.memory = dict.fromkeys(("student", "score", "teacher"), Forgetful())
    stage.student, stage.score, stage.teacher = map(models.get, ("student", "score", "teacher"))
    return stage


def both(data, batch):
    elements = {"video": batch.video[0].numel(), "audio": batch.speech.audio[0].numel()}
    return {name: (std, elements[name]) for name, (_, std) in data.items()}


def given(batch):
    return batch.speech.progress, batch.speech.history


@pytest.mark.parametrize("data", [WIDE, POINTS], ids=["wide", "points"])
def test_the_best_velocity_has_the_regression_loss_of_its_gaussian_at_the_students_levels(data, rng):
    batch, model = joint_data(ROWS, **data, rng=rng), Gaussian(**data)
    loss = student_of(student=model)._regression(batch, given(batch), rng)
    assert set(model.sigmas.tolist()) == set(torch.tensor(MINIATURE.sampler.sigmas).tolist())
    assert loss.item() == best_loss(model.sigmas, **both(data, batch))


@pytest.mark.parametrize("data", [WIDE, POINTS], ids=["wide", "points"])
def test_the_score_is_trained_on_what_was_made(data, rng):
    batch = joint_data(ROWS, (5.0, 1.0), (5.0, 1.0), rng)
    made, model = joint_data(ROWS, **data, rng=rng), Gaussian(**data)
    loss = student_of(score=model)._score_loss(batch, given(batch), (made.video, made.speech.audio), rng)
    assert loss.item() == best_loss(model.sigmas, **both(data, made))


def test_matching_moves_what_was_made_from_where_its_score_is_to_where_the_teacher_is(rng):
    # Points: what each of them predicts is its mean, at any level.
    score = Gaussian(video=(0.4, 0.0), audio=(0.1, 0.0))
    teacher = Gaussian(video=(1.0, 0.0), audio=(-0.5, 0.0), silent=-0.2)
    stage, batch = student_of(score=score, teacher=teacher), joint_data(4, **WIDE, rng=rng)
    made = batch.video.clone().requires_grad_(), batch.speech.audio.clone().requires_grad_()
    loss = stage._matching(batch, given(batch), made, rng)
    loss.backward()
    # The teacher's word on the sound is led away from what it says without the text.
    real = 1.0, -0.2 + GUIDANCE * (-0.5 - -0.2)
    total = 0.0
    for part, own, wanted in zip(made, (0.4, 0.1), real, strict=True):
        spread = (part.detach() - wanted).abs().flatten(1).mean(1).view(-1, *(1,) * (part.dim() - 1))
        pull = (own - wanted) / spread
        # Rounding of x over the lowest level, 0.02.
        torch.testing.assert_close(part.grad, (pull / part.numel()).expand_as(part), rtol=1e-4, atol=0)
        total += 0.5 * float(pull.square().mean())
    assert loss.item() == pytest.approx(total, rel=1e-4)


def test_a_chunk_that_is_made_ends_where_its_gaussian_is(rng):
    batch = joint_data(4, **WIDE, rng=rng)
    for _ in range(MINIATURE.sampler.steps):
        video, audio = student_of(student=Gaussian(**POINTS))._generate(batch, given(batch), rng)
        torch.testing.assert_close(video, torch.full_like(video, 0.7), rtol=0, atol=1e-5)
        torch.testing.assert_close(audio, torch.full_like(audio, -1.2), rtol=0, atol=1e-5)


def test_edges_are_compared_by_hand():
    real = torch.tensor([[0.0, 1.0, 3.0], [0.0, 0.0, 0.0]])
    made = torch.tensor([[0.0, 2.0, 2.0], [1.0, 0.0, 0.0]])
    ones, weights = torch.ones(2, 3), torch.tensor([[1.0, 2.0, 9.0], [4.0, 8.0, 9.0]])
    # Along rows 1, 2, 0, 0 against 2, 0, -1, 0; along columns 0, -1, -3 against 1, -2, -2.
    assert edge_loss(made, real, ones).item() == pytest.approx((1 + 2 + 1 + 0) / 4 + (1 + 1 + 1) / 3)
    rows, columns = (1 * 1 + 2 * 2 + 4 * 1 + 8 * 0) / 4, (1 * 1 + 2 * 1 + 9 * 1) / 3
    assert edge_loss(made, real, weights).item() == pytest.approx(rows + columns)
    assert edge_loss(made, made + 0.3, weights).item() == pytest.approx(0, abs=1e-6)
    assert edge_loss(-made, made, ones).item() == pytest.approx(2 * ((2 + 0 + 1 + 0) / 4 + (1 + 2 + 2) / 3))


def test_distances_of_pixels_are_weighted_by_hand():
    stage = SimpleNamespace(weights=torch.tensor([[0.5, 1.5], [1.0, 1.0]]))
    frames = torch.zeros(1, 1, 1, 2, 2)
    made = torch.tensor([[2.0, -4.0], [0.0, 1.0]]).view_as(frames)
    pixels, squares, edges = VaeStage._distances(stage, made, frames)
    assert pixels.item() == pytest.approx((0.5 * 2 + 1.5 * 4 + 1) / 4)
    assert squares.item() == pytest.approx((0.5 * 4 + 1.5 * 16 + 1) / 4)
    assert edges.item() == pytest.approx((0.5 * 6 + 1.0 * 1) / 2 + (0.5 * 2 + 1.5 * 5) / 2)


def test_pixels_weigh_by_the_box_they_are_in():
    height, width = 100, 50
    weights = pixel_weights(height, width)
    assert weights.mean().item() == pytest.approx(1.0, rel=1e-5)
    relative = weights / weights[0, 0]
    counted = {1.0: height * width}
    for (left, top, right, bottom), weight in ((FACE_BOX, FACE_WEIGHT), (MOUTH_BOX, MOUTH_WEIGHT)):
        first, last = (int(top * height), int(left * width)), (round(bottom * height), round(right * width))
        for row, column in (first, (last[0] - 1, last[1] - 1)):
            assert relative[row, column].item() == pytest.approx(weight), (row, column)
        counted[weight] = (last[0] - first[0]) * (last[1] - first[1])
    # The mouth lies in the face and the face in the picture.
    counted[1.0] -= counted[FACE_WEIGHT]
    counted[FACE_WEIGHT] -= counted[MOUTH_WEIGHT]
    for weight, count in counted.items():
        assert int(((relative - weight).abs() < 1e-4).sum()) == count, weight


class Recording(SimpleNamespace):
    """Token 5 for a frame and a half, token 9 for half a frame, then two frames of silence."""

    def __init__(self):
        super().__init__(frames=4, tokens=np.array([5, 9], np.int16), ends=np.array([1.5, 2.0], np.float32))


def test_the_aligners_loss_is_the_cross_entropy_of_the_shares(rng):
    vocabulary, losses = 12, []
    stage = object.__new__(AlignerStage)
    stage.config, stage.device, stage.vocabulary = LoopConfig(4, 0.1, batch=3), CPU, vocabulary
    stage.timeline, stage.latents = Timeline([Recording()], range(1)), torch.zeros(4, 7)
    stage.trained = {"aligner": SimpleNamespace(update=lambda loss, _: losses.append(loss) or 0.0)}
    chances = torch.full((vocabulary,), 1e-6)
    chances[[SILENCE, 5, 9]] = torch.tensor([0.5, 0.3, 0.2])
    stage.classifier = lambda latents: chances.log().expand(*latents.shape[:2], -1)
    logged = stage.update(0, rng)
    by_hand = -(2 * math.log(0.5) + 1.5 * math.log(0.3) + 0.5 * math.log(0.2)) / 4
    assert losses[0].item() == pytest.approx(by_hand, rel=1e-5)
    assert logged["entropy"] == losses[0].item()


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_a_sound_that_is_louder_by_a_factor_has_the_spectral_loss_of_its_logarithm(factor, rng):
    # So loud that what is added to a magnitude before its logarithm does not count.
    real = 1e6 * torch.randn(2, 6000, generator=rng)
    # Magnitudes off by a share, their logarithms, and twice those of the mel energies.
    known = abs(factor - 1) + 3 * abs(math.log(factor))
    assert spectral_loss(factor * real, real).item() == pytest.approx(known, rel=1e-4)
