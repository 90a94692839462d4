"""Adversarial losses on known logits, and the picture discriminator."""

import pytest
import torch
import torch.nn.functional as F

from streamchar.train.loop import LoopConfig, Trainable
from streamchar.train.losses.adversarial import (
    adversarial_losses,
    discriminator_loss,
    feature_loss,
    generator_loss,
)
from streamchar.train.losses.picture_discriminator import PictureDiscriminator, random_pairs


def logits(*values):
    """Return the output of discriminators with these logits: features first, logits last."""
    return [[torch.ones(2, 3), torch.full((2, 4), value)] for value in values]


def test_the_hinge_loss_is_zero_beyond_the_margin():
    assert discriminator_loss(logits(1.0, 5.0), logits(-1.0, -3.0)) == 0
    assert discriminator_loss(logits(0.0), logits(0.0)) == 2
    # The mean of (1 - 0.5) + (1 + 2) and (1 + 1) + 0.
    assert discriminator_loss(logits(0.5, -1.0), logits(2.0, -4.0)) == pytest.approx(2.75)


def test_the_generator_loss_is_unbounded():
    assert generator_loss(logits(2.0, -4.0)) == pytest.approx(1.0)
    assert generator_loss(logits(9.0)) == -9


def test_the_feature_loss_is_relative_and_ignores_logits():
    real, made = logits(3.0), logits(-3.0)
    assert feature_loss(real, made) == 0
    made[0][0] = torch.full((2, 3), 1.5)
    assert feature_loss(real, made) == pytest.approx(0.5)
    for features in (real, made):
        features[0][0] = features[0][0] * 10
    assert feature_loss(real, made) == pytest.approx(0.5)


def blurred(pictures):
    return F.avg_pool2d(pictures.flatten(0, 1), 5, stride=1, padding=2).unflatten(0, pictures.shape[:2])


def squares(count, rng):
    """Draw squares of random places and colours that move by one pixel between two frames."""
    pictures = torch.full((count, 2, 3, 32, 32), -0.5)
    for picture in pictures:
        x, y = torch.randint(2, 16, (2,), generator=rng).tolist()
        colour = torch.rand(3, 1, 1, generator=rng) * 2 - 1
        for frame in (0, 1):
            picture[frame, :, y : y + 12, x + frame : x + frame + 12] = colour
    return pictures


def test_the_picture_discriminator_returns_logits_of_patches(rng):
    pairs = torch.randn(3, 2, 3, 32, 48, generator=rng)
    ((*features, logits),) = PictureDiscriminator()(pairs)
    assert [tuple(each.shape[2:]) for each in features] == [(32, 48), (16, 24), (8, 12), (4, 6), (2, 3)]
    assert logits.shape == (3, 1, 2, 3)


def test_the_gradient_of_a_blurred_picture_points_to_edges(rng):
    torch.manual_seed(0)
    discriminator = PictureDiscriminator()
    trainable = Trainable(discriminator, LoopConfig(steps=60, lr=2e-3, batch=4, warmup=1), betas=(0.5, 0.98))
    for step in range(60):
        real = squares(4, rng)
        *_, logged = adversarial_losses(discriminator, trainable, real, blurred(real), step)
    real = squares(8, rng)
    made = blurred(real).requires_grad_()
    ((*_, of_real),), ((*_, of_made),) = discriminator(real), discriminator(made)
    assert of_real.mean() - of_made.mean() > 0.5
    assert logged["judged"] < 1.5  # an untrained discriminator has 2
    generator_loss(discriminator(made)).backward()
    towards = (-made.grad * (real - made.detach())).sum()
    assert towards > 0


def test_losses_have_gradients_after_one_discriminator_step(rng):
    discriminator = PictureDiscriminator()
    trainable = Trainable(discriminator, LoopConfig(steps=4, lr=1e-3, batch=2, warmup=1))
    before = [x.detach().clone() for x in discriminator.parameters()]
    made = torch.randn(2, 2, 3, 32, 32, generator=rng, requires_grad=True)
    fooled, features, logged = adversarial_losses(discriminator, trainable, squares(2, rng), made, 1)
    assert any(not torch.equal(new, old) for new, old in zip(discriminator.parameters(), before, strict=True))
    assert set(logged) == {"judged", "fooled", "features"}
    for loss in (fooled, features):
        (gradient,) = torch.autograd.grad(loss, made, retain_graph=True)
        assert gradient.abs().sum() > 0


def test_pairs_are_consecutive_frames_of_a_clip():
    clips = torch.arange(20.0).reshape(4, 5)
    drawn = [clips[random_pairs(clips, 64, torch.Generator().manual_seed(seed))] for seed in (0, 0, 1)]
    for pairs in drawn:
        assert pairs.shape == (64, 2)
        torch.testing.assert_close(pairs[:, 1] - pairs[:, 0], torch.ones(64), rtol=0, atol=0)
    assert set(drawn[0][:, 0].tolist()) == set(clips[:, :-1].flatten().tolist())
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
