"""Two processes, whole or split, take the steps of one with the doubled batch, and hand over to it."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from streamchar.train import parallel
from streamchar.train.batches import random_audio
from streamchar.train.joint import joint_batch
from streamchar.train.loop import LoopConfig, Trained, TrainingError, read_log
from streamchar.train.orchestrator import random_speech
from streamchar.train.vae import LATENTS, VaeStage
from tests.train.ranks import CPU, PRESET, STEPS, Net, build, config, first_of, in_fp32, together, train

MODES = ["two", "split"]


@pytest.fixture(scope="module")
def runs(corpus, tmp_path_factory):
    """Train everything that the tests compare; two processes are started once for all of it."""
    root, data = tmp_path_factory.mktemp("runs"), corpus.directory
    # Of one process unbroken, of two resumed after the first step.
    for name in ("net", "student"):
        train(name, 4, data, root / "one", unbroken=True)
    train("net", 4, data, root / "one, in parts")
    train("net", 2, data, root / "half")
    train("teacher", 4, data, root / "one", narrow=True, unbroken=True)
    for name in ("orchestrator", "rollout"):
        train(name, 4, data, root / "one", steps=1)
    tasks = [("orchestrator", 2, root / "two", False, 1)]
    for mode in MODES:
        split = mode == "split"
        tasks += [(name, 2, root / mode, split) for name in ("net", "student")]
        tasks.append(("rollout", 2, root / mode, split, 1))
        shutil.copytree(first_of(root / "one, in parts"), root / f"one, then {mode}")
        tasks.append(("net", 2, root / f"one, then {mode}", split))
    tasks.append(("teacher", 2, root / "split", True, STEPS, True))
    together(tasks, data)
    for mode in MODES:
        shutil.copytree(first_of(root / mode), root / f"{mode}, then one")
        for name in ("net", "student"):
            train(name, 4, data, root / f"{mode}, then one")
    return root


def curves(folder):
    """Return every figure over the steps, as recorded at each and as logged."""
    entries = [*json.loads((folder / "curve.json").read_text()), *read_log(folder)]
    return {
        name: torch.tensor([entry[name] for entry in entries if name in entry])
        for name in {name for entry in entries for name in entry} - {"step", "seconds"}
    }


def same_curves(ours, theirs, rtol):
    ours, theirs = curves(ours), curves(theirs)
    assert ours.keys() == theirs.keys()
    for figure, expected in theirs.items():
        # Matching is the difference of two networks that have hardly parted, 1e-4 of either.
        atol = 1e-5 if figure == "matching" else 0.0
        found = ours[figure][-len(expected) :]
        torch.testing.assert_close(found, expected[-len(found) :], rtol=rtol, atol=atol, msg=figure)


def checkpoint(folder):
    return torch.load(folder / "checkpoint.pt", weights_only=True)["trained"]


def off_course(ours, theirs, start):
    """Return the distance of two runs' weights and averages, as a share of the way they went."""
    distances = []
    for key in ("wide", "ema"):
        a, b, origin = (torch.cat([x.flatten() for x in each]) for each in (ours[key], theirs[key], start))
        distances.append(float((a - b).norm() / (b - origin).norm()))
    return max(distances)


@pytest.mark.parametrize("name", ["net", "student"])
@pytest.mark.parametrize("way", [*MODES, *(f"{mode}, then one" for mode in MODES)])
def test_two_processes_do_what_one_does_with_the_doubled_batch(name, way, runs, corpus):
    # Sums in another order, 6e-8 each; Adam divides gradients by their size, which lets those grow that all
    # but cancel.
    same_curves(runs / way / name, runs / "one" / name, rtol=1e-4)
    with in_fp32():
        start = build(name, config(name, 4, False, False), corpus.directory).trained
    made, expected = checkpoint(runs / way / name), checkpoint(runs / "one" / name)
    for part in start:
        assert off_course(made[part], expected[part], [x.detach() for x in start[part].wide]) < 5e-3, part


@pytest.mark.parametrize("mode", MODES)
def test_two_processes_go_on_from_the_checkpoint_of_one(mode, runs):
    same_curves(runs / f"one, then {mode}" / "net", runs / "one" / "net", rtol=1e-4)


@pytest.mark.parametrize("mode", MODES)
def test_rollouts_of_two_processes_are_those_of_one(mode, runs):
    # Several updates a step; the orchestrator computes in bf16.
    same_curves(runs / mode / "rollout", runs / "one" / "rollout", rtol=2e-3)


def test_the_comparison_tells_other_rows_apart(runs):
    ours, theirs = curves(runs / "half" / "net"), curves(runs / "one" / "net")
    assert ((ours["norm"] - theirs["norm"]).abs() > 0.01 * theirs["norm"]).all()


def test_a_split_run_in_bf16_with_muon_keeps_the_curve(runs):
    # bf16 tells apart 1 and 1.0078.
    same_curves(runs / "split" / "teacher", runs / "one" / "teacher", rtol=5e-3)


def test_tokens_count_alike_in_processes_that_have_more_and_fewer_of_them(runs):
    same_curves(runs / "two" / "orchestrator", runs / "one" / "orchestrator", rtol=5e-3)


@pytest.mark.parametrize("name", ["net", "student"])
def test_a_split_checkpoint_has_the_form_of_any_other(name, runs):
    def form(value):
        if isinstance(value, dict):
            return {key: form(each) for key, each in value.items()}
        if isinstance(value, list | tuple):
            return [form(each) for each in value]
        return (type(value), value.shape, value.dtype) if torch.is_tensor(value) else type(value)

    assert form(checkpoint(runs / "split" / name)) == form(checkpoint(runs / "one" / name))


def test_rows_of_all_processes_are_those_of_one(corpus, monkeypatch):
    audio = torch.randn(int(corpus.frames.sum()), PRESET.dit.audio_channels)
    video = build("student", config("student", 2, False, True), corpus.directory).video

    def clips(count, generator):
        about = {"corpus": corpus, "stride": 4, "size": (32, 32), "device": torch.device("cpu")}
        stage = SimpleNamespace(config=LoopConfig(1, 0.1, count), **about)
        return [VaeStage._clips(stage, LATENTS, generator)]

    draws = {
        "audio": lambda count, g: [random_audio(corpus, count, 4, g)],
        "speech": lambda count, g: vars(random_speech(PRESET, corpus, audio, count, g)).values(),
        "joint": lambda count, g: parts_of(joint_batch(PRESET, corpus, audio, video, count, g)),
        "clips": clips,
        "noise": lambda count, g: [parallel.randn((count, 3), g), parallel.randint(9, (count,), g)],
    }

    def drawn(draw, world, rank):
        monkeypatch.setattr(parallel.dist, "is_initialized", lambda: True)
        monkeypatch.setattr(parallel.dist, "get_world_size", lambda: world)
        monkeypatch.setattr(parallel.dist, "get_rank", lambda: rank)
        generator = torch.Generator().manual_seed(1)
        rows = [*draw(6 // world, generator)]
        monkeypatch.undo()
        return rows, torch.rand(1, generator=generator)

    for name, draw in draws.items():
        whole, after = drawn(draw, 1, 0)
        parts = [drawn(draw, 3, rank) for rank in range(3)]
        # What is drawn next is the same everywhere too.
        assert all(torch.equal(each, after) for _, each in parts), name
        for index, expected in enumerate(whole):
            assert torch.equal(torch.cat([rows[index] for rows, _ in parts]), expected), name


def parts_of(batch):
    return [*vars(batch.speech).values(), batch.reference, batch.sink, batch.motion, batch.video, batch.valid]


def test_what_cannot_be_split_says_why():
    with pytest.raises(TrainingError, match=r"shard must be off for a Linear, .* leave out --shard"):
        Trained(nn.Linear(2, 2), LoopConfig(1, 0.1, 1, shard=True))
    with pytest.raises(TrainingError, match="in one process; start several: torchrun"):
        Trained(Net(), LoopConfig(1, 0.1, 1, shard=True))


def test_one_process_is_alone(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with parallel.processes(CPU) as device:
        assert (device, parallel.world(), parallel.rank()) == (CPU, 1, 0)
        assert parallel.anywhere(True, False) == (True, False)
        assert parallel.means([0.5, 2.0]) == [0.5, 2.0]
