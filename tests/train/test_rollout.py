"""Rollouts get longer, the pointer learns from the generated audio, and ablations leave parts out."""

import gc
import weakref

import torch

from streamchar.train.joint import JointModel
from streamchar.train.loop import LoopConfig, step_generator
from streamchar.train.stages.rollout import RolloutStage
from tests.train.miniature import MINIATURE, SilenceListener, random_data

CONFIG = LoopConfig(steps=4, lr=1e-3, batch=2, warmup=1)
FRAMES, VOCABULARY = MINIATURE.audio_tokens, MINIATURE.orchestrator.vocabulary


def build(corpus, without=None):
    data = random_data(MINIATURE, corpus, torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    model = JointModel(MINIATURE)
    listener, device = SilenceListener(), torch.device("cpu")
    return RolloutStage(MINIATURE, data, model, model, model, listener, device, CONFIG, without)


def test_rollouts_grow_from_two_chunks_to_eight(corpus):
    stage = build(corpus)
    assert [stage.chunks(step) for step in range(4)] == [2, 5, 8, 8]


def test_a_step_trains_transformer_pointer_and_score_only(corpus):
    stage = build(corpus)
    language = [p.detach().clone() for p in stage.student.orchestrator.model.parameters()]
    before = {
        name: [p.detach().clone() for p in module.parameters()]
        for name, module in (
            ("dit", stage.student.dit),
            ("pointer", stage.student.orchestrator.pointer),
            ("score", stage.score.dit),
            ("teacher", stage.teacher.dit),
        )
    }
    logged = stage.update(0, step_generator(0, 0))
    assert logged["chunks"] == 2
    assert set(logged) == {"matching", "anchor", "off", "pointer", "norm", "score", "chunks"}
    assert all(torch.isfinite(torch.tensor(value)) for value in logged.values())
    after = {
        "dit": stage.student.dit,
        "pointer": stage.student.orchestrator.pointer,
        "score": stage.score.dit,
        "teacher": stage.teacher.dit,
    }
    moved = {
        name: sum(not torch.equal(a, b) for a, b in zip(before[name], module.parameters(), strict=True))
        for name, module in after.items()
    }
    assert moved["teacher"] == 0
    assert min(moved["dit"], moved["pointer"], moved["score"]) > 0
    assert all(map(torch.equal, language, stage.student.orchestrator.model.parameters()))


def test_repeating_a_step_gives_the_same_losses(corpus):
    first, again = (build(corpus).update(0, step_generator(0, 0)) for _ in range(2))
    assert first == again


def test_the_pointer_learns_from_the_generated_audio(corpus):
    stage = build(corpus)
    stage._begin(2, step_generator(0, 0))
    rolled = stage.sessions.make(0)
    position, target = stage._pointer_position(rolled), stage._aligned_position(rolled)
    assert position.shape == target.shape == (2, FRAMES)
    # Only silence is recognised, so none of the text has been spoken.
    assert target.max() < 1
    position.sum().backward()
    assert all(p.grad is not None for p in stage.student.orchestrator.pointer.query.parameters())


class TextListener(torch.nn.Module):
    """An aligner that recognises the tokens of each session's text in order, two frames each."""

    def __init__(self, sessions):
        super().__init__()
        self.sessions = sessions

    def forward(self, latents):
        log_probs = torch.full((*latents.shape[:2], VOCABULARY), -20.0)
        for row, frames in enumerate(log_probs):
            text = self.sessions.transcript(row)
            for frame, scores in enumerate(frames):
                scores[text[frame // 2]] = 0.0
        return log_probs


def test_the_pointer_target_is_relative_to_the_window(corpus, monkeypatch):
    stage = build(corpus)
    sessions = stage.sessions
    stage.aligner = TextListener(sessions)
    stage._begin(5, step_generator(0, 0))
    frames = torch.arange(1.0, FRAMES + 1)

    def position():
        """Return the positions that the listener recognises as those of the pointer."""
        origins = torch.tensor([[window.origin] for window in sessions._windows])
        return (sessions.chunk * FRAMES + frames) / 2 - origins

    monkeypatch.setattr(sessions, "_position", position)
    rolled = [sessions.make(0) for _ in range(5)][-1]
    assert min(rolled.origins) > 0
    assert rolled.origins[0] != rolled.origins[1]
    # The tolerance of the tests of the aligner.
    torch.testing.assert_close(stage._aligned_position(rolled), rolled.position, rtol=0, atol=0.25)


def test_without_the_pointer_planned_durations_set_the_position(corpus):
    stage = build(corpus, "pointer")
    assert stage.name == "rollout-without-pointer"
    stage._begin(2, step_generator(0, 0))
    position = stage.sessions.make(0).position
    # The plan never goes back, and it differs from the pointer.
    assert (position.diff(dim=1) >= 0).all()
    assert not torch.allclose(position, stage.sessions._buffers.position)
    assert "pointer" not in stage.update(0, step_generator(0, 0))


def test_without_the_sink_no_model_attends_to_it(corpus):
    stage = build(corpus, "sink")
    assert stage.about != build(corpus).about
    stage._begin(2, step_generator(0, 0))
    stage.sessions.make(0)
    assert stage.sessions.make(0).batch.valid.tolist() == [[True, False, True]] * 2


class SavedTensor:
    """A tensor that a graph saves for its backward pass."""

    def __init__(self, tensor):
        self.tensor = tensor


def size(tensors):
    """Return the total bytes of tensors, counting each storage once."""
    return sum({each.data_ptr(): each.untyped_storage().nbytes() for each in tensors}.values())


def test_a_chunk_takes_no_more_memory_late_in_a_rollout(corpus, monkeypatch):
    stage, chunks = build(corpus), 8
    stored, live, graphs = weakref.WeakSet(), [], []
    update = stage.trainables["joint"].update

    def measured(loss, step):
        if stage.sessions.chunk in (2, chunks):
            gc.collect()
            of_graphs = [each.tensor for each in stored]
            graphs.append(size(of_graphs))
            live.append(size([each for each in gc.get_objects() if type(each) is torch.Tensor] + of_graphs))
        return update(loss, step)

    def pack(tensor):
        stored.add(each := SavedTensor(tensor.detach()))
        return each

    monkeypatch.setattr(stage.trainables["joint"], "update", measured)
    generator = step_generator(0, 0)
    stage._begin(chunks, generator)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda each: each.tensor):
        for _ in range(chunks):
            stage._chunk(0, generator)
    # Different text lengths change it by 0.5 % of a graph, and so does the audio of six chunks.
    assert abs(live[1] - live[0]) < 0.02 * min(graphs)
