"""A killed run resumes as if it had not been killed, and errors say why a run cannot continue."""

import json
import os
import signal
from dataclasses import replace

import pytest
import torch
from torch import nn

from streamchar.train.loop import (
    LoopConfig,
    Stage,
    Trainable,
    TrainingError,
    load_averaged,
    read_log,
    run,
    step_generator,
)

CONFIG = LoopConfig(steps=6, lr=0.01, batch=4, warmup=2, ema=0.9, save_seconds=1e9)
WITH_MUON = LoopConfig(steps=6, lr=0.01, batch=4, matrix_lr=0.02, warmup=2, ema=0.9, save_seconds=1e9)


class KilledError(Exception):
    """Simulates a kill."""


class Regression(Stage):
    """Trains two networks on random inputs."""

    name = "regression"

    def __init__(self, config=CONFIG, data="a", dtype=torch.float32, kill_at=None):
        super().__init__(config, {"data": data})
        torch.manual_seed(config.seed)
        self.kill_at = kill_at
        self.nets = {name: nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)) for name in ("a", "b")}
        self.trainables = {name: Trainable(net.to(dtype), config) for name, net in self.nets.items()}

    def update(self, step, generator):
        if step == self.kill_at:
            raise KilledError
        x = torch.randn(self.config.batch, 3, generator=generator)
        logged = {}
        for name, trainable in self.trainables.items():
            weight = trainable.parameters[0]
            loss = (trainable.module(x.to(weight.dtype)).float() - x[:, :2]).square().mean()
            logged[name] = loss.item()
            logged["norm"] = trainable.update(loss, step)
        return logged


def everything(stage):
    """Return all tensors of a run."""
    found = []
    for trainable in stage.trainables.values():
        found += [*trainable.module.state_dict().values(), *trainable.master, *trainable.ema]
        for optimizer, _ in trainable.optimizers:
            for state in optimizer.state_dict()["state"].values():
                found += [value for value in state.values() if isinstance(value, torch.Tensor)]
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("config", [CONFIG, WITH_MUON], ids=["AdamW", "Muon"])
def test_a_resumed_run_is_bit_equal_to_an_unbroken_one(config, dtype, tmp_path):
    whole = Regression(config, dtype=dtype)
    assert run(whole, tmp_path / "whole") == 6
    for step in (1, 2, 3):  # a run of 0 minutes takes one step and saves it
        assert run(Regression(config, dtype=dtype), tmp_path / "parts", minutes=0) == step
    resumed = Regression(config, dtype=dtype)
    assert run(resumed, tmp_path / "parts") == 6
    assert len(everything(whole)) == len(everything(resumed)) > 20
    assert all(map(torch.equal, everything(whole), everything(resumed)))
    assert not torch.equal(whole.trainables["a"].master[0], Regression(config).trainables["a"].master[0])


def test_a_killed_run_resumes_from_its_last_checkpoint(tmp_path):
    run(Regression(), tmp_path / "whole")
    run(Regression(), tmp_path / "parts", minutes=0)
    with pytest.raises(KilledError):
        run(Regression(kill_at=4), tmp_path / "parts")
    resumed = Regression()
    run(resumed, tmp_path / "parts")
    whole = Regression()
    assert run(whole, tmp_path / "whole") == 6
    assert all(map(torch.equal, everything(whole), everything(resumed)))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_signal_ends_a_run_after_the_current_step(number, tmp_path, monkeypatch):
    stage, before = Regression(), signal.getsignal(number)
    update = stage.update

    def interrupted(step, generator):
        if step == 2:
            os.kill(os.getpid(), number)
        return update(step, generator)

    monkeypatch.setattr(stage, "update", interrupted)
    assert run(stage, tmp_path) == 3
    assert signal.getsignal(number) is before
    assert run(Regression(), tmp_path, minutes=0) == 4


def test_a_finished_run_takes_no_more_steps(tmp_path):
    run(Regression(), tmp_path)
    again = Regression(kill_at=6)
    assert run(again, tmp_path) == 6


def test_a_kill_while_saving_keeps_the_previous_checkpoint(tmp_path, monkeypatch):
    run(Regression(), tmp_path, minutes=0)

    def killed(state, file):
        file.write_bytes(b"half")
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", killed)
        with pytest.raises(KilledError):
            run(Regression(), tmp_path, minutes=0)
    assert run(Regression(), tmp_path, minutes=0) == 2


def test_a_checkpoint_of_other_data_is_refused(tmp_path):
    run(Regression(), tmp_path, minutes=0)
    with pytest.raises(TrainingError, match="remove it or train in another directory"):
        run(Regression(data="b"), tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr": 0.02}, r"must be continued with lr 0\.01, got lr 0\.02; use the settings"),
        ({"seed": 3}, "must be continued with seed 0, got seed 3"),
        ({"batch": 8, "ema": 0.5}, r"must be continued with ema 0\.9, batch .* 4, got ema 0\.5, batch .* 8"),
    ],
    ids=["rate", "seed", "batch and average"],
)
def test_other_settings_are_refused(change, message, tmp_path):
    run(Regression(), tmp_path, minutes=0)
    before = (tmp_path / "regression" / "checkpoint.pt").read_bytes()
    with pytest.raises(TrainingError, match=message):
        run(Regression(replace(CONFIG, **change)), tmp_path)
    assert (tmp_path / "regression" / "checkpoint.pt").read_bytes() == before


def test_steps_and_save_and_log_intervals_may_change(tmp_path):
    run(Regression(), tmp_path)
    longer = replace(CONFIG, steps=8, save_seconds=5.0, log_steps=1)
    assert run(Regression(longer), tmp_path) == 8


@pytest.mark.parametrize("left", [0, 100, 3000], ids=lambda left: f"{left} bytes")
def test_a_truncated_checkpoint_is_named(left, tmp_path):
    run(Regression(), tmp_path)
    file = tmp_path / "regression" / "checkpoint.pt"
    file.write_bytes(file.read_bytes()[:left])
    message = rf"{file} must be a complete file .* remove it and run: streamchar train regression"
    with pytest.raises(TrainingError, match=message):
        run(Regression(), tmp_path)
    with pytest.raises(TrainingError, match=message):
        load_averaged(tmp_path, "regression", {"a": Regression().nets["a"]})


@pytest.mark.parametrize("bad", [float("nan"), float("inf")], ids=str)
def test_a_gradient_that_is_not_finite_changes_nothing(bad):
    net = nn.Linear(2, 1)
    trainable = Trainable(net, CONFIG)
    before = net.weight.detach().clone()
    with pytest.raises(TrainingError, match=r"gradients must be finite, got .* at step 3"):
        trainable.update(net(torch.ones(1, 2)).sum() * bad, 3)
    assert torch.equal(net.weight, before)


def test_the_learning_rate_is_a_trapezium():
    config = LoopConfig(steps=300, lr=0.5, batch=1, warmup=10)
    pace = [config.pace(step) for step in range(300)]
    assert pace[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert pace[10:201] == [1.0] * 191
    assert pace[200:] == pytest.approx([(300 - step) / 100 for step in range(200, 300)])
    assert LoopConfig(steps=3, lr=1.0, batch=1, warmup=0).pace(0) == 1.0


def test_the_step_size_is_pace_times_scale():
    moved = {}
    for scale in (1.0, 0.5):
        net = nn.Linear(4, 1, bias=False)
        before = net.weight.detach().clone()
        Trainable(net, LoopConfig(steps=100, lr=1e-3, batch=1, warmup=4), lr_scale=scale).update(
            net.weight.sum(), 0
        )
        moved[scale] = (net.weight - before).abs().mean().item()
    # Adam's first step has the size of the learning rate: 1e-3 / 4, at the first of four warm-up steps.
    assert moved[1.0] == pytest.approx(2.5e-4, rel=0.05)
    assert moved[0.5] == pytest.approx(1.25e-4, rel=0.05)


def test_steps_too_small_for_bf16_add_up():
    config = LoopConfig(steps=1000, lr=1e-4, batch=1, warmup=0)
    net = nn.Linear(1, 1, bias=False).bfloat16()
    nn.init.ones_(net.weight)
    trainable = Trainable(net, config)
    for step in range(100):
        trainable.update(-net.weight.float().sum(), step)
        # The spacing of bf16 at 1 is 0.0078.
        assert torch.equal(net.weight.detach(), trainable.master[0].bfloat16())
    assert trainable.master[0].dtype == torch.float32
    assert trainable.master[0].item() == pytest.approx(1.01, abs=1e-3)
    assert net.weight.item() > 1


def test_frozen_parameters_do_not_change():
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    net[0].requires_grad_(False)
    before = [parameter.detach().clone() for parameter in net.parameters()]
    Trainable(net, CONFIG).update(net(torch.ones(1, 2)).sum(), 3)
    after = list(net.parameters())
    assert torch.equal(after[0], before[0])
    assert not torch.equal(after[2], before[2])


def test_the_decay_of_the_average_starts_low():
    net = nn.Linear(1, 1, bias=False)
    trainable = Trainable(net, LoopConfig(steps=1000, lr=0.01, batch=1, warmup=0, ema=0.5))
    expected = net.weight.item()
    for step in range(20):
        trainable.update(net.weight.sum(), step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * net.weight.item()
    assert trainable.ema[0].item() == pytest.approx(expected, rel=1e-5)


def test_averages_can_be_loaded_into_modules(tmp_path):
    stage = Regression()
    run(stage, tmp_path)
    fresh = Regression().nets["a"]
    load_averaged(tmp_path, "regression", {"a": fresh})
    assert all(map(torch.equal, fresh.parameters(), stage.trainables["a"].ema))
    with pytest.raises(TrainingError, match="must hold c, got a, b"):
        load_averaged(tmp_path, "regression", {"c": fresh})
    with pytest.raises(TrainingError, match="run: streamchar train vae"):
        load_averaged(tmp_path, "vae", {"a": fresh})


def test_averages_of_an_unfinished_run_are_refused(tmp_path):
    net = Regression().nets["a"]
    run(Regression(), tmp_path, minutes=0)
    message = "has 1 of 6 steps; run: streamchar train regression, with --steps 1"
    with pytest.raises(TrainingError, match=message):
        load_averaged(tmp_path, "regression", {"a": net})
    # As the message says, this finishes the run where it is.
    assert run(Regression(replace(CONFIG, steps=1)), tmp_path) == 1
    load_averaged(tmp_path, "regression", {"a": net})
    # It can be continued later.
    assert run(Regression(), tmp_path) == 6


def test_a_value_of_some_steps_is_logged_as_their_mean(tmp_path, monkeypatch):
    stage = Regression()
    update = stage.update

    def later(step, generator):
        return update(step, generator) | ({"matching": float(step)} if step >= 4 else {})

    monkeypatch.setattr(stage, "update", later)
    run(stage, tmp_path)
    (entry,) = read_log(tmp_path / "regression")
    assert entry["matching"] == 4.5


def test_the_log_holds_means_of_finite_numbers(tmp_path):
    run(Regression(LoopConfig(steps=60, lr=0.01, batch=4, warmup=2)), tmp_path)
    entries = list(read_log(tmp_path / "regression"))
    assert [entry["step"] for entry in entries] == [50, 60]
    assert all(set(entry) == {"step", "seconds", "a", "b", "norm"} for entry in entries)
    assert entries[1]["a"] < entries[0]["a"]
    lines = (tmp_path / "regression" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == entries


def test_every_step_has_its_own_reproducible_numbers():
    def draw(seed, step):
        return torch.rand(4, generator=step_generator(seed, step)).tolist()

    assert draw(0, 5) == draw(0, 5)
    assert len({tuple(draw(seed, step)) for seed in (0, 1) for step in (5, 6)}) == 4


def test_a_killed_run_logs_no_step_twice(tmp_path):
    config = replace(CONFIG, steps=120)
    run(Regression(replace(config, steps=60)), tmp_path)
    log = tmp_path / "regression" / "log.jsonl"
    kept = log.read_text()
    # After a hard kill: steps past the checkpoint, and an incomplete last line.
    log.write_text(kept + json.dumps({"step": 110, "seconds": 1.0}) + '\n{"step": 1')
    run(Regression(config), tmp_path)
    assert log.read_text().startswith(kept)
    assert [entry["step"] for entry in read_log(tmp_path / "regression")] == [50, 60, 110, 120]
