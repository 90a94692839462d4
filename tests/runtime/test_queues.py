"""Stages overlap and wait for what they read: any order that the queues allow gives the same media."""

import threading
import time
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from streamchar import engine as engine_module
from streamchar.runtime.queues import COMPLETED, InOrderQueues, queues_for
from tests.engine.simulated import Simulated
from tests.engine.small import TEXT, OpenRow, build, media, picture, take, window_of
from tests.engine.threads import Steps, together

ORDERS = [None, 0, 1, 2]


def overlapping(queues, sessions=1):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine_module, "queues_for", lambda device: queues)
        return build(max_sessions=sessions)


@pytest.fixture(scope="module")
def expected():
    with build().open(picture(), seed=7) as session:
        return media(take(session, 3))


@pytest.mark.parametrize("seed", ORDERS)
def test_every_order_that_queues_allow_gives_the_media_of_one_after_another(seed, expected):
    with overlapping(Simulated(seed)).open(picture(), seed=7) as session:
        chunks = take(session, 3)
    ours = media(chunks)
    assert torch.equal(ours[0], expected[0])
    assert torch.equal(ours[1], expected[1])
    for chunk in chunks:
        assert torch.equal(chunk.host.video, chunk.video)
        assert torch.equal(chunk.host.video_yuv, chunk.video_yuv)
        assert torch.equal(chunk.host.audio, chunk.audio)
        assert chunk.host.video.data_ptr() != chunk.video.data_ptr()


def test_queues_that_do_not_wait_for_one_another_are_noticed():
    session = overlapping(Simulated(heedless=True)).open(picture(), seed=7)
    # Media are copied before they are there.
    with pytest.raises(IndexError):
        take(session, 3)


def test_a_pass_of_others_waits_until_latents_have_been_decoded():
    # A decodes while B and C share a pass, which overwrites the latents of every row.
    def deliver(engine):
        requests = [OpenRow(engine, seed, TEXT + " ").request() for seed in range(3)]
        executor = engine.scheduler.executor
        with torch.inference_mode():
            executor.run(requests[:1])
            executor.run(requests[1:])
            return [executor.deliver(request.pending) for request in requests]

    ours = deliver(overlapping(Simulated(), 3))
    for chunk, alone in zip(ours, deliver(build(max_sessions=3)), strict=True):
        assert torch.equal(chunk.video, alone.video)
        assert torch.equal(chunk.audio, alone.audio)


def test_the_viewer_waits_for_decoding_and_not_for_what_comes_after():
    queues = Simulated()
    engine = overlapping(queues)
    session = engine.open(picture(), seed=7)
    commits = []
    runner = engine.scheduler.executor.rows[0].runner
    prefill = runner.prefill
    for role, commit in runner.commit.items():
        runner.commit[role] = lambda role=role, commit=commit: (commits.append(role), commit())
    runner.prefill = lambda: (commits.append("prefill"), prefill())
    speech = session.speak(TEXT, max_seconds=60)
    next(speech)
    # The chunk is there, and of what follows it nothing has run yet: it waits behind the latents.
    assert commits == ["prefill"]
    queues.drain()
    assert commits == ["prefill", "sink", "motion", "prefill"]
    next(speech)
    # The prefix was there already.
    assert commits == ["prefill", "sink", "motion", "prefill"]
    queues.drain()
    assert commits[4:] == ["motion", "prefill"]


def test_text_that_arrives_late_is_prefilled_anew():
    def speak(engine):
        more = threading.Event()

        def pieces():
            yield "one two three "
            assert more.wait(60)
            yield "four five six "
            yield "seven eight nine "

        with engine.open(picture(), seed=7) as session:
            speech = session.speak(pieces(), max_seconds=3.9)
            chunks = [next(speech)]
            # Queued behind the first chunk, before there was more to say.
            assert window_of(session) == "one two three"
            more.set()
            patience = time.monotonic() + 60
            while len(speech._feed._ready) < 2:
                assert time.monotonic() < patience
            return media([*chunks, *speech])

    ours, expected = speak(overlapping(Simulated(5))), speak(build())
    assert torch.equal(ours[0], expected[0])
    assert torch.equal(ours[1], expected[1])


def test_an_interruption_finds_at_most_one_step_under_way():
    queues = Simulated()
    speech = overlapping(queues).open(picture()).speak(TEXT, max_seconds=60)
    ran = []

    def step(index):
        ran.append(index)
        if index == 1:
            speech.interrupt()

    with Steps(step):
        assert list(speech) == []
        queues.drain()
    # A queue that was filled in advance would run all of them.
    assert ran == [0, 1]


def test_sessions_that_ask_together_overlap_too():
    def speak(engine):
        sessions = [engine.open(picture(seed), seed=seed) for seed in (1, 2)]
        results = [[], []]
        for _ in range(2):
            made = together(engine, *(lambda i=i: take(sessions[i], 1, TEXT) for i in range(2)))
            for result, chunks in zip(results, made, strict=True):
                result += chunks
        assert engine.stats().batched == 4
        return [media(chunks) for chunks in results]

    ours, expected = speak(overlapping(Simulated(6), 2)), speak(build(max_sessions=2))
    for (video, audio), (other_video, other_audio) in zip(ours, expected, strict=True):
        assert torch.equal(video, other_video)
        assert torch.equal(audio, other_audio)


def test_a_cpu_runs_everything_where_it_is_given():
    queues, ran = queues_for(torch.device("cpu")), []
    assert isinstance(queues, InOrderQueues)
    done = queues.run("decode", lambda: ran.append(1))
    assert ran == [1]
    done.wait()
    assert done.seconds > 0


class FakeCuda:
    """Records what is asked of streams and events."""

    def __init__(self, patch):
        self.log = []
        patch.setattr(torch.cuda, "Stream", self.stream)
        patch.setattr(torch.cuda, "Event", self.event)
        patch.setattr(torch.cuda, "stream", self.entered)
        patch.setattr(torch.cuda, "synchronize", lambda *_: pytest.fail("waited for the whole device"))

    def stream(self, device):
        name = f"stream {sum(entry[0] == 'stream' for entry in self.log)}"
        self.log.append(("stream", name))
        return SimpleNamespace(name=name, wait_event=lambda event: self.log.append((name, "waits", event)))

    def event(self, enable_timing, blocking):
        assert enable_timing
        event = SimpleNamespace()
        event.record = lambda stream: self.log.append((stream.name, "records", event))
        event.synchronize = lambda: self.log.append(("host", "waits", event))
        event.elapsed_time = lambda end: 250.0
        return event

    @contextmanager
    def entered(self, stream):
        self.log.append((stream.name, "enters"))
        yield
        self.log.append((stream.name, "leaves"))


def test_a_gpu_gets_a_stream_a_queue_and_events_between_them(monkeypatch):
    cuda = FakeCuda(monkeypatch)
    queues = queues_for(torch.device("cuda"))
    assert queues.overlaps
    assert len(cuda.log) == 3
    cuda.log.clear()
    first = queues.run("main", lambda: cuda.log.append("first"))
    second = queues.run("decode", lambda: cuda.log.append("second"), first, COMPLETED)
    second.wait()
    main, decode = cuda.log[0][0], cuda.log[5][0]
    assert main != decode
    assert cuda.log == [
        (main, "enters"),
        (main, "records", first.start),
        "first",
        (main, "records", first.end),
        (main, "leaves"),
        (decode, "enters"),
        (decode, "waits", first.end),
        (decode, "records", second.start),
        "second",
        (decode, "records", second.end),
        (decode, "leaves"),
        ("host", "waits", second.end),
    ]
    assert second.seconds == 0.25
