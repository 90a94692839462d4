"""A session is interrupted whenever its user likes, and says what was said and what was played."""

import threading

import pytest
import torch

from streamchar.runtime import timeline
from streamchar.session.pacer import Pacer
from streamchar.session.session import SessionReentryError
from streamchar.text.normalize import TextError
from tests.engine.small import SMALL, TEXT, build, media, picture, take, window_of
from tests.engine.threads import PATIENCE, Held, Steps, in_thread, together, until


def test_interrupt_returns_after_the_step_under_way():
    session = build().open(picture())
    speech = session.speak(TEXT)
    with Held() as held:
        chunk = in_thread(lambda: next(speech))
        held.wait()
        report = in_thread(session.interrupt)
        until(lambda: speech.ended)
        held.go()
        assert report().sample == 0
        with pytest.raises(StopIteration):
            chunk()
    assert held.seen == [0]


def test_interrupt_waits_for_no_other_session():
    engine = build(max_sessions=2)
    first, second = engine.open(picture()), engine.open(picture(1))
    with Held() as held:
        chunk = in_thread(lambda: next(first.speak(TEXT)))
        held.wait()
        # The pass of the first is under way, so the second waits for its own.
        other = in_thread(lambda: next(second.speak(TEXT)))
        until(lambda: engine.stats().waiting)
        assert in_thread(second.interrupt)().sample == 0
        assert held.seen == [0]
        held.go(SMALL.sampler.steps)
        assert chunk().index == 0
        with pytest.raises(StopIteration):
            other()
    assert engine.stats().chunks == 1


def test_interrupting_one_of_a_batch_takes_one_step_and_the_others_keep_their_chunk():
    engine = build(max_sessions=2)
    sessions = [engine.open(picture(seed), seed=seed) for seed in range(2)]
    speeches = [session.speak(TEXT) for session in sessions]
    with Held() as held:
        # The second chunk is dropped, so its iterator ends with the value given here.
        calls = [lambda speech=speech: next(speech, None) for speech in speeches]
        chunks = in_thread(lambda: together(engine, *calls))
        held.wait()
        report = in_thread(sessions[1].interrupt)
        until(lambda: speeches[1].ended)
        held.go()
        assert report().sample == 0
        held.wait()
        assert held.seen == [0, 1]
        held.go(SMALL.sampler.steps)
        made, dropped = chunks()
    assert made.index == 0
    assert dropped is None
    assert engine.stats().chunks == 1


def test_a_chunk_asked_for_by_a_closed_session_conditions_nobody():
    def ours(engine, before):
        before(engine)
        session = engine.open(picture(5), seed=5)
        return media(take(session, 2))

    def closed(engine):
        session = engine.open(picture(), pacer=Pacer(0.0))
        speech = session.speak("one two three four")
        next(speech)
        # It waits for its playback when it is closed.
        late = in_thread(lambda: next(speech))
        until(lambda: speech._request is not None)
        session.close()
        with pytest.raises(StopIteration):
            late()

    expected = ours(build(max_sessions=1), lambda engine: None)
    found = ours(build(max_sessions=1), closed)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])


@pytest.mark.parametrize("end", ["interrupt", "close"])
def test_a_wait_for_playback_ends_with_the_speech(end):
    session = build().open(picture(), pacer=Pacer(0.0))
    speech = session.speak(TEXT, max_seconds=60)
    next(speech)
    session.pacer.delivered(3600.0)
    late = in_thread(lambda: next(speech))
    until(lambda: speech._request is not None)
    getattr(session, end)()
    with pytest.raises(StopIteration):
        late()


def test_with_a_pacer_an_interruption_tells_what_was_played_from_what_was_delivered():
    now = [0.0]
    pacer = Pacer(float("inf"), clock=lambda: now[0], sleep=lambda seconds: None)
    session = build().open(picture(), pacer=pacer)
    speech = session.speak(TEXT, max_seconds=60)
    chunks = [next(speech) for _ in range(3)]
    now[0] = 1.5 * SMALL.seconds
    report = session.interrupt()
    assert (report.sample, report.played_sample) == (96_000, 48_000)
    words = [word for chunk in chunks for word in chunk.words]
    assert report.words == len(words)
    assert report.played_words == sum(word.sample <= 48_000 for word in words)
    assert pacer.lead == 0.0


def test_after_an_interruption_figures_stay_until_there_is_more_to_say():
    now = [0.0]
    pacer = Pacer(float("inf"), clock=lambda: now[0], sleep=lambda seconds: None)
    session = build().open(picture(), pacer=pacer)
    speech = session.speak(TEXT, max_seconds=60)
    for _ in range(3):
        next(speech)
    now[0] = SMALL.seconds
    report = session.interrupt()
    # Nothing more was played of what the player has dropped.
    assert report.played_sample == 32_000
    now[0] = 10 * SMALL.seconds
    assert session.interrupt() == report
    take(session, 1)
    assert session.interrupt().played_sample == 96_000


def test_a_text_that_is_refused_leaves_the_figures_as_they_are():
    now = [0.0]
    pacer = Pacer(float("inf"), clock=lambda: now[0], sleep=lambda seconds: None)
    session = build().open(picture(), pacer=pacer)
    take(session, 3)
    report = session.interrupt()
    with pytest.raises(TextError):
        session.speak("")
    assert session.interrupt() == report


def test_an_interruption_while_a_speech_begins_does_not_outlast_it():
    session = build().open(picture())

    class Eager:
        def __iter__(self):
            session.interrupt()
            return iter(["one two three "])

    speech = session.speak(Eager(), max_seconds=60)
    next(speech)
    assert session.interrupt().sample == 32_000
    assert list(speech) == []


def test_the_thread_that_makes_the_chunk_is_not_made_to_wait_for_itself():
    session, refused = build().open(picture()), []

    def signalled(step):
        with pytest.raises(SessionReentryError, match="let the handler start a thread or set a flag"):
            session.interrupt()
        refused.append(step)

    speech = session.speak(TEXT, max_seconds=60)
    with Steps(signalled):
        next(speech)
    assert refused == list(range(SMALL.sampler.steps))
    assert session.interrupt().sample == 32_000


def test_a_chunk_that_was_not_handed_over_was_not_played(monkeypatch):
    now = [0.0]
    engine = build()
    session = engine.open(picture(), pacer=Pacer(float("inf"), clock=lambda: now[0]))
    executor, may = engine.scheduler.executor, threading.Event()
    deliver = executor.deliver

    def late(delivery):
        assert may.wait(PATIENCE)
        return deliver(delivery)

    monkeypatch.setattr(executor, "deliver", late)
    speech = session.speak(TEXT, max_seconds=60)
    chunk = in_thread(lambda: next(speech))
    until(lambda: session.next_sample)
    report = session.interrupt()
    may.set()
    assert (report.sample, report.played_sample, report.played_words) == (32_000, 0, 0)
    assert len(chunk().words) == report.words > 0


def test_what_is_left_to_play_may_reach_into_the_text_before():
    now = [0.0]
    pacer = Pacer(float("inf"), clock=lambda: now[0], sleep=lambda seconds: None)
    session = build().open(picture(), pacer=pacer)
    words = [word for chunk in session.speak(TEXT, max_seconds=2.6) for word in chunk.words]
    words += next(session.speak("and on it goes", max_seconds=60)).words
    now[0] = 0.5 * SMALL.seconds
    report = session.interrupt()
    assert report.played_sample == 16_000
    assert report.played_words == sum(word.sample <= 16_000 for word in words) < report.words
    # Of the text at hand nothing was said yet: what was not played is of the one before.
    assert report.text == ""


def test_the_next_text_waits_for_an_interruption_from_another_thread():
    session = build().open(picture())
    speech = session.speak(TEXT, max_seconds=60)

    def speak_on():
        assert list(speech) == []
        return next(session.speak("fresh words", max_seconds=60))

    with Held() as held:
        chunk = in_thread(speak_on)
        held.wait()
        report = in_thread(session.interrupt)
        until(lambda: speech.ended)
        held.go(1 + SMALL.sampler.steps)
        assert report().words == 0
        assert chunk().index == 0
    assert window_of(session) == "fresh words"


def test_an_endless_text_is_quoted_by_its_last_words_and_held_no_longer(monkeypatch):
    monkeypatch.setattr(timeline, "QUOTED_WORDS", 3)
    session = build().open(picture())
    speech = session.speak(TEXT, max_seconds=60)
    words = [word.text for _ in range(4) for word in next(speech).words]
    assert len(words) > 3
    report = session.interrupt()
    assert report.text.split() == words[-3:]
    assert report.words == len(words)


def test_after_ctrl_c_while_another_session_is_served_nobody_makes_the_chunk(monkeypatch):
    engine = build(max_sessions=2)
    first, second = engine.open(picture()), engine.open(picture(1))

    class Interrupted:
        def __enter__(self):
            raise KeyboardInterrupt

        def __exit__(self, *_):
            raise AssertionError("not entered")

    monkeypatch.setattr(engine.scheduler, "_lock", Interrupted())
    with pytest.raises(KeyboardInterrupt):
        next(second.speak(TEXT))
    monkeypatch.undo()
    assert engine.stats().waiting == 0
    assert take(first, 1)
    assert engine.stats().chunks == 1
    second.interrupt()
    assert take(second, 1)[0].index == 0
