"""Two processes, whole or split, take the steps that one takes with the doubled batch, and hand over to it."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from streamchar.train import parallel
from streamchar.train.batches import random_audio
from streamchar.train.joint import joint_batch
from streamchar.train.loop import LoopConfig, Trained, TrainingError, read_log
from streamchar.train.orchestrator import random_speech
from streamchar.train.vae import VaeStage
from tests.train.ranks import CPU, HALF, PRESET, STEPS, Net, build, config, in_fp32, together, train

MODES = ["two", "split"]


@pytest.fixture(scope="module")
def runs(corpus, tmp_path_factory):
    """Train everything that the tests compare; two processes are started once for all of it."""
    root, data = tmp_path_factory.mktemp("runs"), corpus.directory
    for name in ("net", "student"):
        train(name, 4, data, root / "one")
    train("net", 2, data, root / "half")
    train("teacher", 4, data, root / "one", narrow=True)
    train("orchestrator", 4, data, root / "one", until=1)
    tasks = [("orchestrator", 2, root / "two", False, 1)]
    for mode in MODES:
        split = mode == "split"
        tasks += [(name, 2, root / mode, split) for name in ("net", "student")]
        tasks += [(name, 2, root / f"{mode}, then one", split, HALF) for name in ("net", "student")]
        train("net", 4, data, root / f"one, then {mode}", until=HALF)
        tasks.append(("net", 2, root / f"one, then {mode}", split))
    tasks.append(("teacher", 2, root / "split", True, STEPS, True))
    together(tasks, data)
    for mode in MODES:
        for name in ("net", "student"):
            train(name, 4, data, root / f"{mode}, then one")
    return root


def curves(folder):
    """Return every logged figure over the steps."""
    entries = list(read_log(folder))
    assert [entry["step"] for entry in entries] == list(range(1, len(entries) + 1))
    return {
        name: torch.tensor([entry.get(name, 0.0) for entry in entries])
        for name in {name for entry in entries for name in entry} - {"step", "seconds"}
    }


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
    ours, theirs = curves(runs / way / name), curves(runs / "one" / name)
    assert ours.keys() == theirs.keys()
    for figure in ours:
        # Sums in another order, 6e-8 each; Adam divides gradients by their size, which lets those that all but
        # cancel grow. Matching is the difference of two networks that have hardly parted, 1e-4 of either.
        bound = {"atol": 1e-5} if figure == "matching" else {"atol": 0.0}
        torch.testing.assert_close(ours[figure], theirs[figure], rtol=1e-4, **bound)
    with in_fp32():
        start = build(name, config(name, 4, False, False), corpus.directory).trained
    made, expected = checkpoint(runs / way / name), checkpoint(runs / "one" / name)
    for part in start:
        assert off_course(made[part], expected[part], [x.detach() for x in start[part].wide]) < 5e-3, part


@pytest.mark.parametrize("mode", MODES)
def test_several_processes_go_on_from_the_checkpoint_of_one(mode, runs):
    ours, theirs = curves(runs / f"one, then {mode}" / "net"), curves(runs / "one" / "net")
    for figure in theirs:
        torch.testing.assert_close(ours[figure], theirs[figure], rtol=1e-4, atol=0.0)


def test_the_comparison_tells_other_rows_apart(runs):
    ours, theirs = curves(runs / "half" / "net"), curves(runs / "one" / "net")
    assert ((ours["norm"] - theirs["norm"]).abs() > 0.01 * theirs["norm"]).all()


def test_a_split_run_in_bf16_with_muon_keeps_the_curve(runs):
    ours, theirs = curves(runs / "split" / "teacher"), curves(runs / "one" / "teacher")
    for figure in theirs:
        # bf16 tells apart 1 and 1.0078.
        torch.testing.assert_close(ours[figure], theirs[figure], rtol=5e-3, atol=0.0)


def test_tokens_count_alike_in_processes_that_have_more_and_fewer_of_them(runs):
    ours, theirs = curves(runs / "two" / "orchestrator"), curves(runs / "one" / "orchestrator")
    for figure in theirs:
        torch.testing.assert_close(ours[figure], theirs[figure], rtol=5e-3, atol=0.0)


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
    vae = SimpleNamespace(config=LoopConfig(1, 0.1, 2), corpus=corpus, stride=4, size=(32, 32))
    student = build("student", config("student", 2, False, True), corpus.directory)
    draws = {
        "audio": lambda count, g: [random_audio(corpus, count, 4, g)],
        "speech": lambda count, g: vars(random_speech(PRESET, corpus, audio, count, g)).values(),
        "joint": lambda count, g: vars(
            joint_batch(PRESET, corpus, audio, student.video, count, g).speech
        ).values(),
        "noise": lambda count, g: [parallel.randn((count, 3), g), parallel.randint(9, (count,), g)],
    }
    monkeypatch.setattr(parallel.dist, "is_initialized", lambda: True)

    def drawn(draw, world, rank, count):
        monkeypatch.setattr(parallel.dist, "get_world_size", lambda: world)
        monkeypatch.setattr(parallel.dist, "get_rank", lambda: rank)
        generator = torch.Generator().manual_seed(1)
        # What is drawn after must be the same everywhere too.
        return [*draw(count, generator), torch.rand(world * count // count, generator=generator)[:1]]

    clips = [VaeStage._clips(vae, 1, torch.Generator().manual_seed(1))]
    assert len(clips[0]) == 2
    for name, draw in draws.items():
        *whole, after = drawn(draw, 1, 0, 6)
        parts = [drawn(draw, 3, rank, 2) for rank in range(3)]
        assert all(torch.equal(part[-1], after) for part in parts), name
        for index, expected in enumerate(whole):
            assert torch.equal(torch.cat([part[index] for part in parts]), expected), name


def test_what_cannot_be_split_says_why():
    with pytest.raises(TrainingError, match="shard must be off for a Linear, .* leave out --shard"):
        Trained(nn.Linear(2, 2), LoopConfig(1, 0.1, 1, shard=True))
    with pytest.raises(TrainingError, match="in one process; start several: torchrun"):
        Trained(Net(), LoopConfig(1, 0.1, 1, shard=True))


def test_one_process_is_alone(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with parallel.processes(CPU) as device:
        assert (device, parallel.world(), parallel.rank()) == (CPU, 1, 0)
        assert parallel.anywhere(True, False) == (True, False)
        assert parallel.means([0.5, 2.0]) == [0.5, 2.0]
