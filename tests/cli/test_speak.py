import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from streamchar import speak
from streamchar.cli import app
from streamchar.media import read_back
from streamchar.speak import Summary, default_reference, summary_table

RUNNER = CliRunner()


def run(*arguments):
    return RUNNER.invoke(app, ["speak", *map(str, arguments)])


def test_without_weights_the_command_says_that_the_media_are_noise(tmp_path, monkeypatch):
    monkeypatch.setattr(speak, "shipped_weights", lambda name: None)
    done = run("Hello there.", "-o", tmp_path / "out.mp4", "--seconds", 1)
    assert done.exit_code == 0, done.output
    assert "weights are random" in done.output


def test_a_sentence_becomes_an_mp4_with_a_measured_summary(tmp_path):
    out = tmp_path / "out.mp4"
    text = "One two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen."
    done = run(text, "-o", out, "--seconds", 2.5, "--seed", 3)
    assert done.exit_code == 0, done.output
    assert "weights are random" not in done.output
    media = read_back(out)
    assert media.frames.shape[0] == 64  # two chunks of 32 frames
    # AAC frames hold 1024 samples: the last is filled up.
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
def test_bad_input_is_told_in_one_line_and_writes_nothing(tmp_path, arguments, message):
    out = tmp_path / "out.mp4"
    done = run(*arguments, "-o", out)
    assert done.exit_code == 1
    assert message in done.output.replace("\n", "")
    assert "Traceback" not in done.output
    assert not out.exists()


def test_a_folder_that_is_not_there_is_named(tmp_path):
    done = run("hi", "-o", tmp_path / "absent" / "out.mp4")
    assert done.exit_code == 1
    assert "absent" in done.output.replace("\n", "")


def test_after_ctrl_c_the_file_so_far_plays(tmp_path, monkeypatch):
    timed = speak._timed

    def interrupted(chunks, summary):
        for chunk in timed(chunks, summary):
            yield chunk
            raise KeyboardInterrupt

    monkeypatch.setattr(speak, "_timed", interrupted)
    out = tmp_path / "out.mp4"
    done = run("One two three four.", "-o", out)
    assert done.exit_code == 130
    assert "holds what was spoken" in " ".join(done.output.split())
    assert read_back(out).frames.shape[0] == 32


def test_the_summary_counts_late_chunks_and_real_time():
    summary = Summary(1.0, words_asked=4, words_said=2, media_seconds=4.0, latencies=[0.5, 0.5, 1.5, 0.5])
    assert summary.rtf == 0.75
    assert summary.late == 1
    console = Console(width=100, record=True)
    console.print(summary_table(summary, "x.mp4"))
    assert "missed by 1 chunks" in console.export_text()
    assert Summary(1.0, 0).rtf == 0.0


def test_the_default_picture_fits_any_size():
    picture = default_reference("5b", 48, 32)
    assert picture.shape == (3, 48, 32)
    assert picture.abs().max() <= 1
    assert picture[:, 24, 16].mean() > picture[:, 0, 0].mean()
    assert torch.equal(picture, default_reference("5b", 48, 32))
