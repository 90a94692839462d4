"""The engine makes uniform chunks on one clock, for one session or several at once."""

import asyncio
import threading

import pytest
import torch

from streamchar import engine as engine_module
from streamchar.checkpoint import CheckpointError
from streamchar.engine import CapacityError, StreamCharEngine
from streamchar.runtime.memory_budget import WeightsMemoryError
from streamchar.session.pacer import Pacer
from streamchar.session.session import SessionBusyError, SessionClosedError
from streamchar.text.normalize import TextError
from streamchar.text.tokenizers import ByteTokenizer
from tests.closeness import assert_close
from tests.engine.simulated import Simulated
from tests.engine.small import SMALL, TEXT, OpenRow, build, media, picture, take
from tests.engine.threads import Steps, together


def test_a_text_becomes_uniform_chunks_on_one_clock():
    session = build().open(picture())
    chunks = list(session.speak(TEXT, max_seconds=3.5))
    assert [chunk.index for chunk in chunks] == [0, 1, 2]
    assert [chunk.start_sample for chunk in chunks] == [0, 32000, 64000]
    for chunk in chunks:
        assert chunk.video.shape == (32, 32, 32, 3)
        assert chunk.video.dtype == torch.uint8
        assert chunk.video_yuv.shape == (32, 48, 32)
        # 1000 samples a frame, exactly: the two streams cannot drift apart.
        assert chunk.audio.shape == (1000 * len(chunk.video),)
        assert torch.isfinite(chunk.audio).all()
        # On a CPU one stage follows another.
        stages = sum(seconds for stage, seconds in chunk.latency.items() if stage != "total")
        assert 0 < stages <= chunk.latency["total"]
    samples = [word.sample for chunk in chunks for word in chunk.words]
    assert samples == sorted(samples)
    assert all(0 < sample <= 96000 for sample in samples)


def test_same_seed_same_media_and_another_seed_another():
    first, again = (media(take(build().open(picture(), seed=7))) for _ in range(2))
    other = media(take(build().open(picture(), seed=8)))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])
    assert not torch.equal(first[1], other[1])


def test_a_row_used_before_gives_what_a_fresh_engine_gives():
    engine = build()
    used = engine.open(picture(1), seed=1)
    take(used, 3)
    used.close()
    ours, fresh = media(take(engine.open(picture(), seed=7))), media(take(build().open(picture(), seed=7)))
    assert torch.equal(ours[0], fresh[0])
    assert torch.equal(ours[1], fresh[1])


def test_sessions_that_ask_together_share_a_pass_and_see_nothing_of_each_other():
    # One session is a chunk ahead, so the rows of the batch stand at different points.
    ahead = (1, 0)
    alone = []
    for seed in (1, 2):
        session = build().open(picture(seed), seed=seed)
        take(session, ahead[seed - 1])
        alone.append(media(take(session, 2)))
    engine = build(max_sessions=2)
    sessions = [engine.open(picture(seed), seed=seed) for seed in (1, 2)]
    take(sessions[0], ahead[0])
    results = together(engine, *(lambda session=session: take(session, 2) for session in sessions))
    assert engine.stats().batched >= 2
    for (video, audio), chunks in zip(alone, results, strict=True):
        ours = media(chunks)
        # Batched and single products sum in another order: fp32 rounding, through two chunks of feedback.
        assert_close(ours[1], audio, torch.float32, 2.0**14)
        assert (ours[0].int() - video.int()).abs().max() <= 1


@pytest.mark.parametrize("overlapping", [False, True], ids=["in-order", "overlapping"])
def test_prefix_and_commit_are_batched_where_every_row_is_due_and_touch_no_other_row(
    monkeypatch, overlapping
):
    if overlapping:
        queues = Simulated(seed=4)
        monkeypatch.setattr(engine_module, "queues_for", lambda device: queues)
    engine = build(max_sessions=3)
    executor, ran = engine.scheduler.executor, []
    rows = executor.rows
    runners = {"all": rows.runner} | {str(index): row.runner for index, row in enumerate(rows)}

    def noted(name, stage, step):
        return lambda: (ran.append((name, stage)), step())

    for name, runner in runners.items():
        for stage in ("prefill", "append_history"):
            monkeypatch.setattr(runner, stage, noted(name, stage, getattr(runner, stage)))
        for role, step in runner.commit.items():
            monkeypatch.setitem(runner.commit, role, noted(name, role, step))
    open_rows = [OpenRow(engine, seed, TEXT * 2 + " ") for seed in range(3)]

    @torch.inference_mode()
    def make(*indices):
        """Make a chunk of each, and let everything behind it run."""
        ran.clear()
        requests = [open_rows[index].request() for index in indices]
        executor.run(requests)
        for request in requests:
            executor.deliver(request.pending)
        executor.commit()
        if overlapping:
            queues.drain()
        return set(ran)

    def memory(row):
        runner = rows[row].runner
        cache = runner.cache
        state = [*vars(runner.state).values(), runner.buffers.history, *cache.k, *cache.v]
        # Slots of noisy tokens hold nothing that outlives a pass.
        fixed = cache.regions["video"][0]
        slots = slice(engine.orchestrator.prefix_tokens)
        state[:2] = [x[:, :, slots] for x in state[:2]]
        return [x[:, :fixed] if x.dim() == 4 and x.shape[1] == cache.capacity else x for x in state]

    # The first chunk of one row, of two, then the first of one and a later one of the others.
    before = [x.clone() for x in memory(2)]
    assert {("0", "sink"), ("0", "motion"), ("0", "append_history"), ("0", "prefill")} == make(0)
    assert {("1", "sink"), ("0", "motion"), ("1", "motion")} < make(0, 1)
    assert all(torch.equal(now, then) for now, then in zip(memory(2), before, strict=True))
    commits = {("2", "sink"), ("all", "motion"), ("all", "append_history")}
    ran_together = make(0, 1, 2)
    assert commits < ran_together
    assert not {("0", "sink"), ("1", "sink"), ("0", "motion"), ("2", "motion")} & ran_together
    assert ("all", "prefill") in ran_together or overlapping
    assert make(0, 1, 2) == {("all", "prefill"), ("all", "motion"), ("all", "append_history")}
    before = [x.clone() for x in memory(1)]
    make(0, 2)
    assert all(torch.equal(now, then) for now, then in zip(memory(1), before, strict=True))


def test_sinks_of_sessions_that_begin_together_share_a_pass(monkeypatch):
    engine, roles = build(max_sessions=2), []
    commit = engine.scheduler.executor.rows.runner.commit
    for role, step in commit.items():
        noted = lambda role=role, step=step: (roles.append(role), step())  # noqa: E731
        monkeypatch.setitem(commit, role, noted)
    sessions = [engine.open(picture(seed), seed=seed) for seed in range(2)]
    together(engine, *(lambda session=session: take(session, 2) for session in sessions))
    assert roles[:2] == ["sink", "motion"]


def test_a_second_text_continues_with_the_same_identity_and_clock():
    session = build().open(picture())
    first, second = take(session, 2), take(session, 1, "and then some more")
    assert second[0].index == 2
    assert second[0].start_sample == first[-1].start_sample + 32000


def test_interrupt_reports_what_was_delivered_and_drops_the_rest():
    session = build().open(picture())
    speech = session.speak(TEXT, max_seconds=60)
    chunk = next(speech)
    report = session.interrupt()
    assert report.sample == report.played_sample == 32000
    assert report.words == report.played_words
    assert report.words == len(chunk.words)
    assert report.text == " ".join(word.text for word in chunk.words)
    with pytest.raises(StopIteration):
        next(speech)
    assert next(session.speak("more")).start_sample == 32000


def test_an_interruption_drops_the_chunk_at_its_next_denoising_step():
    engine = build()
    session = engine.open(picture())
    speech = session.speak(TEXT, max_seconds=60)
    next(speech)
    seen = []

    def step(index):
        seen.append(index)
        if index == 1:
            speech.interrupt()

    with Steps(step), pytest.raises(StopIteration):
        next(speech)
    assert seen == [0, 1]
    assert session.interrupt().sample == 32000
    assert engine.stats().chunks == 1


def test_async_iteration_gives_the_same_chunks():
    async def collect(session):
        return [chunk async for chunk in session.speak(TEXT, max_seconds=2.5)]

    chunks = asyncio.run(collect(build().open(picture(), seed=7)))
    expected = take(build().open(picture(), seed=7), 2)
    assert torch.equal(media(chunks)[0], media(expected)[0])


def test_a_full_engine_refuses_and_goes_on():
    engine = build()
    session = engine.open(picture())
    with pytest.raises(CapacityError, match=r"at most 1 \(max_sessions\), got one more; close a session"):
        engine.open(picture())
    assert take(session, 1)
    session.close()
    session.close()
    assert engine.stats().sessions == 0
    with engine.open(picture()) as again:
        assert take(again, 1)
    assert engine.stats().sessions == 0


def test_a_session_speaks_one_text_at_a_time():
    session = build().open(picture())
    speech = session.speak(TEXT)
    next(speech)
    with pytest.raises(SessionBusyError, match="call interrupt"):
        session.speak("another")


def test_a_closed_session_refuses_everything_by_name():
    session = build().open(picture())
    speech = session.speak(TEXT)
    session.close()
    for use in (lambda: session.speak("x"), session.interrupt, lambda: next(speech)):
        with pytest.raises(SessionClosedError, match="open a new one"):
            use()


@pytest.mark.parametrize(
    "text", ["", "  \n", "x" * 100_001, "bell\x07"], ids=["empty", "blank", "long", "bell"]
)
def test_text_that_cannot_be_spoken_is_refused_before_any_work(text):
    engine = build()
    session = engine.open(picture())
    with pytest.raises(TextError):
        session.speak(text)
    assert engine.stats().chunks == 0
    assert take(session, 1)


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        (torch.zeros(3, 16, 16), r"reference.shape must be \[3, 32, 32\], got \[3, 16, 16\]"),
        (torch.full((3, 32, 32), float("nan")), "reference must be finite"),
        (
            torch.full((3, 32, 32), 255.0),
            r"reference must be in \[-1, 1\], got 255 to 255; convert levels of 0 to 255",
        ),
        (
            torch.zeros((3, 32, 32), dtype=torch.uint8),
            "reference must be a floating-point tensor, got torch.uint8",
        ),
        (None, "reference must be a floating-point tensor, got NoneType; load_reference"),
    ],
    ids=["shape", "nan", "range", "integers", "none"],
)
def test_a_wrong_reference_is_refused_and_takes_no_place(reference, message):
    engine = build()
    with pytest.raises((ValueError, TypeError), match=message):
        engine.open(reference)
    assert engine.stats().sessions == 0


@pytest.mark.parametrize("seed", [2**63, -(2**63) - 1, 1.5, "7", True])
def test_a_seed_that_is_no_64_bit_integer_is_refused_and_takes_no_place(seed):
    engine = build()
    with pytest.raises((ValueError, TypeError), match="seed must be"):
        engine.open(picture(), seed=seed)
    assert engine.stats().sessions == 0
    assert take(engine.open(picture(), seed=2**63 - 1), 1)


def test_an_error_before_the_chunk_is_made_leaves_the_session_as_it_was():
    session = build().open(picture(), seed=7)

    def fails(step):
        raise MemoryError("no")

    with Steps(fails), pytest.raises(MemoryError):
        next(session.speak(TEXT))
    session.interrupt()
    assert torch.equal(media(take(session))[0], media(take(build().open(picture(), seed=7)))[0])


def test_a_session_that_lost_a_chunk_half_way_refuses_to_go_on_and_others_do(monkeypatch):
    engine = build(max_sessions=2)
    broken, other = engine.open(picture()), engine.open(picture())
    speech = broken.speak(TEXT)
    monkeypatch.setattr(engine.vae, "decode", lambda *a: (_ for _ in ()).throw(MemoryError("no room")))
    with pytest.raises(MemoryError):
        next(speech)
    monkeypatch.undo()
    with pytest.raises(
        SessionClosedError, match="lost a chunk and cannot continue; close it and open a new one"
    ):
        broken.speak("again")
    assert take(other, 2)
    broken.close()
    assert take(engine.open(picture()), 1)


def test_ctrl_c_reaches_one_session_and_the_others_of_its_pass_go_on():
    engine = build(max_sessions=2)
    sessions = [engine.open(picture(seed), seed=seed) for seed in range(2)]
    hit, made = [], []

    def step(index):
        if not hit:
            hit.append(threading.current_thread())
            raise KeyboardInterrupt

    def ask(session):
        try:
            made.append(next(session.speak(TEXT)))
        except KeyboardInterrupt:
            hit.append(threading.current_thread())

    with Steps(step):
        together(engine, *(lambda session=session: ask(session) for session in sessions))
    # Raised once, in the thread that it reached; the other session has its chunk.
    assert len(hit) == 2
    assert hit[0] is hit[1]
    assert len(made) == 1


def test_a_batch_whose_decoding_fails_leaves_sessions_outside_it_whole(monkeypatch):
    engine = build(max_sessions=3)
    sessions = [engine.open(picture(seed)) for seed in range(3)]
    take(sessions[2], 1)
    broken = []
    decode = engine.vae.decode
    monkeypatch.setattr(engine.vae, "decode", lambda *a: (_ for _ in ()).throw(MemoryError("no room")))

    def ask(session):
        with pytest.raises(MemoryError):
            next(session.speak(TEXT))
        broken.append(session)

    together(engine, *(lambda session=session: ask(session) for session in sessions[:2]))
    monkeypatch.setattr(engine.vae, "decode", decode)
    assert len(broken) == 2
    assert take(sessions[2], 1)[0].index == 1


def test_a_pacer_keeps_generation_one_chunk_ahead_of_playback():
    now, waits = [0.0], []

    def sleep(seconds):
        waits.append(seconds)
        now[0] += seconds

    pacer = Pacer(SMALL.seconds, clock=lambda: now[0], sleep=sleep)
    session = build().open(picture(), pacer=pacer)
    take(session, 3)
    # The first two chunks fill the lead; the third waits until the first has been played.
    assert waits == [pytest.approx(SMALL.seconds)]


def test_an_engine_without_rows_or_weights_is_refused():
    with pytest.raises(ValueError, match="max_sessions must be at least 1, got 0"):
        build(max_sessions=0)
    with pytest.raises(CheckpointError, match="random_weights=True"):
        StreamCharEngine.from_preset("5b")


def test_weights_that_the_memory_cannot_hold_are_refused_before_they_are_made(monkeypatch):
    monkeypatch.setattr(engine_module, "available_bytes", lambda device: 2**30)
    with pytest.raises(
        WeightsMemoryError, match=r"weights must fit the device, got \d\d\.\d GiB .* 1\.0 GiB"
    ):
        StreamCharEngine.from_preset("5b", random_weights=True)


class Shouting(ByteTokenizer):
    """A tokenizer of a user's own."""

    def encode(self, text):
        return super().encode(text.upper())


def test_a_tokenizer_of_ones_own_is_asked_for_when_its_engine_is_loaded(tmp_path):
    engine = build()
    with torch.random.fork_rng():
        engine = StreamCharEngine(
            SMALL, engine.dit, engine.orchestrator, engine.vae, engine.vocoder, Shouting()
        )
    engine.save_pretrained(tmp_path / "weights")
    with pytest.raises(CheckpointError, match=r"holds no tokenizer; pass .* from_pretrained\(tokenizer=\)"):
        StreamCharEngine.from_pretrained(tmp_path / "weights")
    again = StreamCharEngine.from_pretrained(tmp_path / "weights", device="cpu", tokenizer=Shouting())
    ours, theirs = (media(take(each.open(picture(), seed=7))) for each in (engine, again))
    assert torch.equal(ours[1], theirs[1])
    again.save_pretrained(tmp_path / "once-more")
    with pytest.raises(CheckpointError, match="holds no tokenizer"):
        StreamCharEngine.from_pretrained(tmp_path / "once-more")


def test_a_saved_engine_speaks_as_before(tmp_path):
    engine = build(seed=5)
    engine.save_pretrained(tmp_path / "weights")
    again = StreamCharEngine.from_pretrained(tmp_path / "weights", device="cpu")
    assert again.preset == SMALL
    ours, theirs = (media(take(each.open(picture(), seed=7))) for each in (engine, again))
    assert torch.equal(ours[0], theirs[0])
    assert torch.equal(ours[1], theirs[1])


def test_a_checkpoint_cut_short_names_its_file(tmp_path):
    build().save_pretrained(tmp_path / "weights")
    shard = next((tmp_path / "weights").glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=shard.name):
        StreamCharEngine.from_pretrained(tmp_path / "weights")
