"""``streamchar train`` takes a stage by name and reports errors in one line."""

import builtins
import json
import shutil

import pytest
import torch
from typer.testing import CliRunner

from streamchar.cli.main import app

RUNNER = CliRunner()


def run(*arguments):
    return RUNNER.invoke(app, ["train", *map(str, arguments)])


def refused(*arguments):
    """Run a command that fails, and return its error line."""
    done = run(*arguments)
    assert done.exit_code == 1, done.output
    assert isinstance(done.exception, SystemExit)
    assert done.output.count("\n") == 1
    return done.output


@pytest.fixture
def directory(corpus, tmp_path):
    """Return a training directory that holds only a corpus."""
    shutil.copytree(corpus.directory, tmp_path / "corpus")
    return tmp_path


def test_help_lists_the_stages():
    done = run("--help")
    assert done.exit_code == 0
    for stage in (
        "data",
        "vocoder",
        "vae",
        "orchestrator",
        "teacher",
        "student",
        "rollout",
        "export",
        "curves",
    ):
        assert stage in done.output


def test_data_counts_the_recordings_of_a_corpus(corpus, directory):
    done = run("data", "--directory", directory)
    assert done.exit_code == 0, done.output
    assert f"{len(corpus)} recordings" in done.output


@pytest.mark.parametrize(
    ("stage", "message"),
    [("voice", "stage must be one of vocoder, vae"), ("teacher", "run: streamchar train orchestrator")],
)
def test_a_stage_that_cannot_be_trained_says_why(stage, message, directory):
    assert message in refused(stage, "--directory", directory)


def test_missing_stages_are_reported_before_the_corpus_is_built(tmp_path):
    assert "run: streamchar train teacher" in refused("student", "--directory", tmp_path)
    assert "run: streamchar train rollout" in refused(
        "export", "--directory", tmp_path, "--out", tmp_path / "out"
    )
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("device", ["foo", "meta", "cuda:99", "cpu:x"])
def test_a_device_that_does_not_exist_is_refused(device, tmp_path):
    message = refused("vocoder", "--directory", tmp_path, "--device", device)
    assert message.startswith("device must be cpu or one of ")
    assert f"got {device}; try cpu" in message
    assert not any(tmp_path.iterdir())


def test_a_preset_that_does_not_exist_is_refused(tmp_path):
    message = refused("vocoder", "--directory", tmp_path, "--preset", "6b")
    assert message == "preset must be 'tiny' or '5b', got '6b'\n"


def test_the_preset_option_selects_the_preset(directory, monkeypatch):
    sizes = []
    monkeypatch.setattr("streamchar.train.cli._train", lambda workshop, *_: sizes.append(workshop.preset))
    for name in ("tiny", "5b"):
        assert run("vocoder", "--directory", directory, "--preset", name).exit_code == 0
    assert sizes[0].dit.dim < sizes[1].dit.dim == 3072


@pytest.mark.parametrize("option", ["--steps", "--batch", "--threads"])
@pytest.mark.parametrize("value", [0, -3])
def test_counts_below_one_are_refused(option, value, tmp_path):
    done = run("vocoder", "--directory", tmp_path, option, value)
    assert done.exit_code == 2
    assert f"'{option}'" in done.output


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("corpus.json", '{"hours": 8'),
        ("corpus.json", '{"hours": 8}'),
        ("ends.npy", "half"),
        ("words.npy", None),
    ],
    ids=["truncated", "older format", "truncated array", "missing array"],
)
def test_an_incomplete_corpus_is_named(file, content, directory):
    path = directory / "corpus" / file
    path.unlink() if content is None else path.write_text(content)
    message = refused("vocoder", "--directory", directory)
    assert f"{path} must be a complete file of a corpus" in message
    assert f"remove {directory / 'corpus'} and run: streamchar train data" in message


def test_a_truncated_checkpoint_is_named(directory):
    for stage, parent in (("vocoder", "vocoder"), ("decoder", "vae")):
        file = directory / "train" / parent / "checkpoint.pt"
        file.parent.mkdir(parents=True)
        torch.save({"step": 1}, file)
        file.write_bytes(file.read_bytes()[:-100])
        message = refused(stage, "--directory", directory)
        assert f"{file} must be a complete file of training" in message
        assert f"remove it and run: streamchar train {parent}" in message


def test_curves_without_a_log_are_refused(tmp_path):
    assert "must hold the log of a stage, got none" in refused("curves", "--directory", tmp_path)


def test_curves_ignore_an_incomplete_line(tmp_path):
    folder = tmp_path / "train" / "vocoder"
    folder.mkdir(parents=True)
    entries = [json.dumps({"step": step, "seconds": 1.0, "spectral": 2.0 / step}) for step in (1, 2)]
    (folder / "log.jsonl").write_text("\n".join([*entries, '{"step": 3, "spec']))
    done = run("curves", "--directory", tmp_path)
    assert done.exit_code == 0, done.output
    assert (tmp_path / "train" / "curves.png").is_file()


@pytest.mark.parametrize(
    ("package", "stage"), [("onnx", "data"), ("hibari", "data"), ("matplotlib", "curves")]
)
def test_a_missing_package_comes_with_an_install_command(package, stage, tmp_path, monkeypatch):
    log = tmp_path / "train" / "vocoder" / "log.jsonl"
    log.parent.mkdir(parents=True)
    log.write_text('{"step": 1, "spectral": 1.0}\n')
    imported = builtins.__import__

    def without(name, *arguments):
        if name.partition(".")[0] == package:
            raise ModuleNotFoundError(f"No module named {package!r}", name=package)
        return imported(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without)
    message = refused(stage, "--directory", tmp_path)
    assert message == f"No module named {package!r}; training needs: pip install 'streamchar[train]'\n"
