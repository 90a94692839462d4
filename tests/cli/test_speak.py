import errno
import io
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from streamchar.cli import speak
from streamchar.cli.main import app
from streamchar.cli.speak import Summary, default_reference, summary_table
from streamchar.config import CLOCK
from streamchar.media import mp4
from streamchar.runtime.scheduler import Scheduler
from tests.engine.small import SMALL, build
from tests.media.mp4_reader import read_back

RUNNER = CliRunner()
#: Long enough that the small engine's noise exceeds the room on the small disk many times.
LONG = " ".join(["one two three four five six seven eight nine ten"] * 5)


def run(*arguments):
    return RUNNER.invoke(app, ["speak", *map(str, arguments)])


def test_random_weights_are_reported_as_noise(tmp_path, monkeypatch):
    monkeypatch.setattr(speak, "shipped_weights", lambda name: None)
    done = run("Hello there.", "-o", tmp_path / "out.mp4", "--seconds", 1)
    assert done.exit_code == 0, done.output
    assert "weights are random" in done.output


def test_a_sentence_becomes_an_mp4_with_measurements(tmp_path):
    out = tmp_path / "out.mp4"
    text = "One two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen."
    done = run(text, "-o", out, "--seconds", 2.5, "--seed", 3)
    assert done.exit_code == 0, done.output
    assert "weights are random" not in done.output
    media = read_back(out)
    assert media.frames.shape[0] == 64  # two chunks of 32 frames
    # An AAC packet has 1024 samples; the last one is padded.
    assert 64_000 <= media.samples.shape[-1] < 65_024
    for said in ("2.67 s in 2 chunks", "real-time factor", "1333 ms"):
        assert said in done.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["   "], "text"),
        (["hi", "--preset", "huge"], "preset must be 'tiny' or '5b', got 'huge'"),
        (["hi", "--reference", "absent.png"], "absent.png"),
    ],
    ids=["blank", "preset", "reference"],
)
def test_bad_input_is_reported_in_one_line_and_writes_nothing(tmp_path, arguments, message):
    out = tmp_path / "out.mp4"
    done = run(*arguments, "-o", out)
    assert done.exit_code == 1
    assert message in done.output.replace("\n", "")
    assert "Traceback" not in done.output
    assert not out.exists()


@pytest.fixture
def small(monkeypatch):
    """Run the command with the small engine of the tests."""
    monkeypatch.setattr(speak, "preset", lambda name: SMALL)
    monkeypatch.setattr(speak, "shipped_weights", lambda name: None)
    monkeypatch.setattr(speak.StreamCharEngine, "from_preset", lambda *_, report, **__: build(report=report))


class FullDisk:
    """A file on a disk with room for so many bytes; the part of a write that does not fit is dropped."""

    def __init__(self, file, room):
        self._file, self._room = file, room

    def write(self, data):
        fits = data[: self._room - self._file.tell()]
        if not len(fits):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self._file.write(fits)

    def __getattr__(self, name):
        return getattr(self._file, name)


def fill_disk(monkeypatch, room):
    class FullDiskFile(mp4._FragmentedFile):
        def __init__(self, path):
            super().__init__(path)
            self._file = FullDisk(self._file, room)

    monkeypatch.setattr(mp4, "_FragmentedFile", FullDiskFile)


@pytest.mark.usefixtures("small")
def test_a_full_disk_is_reported_and_the_written_part_plays(tmp_path, monkeypatch):
    fill_disk(monkeypatch, 60_000)
    out = tmp_path / "out.mp4"
    done = run(LONG, "-o", out, "--seconds", 20)
    said = done.output
    assert done.exit_code == 1, said
    assert f"{out}: cannot be written after" in said
    assert (
        "No space left on device; the part written so far plays; free space on its disk, or write to" in said
    )
    assert "Traceback" not in said
    assert "real-time factor" not in said
    frames = len(read_back(out).frames)
    assert frames >= CLOCK.frame_rate
    assert frames % CLOCK.frame_rate == 0
    assert out.stat().st_size <= 60_000


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("room", [0, 2_000], ids=["at-once", "within-the-first-second"])
def test_a_disk_without_room_for_a_second_leaves_nothing_playable(tmp_path, monkeypatch, room):
    fill_disk(monkeypatch, room)
    out = tmp_path / "out.mp4"
    done = run(LONG, "-o", out, "--seconds", 5)
    assert done.exit_code == 1, done.output
    assert "nothing playable was written; free space" in done.output
    assert "Traceback" not in done.output
    assert out.stat().st_size == 0


@pytest.mark.usefixtures("small")
def test_a_full_device_is_reported_in_one_line():
    done = run("Hello there.", "-o", "/dev/full", "--seconds", 3)
    assert done.exit_code == 1, done.output
    assert "/dev/full: cannot be written after" in done.output
    assert "Traceback" not in done.output


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("chunks", [1, 2])
def test_after_ctrl_c_the_file_plays_and_is_summarised(tmp_path, monkeypatch, chunks):
    schedulers, submit = [], Scheduler.submit

    def interrupted(scheduler, request):
        schedulers.append(scheduler)
        if scheduler.executor.chunks == chunks:
            raise KeyboardInterrupt
        submit(scheduler, request)

    monkeypatch.setattr(Scheduler, "submit", interrupted)
    out = tmp_path / "out.mp4"
    done = run(LONG, "-o", out)
    assert done.exit_code == 130, done.output
    assert "contains what was spoken" in " ".join(done.output.split())
    assert f"in {chunks} chunks" in done.output
    assert len(read_back(out).frames) == 32 * chunks
    # Ctrl-C closes the session too.
    assert schedulers[0].open_rows == 0


@pytest.mark.usefixtures("small")
def test_every_warm_up_stage_is_shown_by_name_and_number(tmp_path):
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=True, width=100)
    speak.speak_to_file(
        "Hello.",
        tmp_path / "out.mp4",
        preset_name="tiny",
        reference=None,
        seed=0,
        seconds=1,
        console=console,
    )
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.getvalue()).replace("\r", "\n").split("\n")
    warming = list(dict.fromkeys(line.split()[-1] for line in lines if line.startswith("warming up: ")))
    count = len(warming)
    assert count > 8
    assert warming == [f"{number}/{count}" for number in range(1, count + 1)]
    assert any("warming up: denoising step 4" in line for line in lines)
    assert any("tiny: weights" in line for line in lines)


@pytest.mark.usefixtures("small")
def test_ctrl_c_before_the_first_chunk_promises_no_file(tmp_path, monkeypatch):
    def interrupted(scheduler, request):
        raise KeyboardInterrupt

    monkeypatch.setattr(Scheduler, "submit", interrupted)
    done = run(LONG, "-o", tmp_path / "out.mp4")
    assert done.exit_code == 130, done.output
    assert "before anything was spoken" in " ".join(done.output.split())


def test_sigint_leaves_a_file_that_plays(tmp_path):
    out = tmp_path / "out.mp4"
    # A shell lets background processes ignore Ctrl-C, and their children inherit that.
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler);"
        "from streamchar.cli.main import app; app()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, "speak", LONG, "-o", str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        patience = time.monotonic() + 120
        while not (out.exists() and out.stat().st_size) and time.monotonic() < patience:
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, said
    assert "Traceback" not in said
    assert "contains what was spoken" in " ".join(said.split())
    assert len(read_back(out).frames) >= CLOCK.frame_rate


def test_the_summary_counts_late_chunks_and_real_time_factor():
    summary = Summary(1.0, words_asked=4, words_said=2, media_seconds=4.0, latencies=[0.5, 0.5, 1.5, 0.5])
    assert summary.rtf == 0.75
    assert summary.late == 1
    console = Console(width=100, record=True)
    console.print(summary_table(summary, "x.mp4"))
    assert "missed by 1 chunks" in console.export_text()
    assert Summary(1.0, 0).rtf == 0.0


def test_the_default_reference_has_any_size():
    picture = default_reference("5b", 48, 32)
    assert picture.shape == (3, 48, 32)
    assert picture.abs().max() <= 1
    assert picture[:, 24, 16].mean() > picture[:, 0, 0].mean()
    assert torch.equal(picture, default_reference("5b", 48, 32))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["привет"], "be in Latin script"),
        (["🙂"], "have something to speak"),
        (["bell\x07"], "have no control characters"),
        (["hi", "--seed", 2**64], "--seed"),
        (["hi", "--reference", "absent.png"], "absent.png"),
    ],
    ids=["script", "emoji", "control", "seed", "reference"],
)
def test_bad_input_keeps_an_existing_file_and_builds_no_engine(tmp_path, monkeypatch, arguments, message):
    monkeypatch.setattr(speak, "StreamCharEngine", None)
    out = tmp_path / "out.mp4"
    out.write_bytes(b"an older file")
    done = run(*arguments, "-o", out)
    assert done.exit_code in (1, 2), done.output
    assert message in done.output.replace("\n", "")
    assert "Traceback" not in done.output
    assert out.read_bytes() == b"an older file"


@pytest.mark.usefixtures("small")
def test_ctrl_c_before_the_first_chunk_keeps_an_existing_file(tmp_path, monkeypatch):
    def interrupted(scheduler, request):
        raise KeyboardInterrupt

    monkeypatch.setattr(Scheduler, "submit", interrupted)
    out = tmp_path / "out.mp4"
    out.write_bytes(b"an older file")
    assert run(LONG, "-o", out).exit_code == 130
    assert out.read_bytes() == b"an older file"


def test_an_unwritable_path_is_reported_before_an_engine_is_built(tmp_path, monkeypatch):
    monkeypatch.setattr(speak, "StreamCharEngine", None)
    for out, message in (
        (tmp_path, "is a directory; name a file"),
        (tmp_path / "absent" / "out.mp4", "absent"),
    ):
        done = run("hi", "-o", out)
        assert done.exit_code == 1
        assert message in " ".join(done.output.split()).replace("\n", "")
