"""Verdicts of discriminators on values known beforehand, and what a discriminator of pictures sees."""

import pytest
import torch
import torch.nn.functional as F

from streamchar.train.adversarial import adversarial_losses, feature_loss, hinge_fooled, hinge_real_made
from streamchar.train.loop import LoopConfig, Trained
from streamchar.train.pictures import PictureDiscriminator, random_pairs


def verdicts(*values):
    """Stand in for discriminators: features first, the verdict on each patch last."""
    return [[torch.ones(2, 3), torch.full((2, 4), value)] for value in values]


def test_the_hinge_asks_for_a_margin_and_no_more():
    assert hinge_real_made(verdicts(1.0, 5.0), verdicts(-1.0, -3.0)) == 0
    assert hinge_real_made(verdicts(0.0), verdicts(0.0)) == 2
    # (1 - 0.5) + (1 + 2), and (1 + 1) + 0, on average.
    assert hinge_real_made(verdicts(0.5, -1.0), verdicts(2.0, -4.0)) == pytest.approx(2.75)


def test_a_generator_is_rewarded_without_bound():
    assert hinge_fooled(verdicts(2.0, -4.0)) == pytest.approx(1.0)
    assert hinge_fooled(verdicts(9.0)) == -9


def test_features_are_compared_to_their_size_and_verdicts_are_not():
    real, made = verdicts(3.0), verdicts(-3.0)
    assert feature_loss(real, made) == 0
    made[0][0] = torch.full((2, 3), 1.5)
    assert feature_loss(real, made) == pytest.approx(0.5)
    for features in (real, made):
        features[0][0] = features[0][0] * 10
    assert feature_loss(real, made) == pytest.approx(0.5)


def blurred(pictures):
    return F.avg_pool2d(pictures.flatten(0, 1), 5, stride=1, padding=2).unflatten(0, pictures.shape[:2])


def squares(count, rng):
    """Draw squares of random places and colours, that move by a pixel between two frames."""
    pictures = torch.full((count, 2, 3, 32, 32), -0.5)
    for picture in pictures:
        x, y = torch.randint(2, 16, (2,), generator=rng).tolist()
        colour = torch.rand(3, 1, 1, generator=rng) * 2 - 1
        for frame in (0, 1):
            picture[frame, :, y : y + 12, x + frame : x + frame + 12] = colour
    return pictures


def test_pictures_are_judged_in_patches(rng):
    pairs = torch.randn(3, 2, 3, 32, 48, generator=rng)
    ((*features, verdicts),) = PictureDiscriminator()(pairs)
    assert [tuple(each.shape[2:]) for each in features] == [(32, 48), (16, 24), (8, 12), (4, 6), (2, 3)]
    assert verdicts.shape == (3, 1, 2, 3)


def test_a_blur_is_told_from_an_edge_and_asks_for_one(rng):
    torch.manual_seed(0)
    judge = PictureDiscriminator()
    trained = Trained(judge, LoopConfig(steps=60, lr=2e-3, batch=4, warmup=1), betas=(0.5, 0.98))
    for step in range(60):
        real = squares(4, rng)
        *_, logged = adversarial_losses(judge, trained, real, blurred(real), step)
    real = squares(8, rng)
    made = blurred(real).requires_grad_()
    ((*_, of_real),), ((*_, of_made),) = judge(real), judge(made)
    assert of_real.mean() - of_made.mean() > 0.5
    assert logged["judged"] < 1.5  # 2 of one that knows nothing
    hinge_fooled(judge(made)).backward()
    towards = (-made.grad * (real - made.detach())).sum()
    assert towards > 0


def test_what_was_made_gets_gradients_and_the_discriminator_one_step(rng):
    judge = PictureDiscriminator()
    trained = Trained(judge, LoopConfig(steps=4, lr=1e-3, batch=2, warmup=1))
    before = [x.detach().clone() for x in judge.parameters()]
    made = torch.randn(2, 2, 3, 32, 32, generator=rng, requires_grad=True)
    fooled, features, logged = adversarial_losses(judge, trained, squares(2, rng), made, 1)
    assert any(not torch.equal(new, old) for new, old in zip(judge.parameters(), before, strict=True))
    assert set(logged) == {"judged", "fooled", "features"}
    for loss in (fooled, features):
        (gradient,) = torch.autograd.grad(loss, made, retain_graph=True)
        assert gradient.abs().sum() > 0


def test_pairs_are_neighbours_within_a_clip():
    clips = torch.arange(20.0).reshape(4, 5)
    drawn = [clips[random_pairs(clips, 64, torch.Generator().manual_seed(seed))] for seed in (0, 0, 1)]
    for pairs in drawn:
        assert pairs.shape == (64, 2)
        torch.testing.assert_close(pairs[:, 1] - pairs[:, 0], torch.ones(64), rtol=0, atol=0)
    assert set(drawn[0][:, 0].tolist()) == set(clips[:, :-1].flatten().tolist())
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
