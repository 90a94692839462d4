"""A session takes text as it comes, and other sessions see nothing of it."""

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from streamchar.session.session import SessionBusyError, SessionClosedError
from streamchar.text.normalize import TextError
from tests.engine.small import TEXT, build, media, picture, take, window_of
from tests.engine.threads import PATIENCE, Slow, Steps, in_thread, until


@pytest.mark.parametrize(
    "pieces",
    [[TEXT], [word + " " for word in TEXT.split()], list(TEXT), iter(TEXT)],
    ids=["one", "words", "characters", "iterator"],
)
def test_text_in_pieces_gives_the_media_of_the_whole_text(pieces):
    whole = media(list(build().open(picture(), seed=7).speak(TEXT, max_seconds=4)))
    ours = media(list(build().open(picture(), seed=7).speak(pieces, max_seconds=4)))
    assert torch.equal(ours[0], whole[0])
    assert torch.equal(ours[1], whole[1])


def test_a_chunk_is_made_of_what_has_come_and_does_not_wait_for_more():
    pieces = Slow("one two three four five ", "six seven ", "eight")
    session = build().open(picture())
    speech = session.speak(pieces, max_seconds=60)
    assert pieces.taken == 0
    pieces.come()
    next(speech)
    assert window_of(session) == "one two three four five"
    pieces.come()
    until(lambda: pieces.taken == 2)
    next(speech)
    assert "six seven" in window_of(session)
    pieces.come(2)
    until(lambda: pieces.asked == 4)
    next(speech)
    assert window_of(session).endswith("eight")


def test_speech_waits_for_text_where_all_of_it_is_said():
    pieces = Slow("one ", "two")
    session = build().open(picture())
    speech = session.speak(pieces, max_seconds=60)
    chunk = in_thread(lambda: next(speech))
    time.sleep(0.05)
    assert session.next_sample == 0
    pieces.come()
    assert chunk().index == 0
    pieces.come(2)


def test_interrupting_does_not_wait_for_text_and_what_comes_late_is_never_said():
    pieces = Slow("leftover secret ")
    session = build().open(picture())
    speech = session.speak(pieces, max_seconds=60)
    chunk = in_thread(lambda: next(speech))
    until(lambda: pieces.asked)
    assert session.interrupt().sample == 0
    with pytest.raises(StopIteration):
        chunk()
    pieces.come()
    until(lambda: pieces.taken == 1)
    next(session.speak("fresh words", max_seconds=60))
    assert window_of(session) == "fresh words"


def test_a_dead_iterator_ends_the_speech_and_nothing_of_it_reaches_the_next():
    session = build().open(picture())
    pieces = Slow("one two thr", ConnectionError("the model went away"))
    pieces.come(2)
    with pytest.raises(ConnectionError):
        list(session.speak(pieces))
    next(session.speak("and on", max_seconds=60))
    assert window_of(session).split()[-2:] == ["and", "on"]
    assert "thr" not in window_of(session)


@pytest.mark.parametrize(
    ("piece", "error", "message"),
    [(b"bytes", TypeError, "pieces of text must be str, got bytes"), ("bell\x07", TextError, "U\\+0007")],
    ids=["bytes", "bell"],
)
def test_a_piece_that_is_no_text_ends_the_speech_and_the_session_goes_on(piece, error, message):
    session = build().open(picture())
    with pytest.raises(error, match=message):
        list(session.speak(["one two ", piece]))
    next(session.speak("and on", max_seconds=60))
    assert window_of(session) == "and on"


@pytest.mark.parametrize(
    ("text", "kind"), [(None, "NoneType"), (b"hi", "bytes"), (7, "int")], ids=["none", "bytes", "number"]
)
def test_what_is_no_text_is_refused_at_once(text, kind):
    session = build().open(picture())
    with pytest.raises(
        TypeError, match=f"text must be str, or an iterable or async iterable of str, got {kind}"
    ):
        session.speak(text)
    assert take(session, 1)


@pytest.mark.parametrize("seconds", [0, -1.0, float("nan")])
def test_a_time_limit_that_is_none_is_refused_at_once(seconds):
    session = build().open(picture())
    with pytest.raises(ValueError, match="max_seconds must be above 0"):
        session.speak(TEXT, max_seconds=seconds)
    assert take(session, 1)


def test_a_word_that_cannot_be_said_is_refused_before_any_work_and_leaves_nothing():
    session = build().open(picture())
    with pytest.raises(TextError, match="have words of at most 64 tokens"):
        session.speak("one two " + "x" * 65)
    next(session.speak("fresh words", max_seconds=60))
    assert window_of(session) == "fresh words"


def test_a_second_text_is_refused_while_the_first_waits_for_its_first_piece():
    pieces = Slow("one ")
    session = build().open(picture())
    speech = session.speak(pieces)
    chunk = in_thread(lambda: next(speech))
    with pytest.raises(SessionBusyError, match="call interrupt"):
        session.speak("another")
    pieces.come(2)
    assert chunk().index == 0


def test_text_from_an_async_iterator_is_read_in_the_callers_loop():
    threads = []

    async def pieces():
        for word in TEXT.split():
            threads.append(threading.current_thread())
            await asyncio.sleep(0)
            yield word + " "

    async def collect(session):
        return [chunk async for chunk in session.speak(pieces(), max_seconds=2.5)]

    chunks = asyncio.run(collect(build().open(picture(), seed=7)))
    expected = take(build().open(picture(), seed=7), 2)
    assert torch.equal(media(chunks)[1], media(expected)[1])
    assert set(threads) == {threading.main_thread()}


def test_an_async_iterator_is_refused_where_nothing_could_run_it():
    async def pieces():
        yield "one "

    session = build().open(picture())
    with pytest.raises(TypeError, match="call speak\\(\\) in a coroutine"):
        session.speak(pieces())

    async def blocking():
        return next(session.speak(pieces()))

    with pytest.raises(RuntimeError, match="'async for', got 'for'"):
        asyncio.run(blocking())
    assert take(session, 1)


def test_the_event_loop_goes_on_while_text_and_chunks_are_waited_for():
    pieces = Slow("one two three ")

    async def speak(session):
        speech = session.speak(pieces, max_seconds=60)
        chunk = asyncio.ensure_future(anext(speech))
        for _ in range(10):
            await asyncio.sleep(0.001)
        assert not chunk.done()
        pieces.come()
        return await chunk

    assert asyncio.run(speak(build().open(picture()))).index == 0


def test_a_cancelled_wait_loses_no_chunk():
    async def collect(session):
        speech = session.speak(TEXT, max_seconds=3.9)
        chunks = []
        while True:
            try:
                chunks.append(await asyncio.wait_for(anext(speech), 0.01))
            except TimeoutError:
                continue
            except StopAsyncIteration:
                return chunks

    chunks = asyncio.run(collect(build().open(picture(), seed=7)))
    assert [chunk.index for chunk in chunks] == [0, 1, 2]
    expected = list(build().open(picture(), seed=7).speak(TEXT, max_seconds=3.9))
    assert torch.equal(media(chunks)[1], media(expected)[1])


def test_a_dead_iterator_and_an_interruption_reach_those_who_await():
    async def dead(session):
        pieces = Slow("one ", ConnectionError("gone"))
        pieces.come(2)
        return [chunk async for chunk in session.speak(pieces, max_seconds=60)]

    session = build().open(picture())
    with pytest.raises(ConnectionError):
        asyncio.run(dead(session))

    async def interrupted():
        chunks = []
        async for chunk in session.speak(TEXT, max_seconds=60):
            chunks.append(chunk)
            await asyncio.to_thread(session.interrupt)
        return chunks

    assert len(asyncio.run(interrupted())) == 1


def test_a_prefix_whose_computation_failed_is_computed_again(monkeypatch):
    engine = build()
    before = engine.open(picture(), seed=1)
    take(before, 1)  # another text is in the buffers
    expected = take(build().open(picture(), seed=7), 1)
    before.close()
    session, runner = engine.open(picture(), seed=7), engine.scheduler.executor.rows[0].runner
    prefill = runner.prefill

    def fails():
        monkeypatch.setattr(runner, "prefill", prefill)
        raise MemoryError

    monkeypatch.setattr(runner, "prefill", fails)
    with pytest.raises(MemoryError):
        take(session, 1)
    assert torch.equal(media(take(session, 1))[1], media(expected)[1])


def test_after_an_error_the_text_before_is_not_said():
    session, pieces = build().open(picture()), Slow("old text ")

    def fails(step):
        raise MemoryError

    speech = session.speak(pieces, max_seconds=60)
    feed = speech._feed
    pieces.come()
    with Steps(fails), pytest.raises(MemoryError):
        next(speech)
    assert feed.over
    next(session.speak("sorry", max_seconds=60))
    assert window_of(session) == "sorry"


def test_sessions_that_wait_for_text_hold_up_nobody():
    async def silent():
        await asyncio.Event().wait()
        yield ""

    async def pieces():
        yield await asyncio.to_thread(lambda: "one two three ")

    async def speak(engine):
        # As a default executor that is full: of one thread, which the first session would take.
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
        sessions = [engine.open(picture(seed)) for seed in range(2)]
        waiting = asyncio.ensure_future(anext(sessions[0].speak(silent())))
        await asyncio.sleep(0.05)
        chunk = await asyncio.wait_for(anext(sessions[1].speak(pieces(), max_seconds=60)), PATIENCE)
        assert not waiting.done()
        sessions[0].interrupt()
        with pytest.raises(StopAsyncIteration):
            await waiting
        return chunk

    assert asyncio.run(speak(build(max_sessions=2))).index == 0


@pytest.mark.parametrize("chunks", [3, 6, 15])
def test_a_time_limit_of_whole_chunks_is_kept_to_the_sample(chunks):
    session = build().open(picture())
    assert len(list(session.speak(TEXT * 9, max_seconds=chunks * 4 / 3))) == chunks
    assert session.next_sample == chunks * 32_000


def test_a_word_that_half_sounds_is_finished_before_more_text_is_waited_for():
    session = build().open(picture())
    speech, window = session.speak(Slow()), session._channel.timeline.window
    window.append("extraordinary ")
    window.fill(torch.empty(window.capacity, dtype=torch.int64))
    window.advance(0.6 * len("extraordinary"))
    assert window.exhausted
    assert not speech._silent()
    window.advance(len("extraordinary") - 0.4)
    assert speech._silent()


def test_a_number_that_is_read_as_many_words_has_the_time_for_them():
    session = build().open(picture())
    limits = []
    for text in ("a", "a" * 40):
        speech = session.speak(text)
        speech._chunks_made = 4  # 5.3 seconds
        limits.append(speech._finished())
        session.interrupt()
    assert limits == [True, False]


@pytest.mark.parametrize("text", ["привет", "🙂🙂", "", "bell\x07", "x" * 100_001])
def test_what_one_session_cannot_say_leaves_the_media_of_another_as_they_are(text):
    engine = build(max_sessions=2)
    first, second = engine.open(picture(), seed=7), engine.open(picture(1))
    ours = take(first, 1)
    with pytest.raises(TextError):
        second.speak(text)
    second.close()
    with pytest.raises(SessionClosedError):
        second.speak("more")
    ours += take(first, 1)
    alone = build().open(picture(), seed=7)
    expected = media(take(alone, 1) + take(alone, 1))
    assert torch.equal(media(ours)[0], expected[0])
    assert torch.equal(media(ours)[1], expected[1])
