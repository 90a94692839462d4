"""Two processes, replicated or sharded, take the same steps as one process with twice the batch."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from streamchar.train.batches import random_audio, random_speech
from streamchar.train.distributed import parallel
from streamchar.train.joint import joint_batch
from streamchar.train.loop import LoopConfig, Trainable, TrainingError, read_log
from streamchar.train.stages.vae import LATENTS, VaeStage
from tests.train.miniature import random_data
from tests.train.ranks import CPU, PRESET, STEPS, Net, build, config, first_of, in_fp32, together, train

MODES = ["replicated", "sharded"]


@pytest.fixture(scope="module")
def runs(corpus, tmp_path_factory):
    """Train all runs that the tests compare; two processes are started once for all of them."""
    root, data = tmp_path_factory.mktemp("runs"), corpus.directory
    # Runs of one process are unbroken; runs of two processes resume after the first step.
    for name in ("net", "student"):
        train(name, 4, data, root / "one", unbroken=True)
    train("net", 4, data, root / "one, in parts")
    train("net", 2, data, root / "half")
    train("teacher", 4, data, root / "one", narrow=True, unbroken=True)
    for name in ("orchestrator", "rollout"):
        train(name, 4, data, root / "one", steps=1)
    tasks = [("orchestrator", 2, root / "replicated", False, 1)]
    for mode in MODES:
        shard = mode == "sharded"
        tasks += [(name, 2, root / mode, shard) for name in ("net", "student")]
        tasks.append(("rollout", 2, root / mode, shard, 1))
        shutil.copytree(first_of(root / "one, in parts"), root / f"one, then {mode}")
        tasks.append(("net", 2, root / f"one, then {mode}", shard))
    tasks.append(("teacher", 2, root / "sharded", True, STEPS, True))
    together(tasks, data)
    for mode in MODES:
        shutil.copytree(first_of(root / mode), root / f"{mode}, then one")
        for name in ("net", "student"):
            train(name, 4, data, root / f"{mode}, then one")
    return root


def curves(folder):
    """Return every value over the steps, as recorded at each step and as logged."""
    entries = [*json.loads((folder / "curve.json").read_text()), *read_log(folder)]
    return {
        name: torch.tensor([entry[name] for entry in entries if name in entry])
        for name in {name for entry in entries for name in entry} - {"step", "seconds"}
    }


def same_curves(ours, theirs, rtol):
    ours, theirs = curves(ours), curves(theirs)
    assert ours.keys() == theirs.keys()
    for figure, expected in theirs.items():
        # Matching is the difference of two networks that are still almost equal, 1e-4 of either.
        atol = 1e-5 if figure == "matching" else 0.0
        found = ours[figure][-len(expected) :]
        torch.testing.assert_close(found, expected[-len(found) :], rtol=rtol, atol=atol, msg=figure)


def checkpoint(folder):
    return torch.load(folder / "checkpoint.pt", weights_only=True)["trained"]


def relative_distance(ours, theirs, start):
    """Return the distance of two runs' weights and averages, relative to their distance from the start."""
    distances = []
    for key in ("wide", "ema"):
        a, b, origin = (torch.cat([x.flatten() for x in each]) for each in (ours[key], theirs[key], start))
        distances.append(float((a - b).norm() / (b - origin).norm()))
    return max(distances)


@pytest.mark.parametrize("name", ["net", "student"])
@pytest.mark.parametrize("way", [*MODES, *(f"{mode}, then one" for mode in MODES)])
def test_two_processes_equal_one_with_twice_the_batch(name, way, runs, corpus):
    # Sums in another order differ by 6e-8. Adam divides by the size of the gradient, which amplifies the
    # difference where gradients almost cancel.
    same_curves(runs / way / name, runs / "one" / name, rtol=1e-4)
    with in_fp32():
        start = build(name, config(name, 4, False, False), corpus.directory).trainables
    made, expected = checkpoint(runs / way / name), checkpoint(runs / "one" / name)
    for part in start:
        assert (
            relative_distance(made[part], expected[part], [x.detach() for x in start[part].master]) < 5e-3
        ), part


@pytest.mark.parametrize("mode", MODES)
def test_two_processes_resume_from_the_checkpoint_of_one(mode, runs):
    same_curves(runs / f"one, then {mode}" / "net", runs / "one" / "net", rtol=1e-4)


@pytest.mark.parametrize("mode", MODES)
def test_rollouts_of_two_processes_equal_those_of_one(mode, runs):
    # A step has several updates, and the orchestrator computes in bf16.
    same_curves(runs / mode / "rollout", runs / "one" / "rollout", rtol=2e-3)


def test_the_comparison_detects_different_rows(runs):
    ours, theirs = curves(runs / "half" / "net"), curves(runs / "one" / "net")
    assert ((ours["norm"] - theirs["norm"]).abs() > 0.01 * theirs["norm"]).all()


def test_a_sharded_run_in_bf16_with_muon_has_the_same_curve(runs):
    # The spacing of bf16 at 1 is 0.0078.
    same_curves(runs / "sharded" / "teacher", runs / "one" / "teacher", rtol=5e-3)


def test_tokens_of_all_processes_have_equal_weight(runs):
    same_curves(runs / "replicated" / "orchestrator", runs / "one" / "orchestrator", rtol=5e-3)


@pytest.mark.parametrize("name", ["net", "student"])
def test_a_sharded_checkpoint_has_the_usual_form(name, runs):
    def form(value):
        if isinstance(value, dict):
            return {key: form(each) for key, each in value.items()}
        if isinstance(value, list | tuple):
            return [form(each) for each in value]
        return (type(value), value.shape, value.dtype) if torch.is_tensor(value) else type(value)

    assert form(checkpoint(runs / "sharded" / name)) == form(checkpoint(runs / "one" / name))


def test_rows_of_all_processes_equal_those_of_one(corpus, monkeypatch):
    data = random_data(PRESET, corpus, torch.Generator().manual_seed(0))

    def clips(count, generator):
        about = {"corpus": corpus, "stride": 4, "size": (32, 32), "device": torch.device("cpu")}
        stage = SimpleNamespace(config=LoopConfig(1, 0.1, count), **about)
        return [VaeStage._clips(stage, LATENTS, generator)]

    draws = {
        "audio": lambda count, g: [random_audio(corpus, count, 4, g)],
        "speech": lambda count, g: vars(random_speech(PRESET, data, count, g)).values(),
        "joint": lambda count, g: parts_of(joint_batch(PRESET, data, count, g)),
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
        # The generators of all processes end in the same state.
        assert all(torch.equal(each, after) for _, each in parts), name
        for index, expected in enumerate(whole):
            assert torch.equal(torch.cat([rows[index] for rows, _ in parts]), expected), name


def parts_of(batch):
    return [*vars(batch.speech).values(), batch.reference, batch.sink, batch.motion, batch.video, batch.valid]


def test_a_module_that_cannot_be_sharded_is_refused():
    with pytest.raises(TrainingError, match=r"shard must be off for a Linear, .* leave out --shard"):
        Trainable(nn.Linear(2, 2), LoopConfig(1, 0.1, 1, shard=True))
    with pytest.raises(TrainingError, match="in one process; start several: torchrun"):
        Trainable(Net(), LoopConfig(1, 0.1, 1, shard=True))


def test_without_torchrun_there_is_one_process(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with parallel.process_group(CPU) as device:
        assert (device, parallel.world_size(), parallel.rank()) == (CPU, 1, 0)
        assert parallel.any_rank(True, False) == (True, False)
        assert parallel.mean_over_ranks([0.5, 2.0]) == [0.5, 2.0]
