"""The losses of all stages have known values: for Gaussians in closed form, else calculated by hand."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from streamchar.data.renderer.character import FACE_BOX, MOUTH_BOX
from streamchar.train.batches import SpeechData
from streamchar.train.clips import FACE_WEIGHT, MOUTH_WEIGHT, pixel_weights
from streamchar.train.loop import LoopConfig
from streamchar.train.losses.spectral import spectral_loss
from streamchar.train.stages.aligner import SILENCE, AlignerStage, TokenTimeline
from streamchar.train.stages.orchestrator import DRAWS, speech_losses
from streamchar.train.stages.student import GUIDANCE, StudentStage
from streamchar.train.stages.teacher import flow_losses
from streamchar.train.stages.vae import VaeStage, edge_loss
from tests.train.gaussian import (
    EmptyCache,
    Gaussian,
    best_velocity,
    joint_data,
    least_error,
)
from tests.train.miniature import MINIATURE

#: Mean and standard deviation of video and audio; at 0, the best velocity has no error.
WIDE = {"video": (0.7, 0.5), "audio": (-1.2, 0.3)}
POINTS = {"video": (0.7, 0.0), "audio": (-1.2, 0.0)}
ROWS = 32
CPU = torch.device("cpu")


def best_loss(sigmas, **parts):
    """Return the expected loss of the best velocity, within six standard deviations.

    Args:
        sigmas: one level per row.
        parts: standard deviation of the data, and elements per row.
    """
    mean = variance = 0.0
    for std, elements in parts.values():
        errors = least_error(sigmas.double(), std) / len(sigmas)
        mean += float(errors.sum())
        # The square of a normal variable with mean square e has variance 2 e^2.
        variance += float((2 * errors**2 / elements).sum())
    # The rounding of x is divided by the level, which is as low as 1e-3.
    return pytest.approx(mean, abs=6 * variance**0.5 + 1e-5)


@pytest.mark.parametrize("data", [WIDE, POINTS], ids=["wide", "points"])
def test_the_best_velocity_has_the_flow_losses_of_its_gaussian(data, rng):
    batch = joint_data(ROWS, **data, rng=rng)
    model = Gaussian(**data)
    losses = flow_losses(model, EmptyCache(), batch, rng)
    assert len(model.sigmas) == 3 * ROWS
    for name, clean in (("video", batch.video), ("audio", batch.speech.audio)):
        part = {name: (data[name][1], clean[0].numel())}
        assert losses[name].item() == best_loss(model.sigmas, **part), name


@pytest.mark.parametrize("off", [(0.5, 0.0), (0.0, -2.0)], ids=["video", "audio"])
def test_a_flow_loss_is_the_squared_error_of_the_velocity(off, rng):
    model = Gaussian(**POINTS)
    step = model.dit.step

    def shifted(*arguments):
        return tuple(v + each for v, each in zip(step(*arguments), off, strict=True))

    model.dit.step = shifted
    losses = flow_losses(model, EmptyCache(), joint_data(ROWS, **POINTS, rng=rng), rng)
    assert losses["video"].item() == pytest.approx(off[0] ** 2, abs=1e-3)
    assert losses["audio"].item() == pytest.approx(off[1] ** 2, abs=1e-3)


class Speech:
    """A speech model with the best velocity, and given errors of pointer and durations."""

    def __init__(self, audio, truth, tokens=0.0, frames=0.0):
        self.audio, self.truth, self.tokens, self.frames = audio, truth, tokens, frames
        self.orchestrator = self
        self.sigmas = torch.empty(0)

    def velocity(self, states):
        return states

    def __call__(self, prefix, x_audio, sigma):
        assert ((prefix.progress >= 0) & (prefix.progress <= prefix.text_lengths)).all()
        self.sigmas = sigma.flatten()
        position = self.truth.position[:, None].expand(-1, DRAWS, -1)
        return best_velocity(x_audio, sigma, *self.audio), position + self.tokens

    def durations(self, text_ids, valid):
        # Durations past the end of a text must not enter the loss.
        return (self.truth.durations + self.frames).masked_fill(~valid, 1e6)


@pytest.fixture
def spoken(rng):
    """Speech with different text lengths, positions and durations."""
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
    # Smooth L1: x^2 / (2 beta) up to beta, |x| - beta / 2 above; beta is 1 token and 0.25 frames.
    [(0.2, 0.02, 0.08), (-0.1, 0.005, 0.02), (3.0, 2.5, 2.875)],
)
def test_pointer_and_duration_losses_are_smooth_l1(off, pointer, durations, spoken, rng):
    losses = speech_losses(Speech(WIDE["audio"], spoken, tokens=off, frames=off), spoken, rng)
    assert losses["pointer"].item() == pytest.approx(pointer, rel=1e-4)
    assert losses["durations"].item() == pytest.approx(durations, rel=1e-4)


def student_of(**models):
    """Return a student stage of these models, without its data and caches."""
    stage = object.__new__(StudentStage)
    stage.preset, stage.device = MINIATURE, CPU
    stage.levels = (*MINIATURE.sampler.sigmas, 0.0)
    stage.caches = dict.fromkeys(("student", "score", "teacher"), EmptyCache())
    stage.student, stage.score, stage.teacher = map(models.get, ("student", "score", "teacher"))
    return stage


def both(data, batch):
    elements = {"video": batch.video[0].numel(), "audio": batch.speech.audio[0].numel()}
    return {name: (std, elements[name]) for name, (_, std) in data.items()}


@pytest.mark.parametrize("data", [WIDE, POINTS], ids=["wide", "points"])
def test_the_regression_loss_is_at_the_students_levels(data, rng):
    batch, model = joint_data(ROWS, **data, rng=rng), Gaussian(**data)
    loss = student_of(student=model)._regression(batch, batch.speech.prefix(), rng)
    assert set(model.sigmas.tolist()) == set(torch.tensor(MINIATURE.sampler.sigmas).tolist())
    assert loss.item() == best_loss(model.sigmas, **both(data, batch))


@pytest.mark.parametrize("data", [WIDE, POINTS], ids=["wide", "points"])
def test_the_score_network_is_trained_on_generated_chunks(data, rng):
    batch = joint_data(ROWS, (5.0, 1.0), (5.0, 1.0), rng)
    made, model = joint_data(ROWS, **data, rng=rng), Gaussian(**data)
    loss = student_of(score=model)._score_loss(
        batch, batch.speech.prefix(), (made.video, made.speech.audio), rng
    )
    assert loss.item() == best_loss(model.sigmas, **both(data, made))


def test_matching_moves_chunks_from_the_score_to_the_teacher(rng):
    # With no deviation, each network predicts its mean at every level.
    score = Gaussian(video=(0.4, 0.0), audio=(0.1, 0.0))
    teacher = Gaussian(video=(1.0, 0.0), audio=(-0.5, 0.0), silent=-0.2)
    stage, batch = student_of(score=score, teacher=teacher), joint_data(4, **WIDE, rng=rng)
    made = batch.video.clone().requires_grad_(), batch.speech.audio.clone().requires_grad_()
    loss = stage._matching(batch, batch.speech.prefix(), made, rng)
    loss.backward()
    # Guidance moves the teacher's audio away from its prediction without text.
    real = 1.0, -0.2 + GUIDANCE * (-0.5 - -0.2)
    total = 0.0
    for part, own, wanted in zip(made, (0.4, 0.1), real, strict=True):
        spread = (part.detach() - wanted).abs().flatten(1).mean(1).view(-1, *(1,) * (part.dim() - 1))
        pull = (own - wanted) / spread
        # The rounding of x is divided by the level, which is as low as 0.02.
        torch.testing.assert_close(part.grad, (pull / part.numel()).expand_as(part), rtol=1e-4, atol=0)
        total += 0.5 * float(pull.square().mean())
    assert loss.item() == pytest.approx(total, rel=1e-4)


def test_a_generated_chunk_is_at_the_mean_of_its_gaussian(rng):
    batch = joint_data(4, **WIDE, rng=rng)
    for _ in range(MINIATURE.sampler.steps):
        video, audio = student_of(student=Gaussian(**POINTS))._generate(batch, batch.speech.prefix(), rng)
        torch.testing.assert_close(video, torch.full_like(video, 0.7), rtol=0, atol=1e-5)
        torch.testing.assert_close(audio, torch.full_like(audio, -1.2), rtol=0, atol=1e-5)


def test_the_edge_loss_equals_a_calculation_by_hand():
    real = torch.tensor([[0.0, 1.0, 3.0], [0.0, 0.0, 0.0]])
    made = torch.tensor([[0.0, 2.0, 2.0], [1.0, 0.0, 0.0]])
    ones, weights = torch.ones(2, 3), torch.tensor([[1.0, 2.0, 9.0], [4.0, 8.0, 9.0]])
    # Along rows 1, 2, 0, 0 against 2, 0, -1, 0; along columns 0, -1, -3 against 1, -2, -2.
    assert edge_loss(made, real, ones).item() == pytest.approx((1 + 2 + 1 + 0) / 4 + (1 + 1 + 1) / 3)
    rows, columns = (1 * 1 + 2 * 2 + 4 * 1 + 8 * 0) / 4, (1 * 1 + 2 * 1 + 9 * 1) / 3
    assert edge_loss(made, real, weights).item() == pytest.approx(rows + columns)
    assert edge_loss(made, made + 0.3, weights).item() == pytest.approx(0, abs=1e-6)
    assert edge_loss(-made, made, ones).item() == pytest.approx(2 * ((2 + 0 + 1 + 0) / 4 + (1 + 2 + 2) / 3))


def test_pixel_distances_equal_a_calculation_by_hand():
    stage = SimpleNamespace(weights=torch.tensor([[0.5, 1.5], [1.0, 1.0]]))
    frames = torch.zeros(1, 1, 1, 2, 2)
    made = torch.tensor([[2.0, -4.0], [0.0, 1.0]]).view_as(frames)
    pixels, squares, edges = VaeStage._distances(stage, made, frames)
    assert pixels.item() == pytest.approx((0.5 * 2 + 1.5 * 4 + 1) / 4)
    assert squares.item() == pytest.approx((0.5 * 4 + 1.5 * 16 + 1) / 4)
    assert edges.item() == pytest.approx((0.5 * 6 + 1.0 * 1) / 2 + (0.5 * 2 + 1.5 * 5) / 2)


def test_pixel_weights_depend_on_the_box():
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
    # The mouth is inside the face, and the face inside the picture.
    counted[1.0] -= counted[FACE_WEIGHT]
    counted[FACE_WEIGHT] -= counted[MOUTH_WEIGHT]
    for weight, count in counted.items():
        assert int(((relative - weight).abs() < 1e-4).sum()) == count, weight


class Recording(SimpleNamespace):
    """Token 5 for 1.5 frames, token 9 for 0.5 frames, then 2 frames of silence."""

    def __init__(self):
        super().__init__(frames=4, tokens=np.array([5, 9], np.int16), ends=np.array([1.5, 2.0], np.float32))


def test_the_aligner_loss_is_the_cross_entropy_of_the_shares(rng):
    vocabulary, losses = 12, []
    stage = object.__new__(AlignerStage)
    stage.config, stage.device, stage.vocabulary = LoopConfig(4, 0.1, batch=3), CPU, vocabulary
    stage.timeline = TokenTimeline([Recording()], range(1))
    stage.data = SpeechData([Recording()], torch.zeros(4, 7))
    stage.trainables = {"aligner": SimpleNamespace(update=lambda loss, _: losses.append(loss) or 0.0)}
    probs = torch.full((vocabulary,), 1e-6)
    probs[[SILENCE, 5, 9]] = torch.tensor([0.5, 0.3, 0.2])
    stage.classifier = lambda latents: probs.log().expand(*latents.shape[:2], -1)
    logged = stage.update(0, rng)
    by_hand = -(2 * math.log(0.5) + 1.5 * math.log(0.3) + 0.5 * math.log(0.2)) / 4
    assert losses[0].item() == pytest.approx(by_hand, rel=1e-5)
    assert logged["entropy"] == losses[0].item()


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_the_spectral_loss_of_a_gain_depends_on_its_logarithm(factor, rng):
    # Loud enough to make FLOOR, which is added before the logarithm, negligible.
    real = 1e6 * torch.randn(2, 6000, generator=rng)
    # The errors of magnitudes, of their logarithms, and twice those of the mel energies.
    known = abs(factor - 1) + 3 * abs(math.log(factor))
    assert spectral_loss(factor * real, real).item() == pytest.approx(known, rel=1e-4)
