"""Stage II: rollouts grow, the pointer learns from the sound that was made, and parts can be left out."""

import gc
import weakref

import torch

from streamchar.train.joint import JointModel, VideoLatents
from streamchar.train.loop import LoopConfig, step_generator
from streamchar.train.rollout import RolloutStage
from tests.train.test_stages import MINIATURE

CONFIG = LoopConfig(steps=4, lr=1e-3, batch=2, warmup=1)
FRAMES, VOCABULARY = MINIATURE.audio_tokens, MINIATURE.orchestrator.vocabulary


class Listener(torch.nn.Module):
    """Hears silence, token 0, whatever the latents are."""

    def forward(self, latents):
        chances = torch.full((*latents.shape[:2], VOCABULARY), -20.0)
        chances[..., 0] = 0.0
        return chances


def stage_of(corpus, without=None):
    torch.manual_seed(0)
    stride, channels = MINIATURE.picture.temporal_stride, MINIATURE.picture.channels
    lengths = [recording.frames // stride + 1 for recording in corpus]
    bounds = [sum(lengths[:index]) for index in range(len(lengths) + 1)]
    latents = torch.randn(bounds[-1], channels, *MINIATURE.picture.latent_size).half()
    video = VideoLatents(latents, bounds, torch.zeros(channels), torch.ones(channels))
    audio = torch.randn(int(corpus.frames.sum()), MINIATURE.dit.audio_channels).half()
    model = JointModel(MINIATURE)
    device = torch.device("cpu")
    return RolloutStage(MINIATURE, corpus, audio, video, *[model] * 3, Listener(), device, CONFIG, without)


def test_rollouts_grow_from_two_chunks_to_eight(corpus):
    stage = stage_of(corpus)
    assert [stage.chunks(step) for step in range(4)] == [2, 5, 8, 8]


def test_a_step_rolls_out_and_changes_transformer_pointer_and_score_but_not_the_teacher(corpus):
    stage = stage_of(corpus)
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


def test_the_same_step_again_gives_the_same_losses(corpus):
    first, again = (stage_of(corpus).update(0, step_generator(0, 0)) for _ in range(2))
    assert first == again


def test_the_pointer_learns_from_the_sound_that_was_made(corpus):
    stage = stage_of(corpus)
    stage._begin(2, step_generator(0, 0))
    rolled = stage.sessions.make(0)
    position, target = stage._pointed(rolled), stage._heard(rolled)
    assert position.shape == target.shape == (2, FRAMES)
    # Silence alone was heard: nothing of the text has been said.
    assert target.max() < 1
    position.sum().backward()
    assert all(p.grad is not None for p in stage.student.orchestrator.pointer.query.parameters())


class Follower(torch.nn.Module):
    """Hears the tokens of each session's text one after another, each for two frames."""

    def __init__(self, sessions):
        super().__init__()
        self.sessions = sessions

    def forward(self, latents):
        chances = torch.full((*latents.shape[:2], VOCABULARY), -20.0)
        for row, frames in enumerate(chances):
            text = self.sessions.transcript(row)
            for frame, chance in enumerate(frames):
                chance[text[frame // 2]] = 0.0
        return chances


def test_the_pointers_target_counts_from_where_the_window_begins(corpus, monkeypatch):
    stage = stage_of(corpus)
    sessions = stage.sessions
    stage.aligner = Follower(sessions)
    stage._begin(5, step_generator(0, 0))
    frames = torch.arange(1.0, FRAMES + 1)

    def said():
        """Say that the pointer stands where the listener hears the text."""
        origins = torch.tensor([[window.origin] for window in sessions._windows])
        return (sessions.chunk * FRAMES + frames) / 2 - origins

    monkeypatch.setattr(sessions, "_said", said)
    rolled = [sessions.make(0) for _ in range(5)][-1]
    assert min(rolled.origins) > 0
    assert rolled.origins[0] != rolled.origins[1]
    # Tokens are told apart by the frames that they take: a quarter of one, as the aligner's own tests ask.
    torch.testing.assert_close(stage._heard(rolled), rolled.said, rtol=0, atol=0.25)


def test_without_the_pointer_the_plan_of_durations_decides(corpus):
    stage = stage_of(corpus, "pointer")
    assert stage.name == "rollout-without-pointer"
    stage._begin(2, step_generator(0, 0))
    said = stage.sessions.make(0).said
    # The plan is a steady one, and it is not what the pointer read.
    assert (said.diff(dim=1) >= 0).all()
    assert not torch.allclose(said, stage.sessions._buffers.position)
    assert "pointer" not in stage.update(0, step_generator(0, 0))


def test_without_the_sink_neither_student_nor_scores_see_it(corpus):
    stage = stage_of(corpus, "sink")
    assert stage.about != stage_of(corpus).about
    stage._begin(2, step_generator(0, 0))
    stage.sessions.make(0)
    assert stage.sessions.make(0).batch.valid.tolist() == [[True, False, True]] * 2


class Stored:
    """A tensor that a graph keeps for its backward pass."""

    def __init__(self, tensor):
        self.tensor = tensor


def size(tensors):
    """Return the bytes of tensors, each storage once."""
    return sum({each.data_ptr(): each.untyped_storage().nbytes() for each in tensors}.values())


def test_a_chunk_with_its_graph_takes_as_much_memory_late_in_a_rollout_as_early(corpus, monkeypatch):
    stage, chunks = stage_of(corpus), 8
    stored, live, graphs = weakref.WeakSet(), [], []
    update = stage.trained["joint"].update

    def measured(loss, step):
        if stage.sessions.chunk in (2, chunks):
            gc.collect()
            of_graphs = [each.tensor for each in stored]
            graphs.append(size(of_graphs))
            live.append(size([each for each in gc.get_objects() if type(each) is torch.Tensor] + of_graphs))
        return update(loss, step)

    def pack(tensor):
        stored.add(each := Stored(tensor.detach()))
        return each

    monkeypatch.setattr(stage.trained["joint"], "update", measured)
    generator = step_generator(0, 0)
    stage._begin(chunks, generator)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda each: each.tensor):
        for _ in range(chunks):
            stage._chunk(0, generator)
    # Texts of other lengths move it by half a hundredth of a graph, and the sound of six chunks as much.
    assert abs(live[1] - live[0]) < 0.02 * min(graphs)
