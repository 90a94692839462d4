"""Every example runs as its docstring says and prints what it promises."""

import subprocess
import sys
import wave
from pathlib import Path

import pytest
from PIL import Image

EXAMPLES = Path(__file__).parents[1] / "examples"
pytest.importorskip("hibari")


def run(name, *arguments):
    command = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_the_service_speaks_is_cut_off_and_speaks_again():
    lines = run("async_service.py")
    cut = next(index for index, line in enumerate(lines) if line.startswith("interrupted: "))
    assert all(line.startswith("chunk ") for line in lines[:cut])
    assert cut >= 2
    # The clock of the session goes on where the first text was cut.
    assert lines[cut + 1].startswith(f"chunk {cut}: 32 frames, 32000 samples")
    assert lines[-1].endswith(("stop.", ": "))


def test_three_characters_share_one_engine():
    *spoken, last = run("several_sessions.py")
    assert [line.partition(":")[0] for line in spoken] == ["Ada", "Ben", "Cleo"]
    assert spoken[1].endswith("And I am the second of us.")
    assert last.endswith("chunks shared a pass")


def test_frames_and_sound_become_a_picture_and_a_file(tmp_path):
    run("frames_to_numpy.py", tmp_path / "out")
    width, height = Image.open(tmp_path / "out.png").size
    assert (width % (4 * 96), height) == (0, 96)
    with wave.open(str(tmp_path / "out.wav")) as file:
        assert (file.getnchannels(), file.getframerate(), file.getnframes()) == (
            1,
            24000,
            1000 * width // 96 * 8,
        )


def test_each_example_is_run_by_a_test():
    tests = Path(__file__).read_text()
    for path in EXAMPLES.glob("*.py"):
        assert f'run("{path.name}"' in tests
