"""``streamchar train``: a stage is asked for by name, and what is missing is told in a line."""

import builtins
import json
import shutil

import pytest
import torch
from typer.testing import CliRunner

from streamchar.cli import app

RUNNER = CliRunner()


def run(*arguments):
    return RUNNER.invoke(app, ["train", *map(str, arguments)])


def refused(*arguments):
    """Run what cannot be done, and return the line that says so."""
    done = run(*arguments)
    assert done.exit_code == 1, done.output
    assert isinstance(done.exception, SystemExit)
    assert done.output.count("\n") == 1
    return done.output


@pytest.fixture
def directory(corpus, tmp_path):
    """Return a directory of training that has a corpus alone."""
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


def test_a_corpus_that_is_there_is_counted(corpus, directory):
    done = run("data", "--directory", directory)
    assert done.exit_code == 0, done.output
    assert f"{len(corpus)} recordings" in done.output


@pytest.mark.parametrize(
    ("stage", "message"),
    [("voice", "stage must be one of vocoder, vae"), ("teacher", "run: streamchar train orchestrator")],
)
def test_a_stage_that_cannot_be_trained_says_why(stage, message, directory):
    assert message in refused(stage, "--directory", directory)


def test_what_is_missing_is_told_before_the_corpus_is_built(tmp_path):
    assert "run: streamchar train teacher" in refused("student", "--directory", tmp_path)
    assert "run: streamchar train rollout" in refused(
        "export", "--directory", tmp_path, "--out", tmp_path / "out"
    )
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("device", ["foo", "meta", "cuda:99", "cpu:x"])
def test_a_device_that_is_not_here_is_refused(device, tmp_path):
    message = refused("vocoder", "--directory", tmp_path, "--device", device)
    assert message.startswith("device must be cpu or one of ")
    assert f"got {device}; try cpu" in message
    assert not any(tmp_path.iterdir())


def test_a_preset_that_does_not_exist_is_refused(tmp_path):
    message = refused("vocoder", "--directory", tmp_path, "--preset", "6b")
    assert message == "preset must be 'tiny' or '5b', got '6b'\n"


def test_the_preset_is_the_one_that_is_asked_for(directory, monkeypatch):
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
    ids=["cut short", "of an older kind", "array cut short", "array missing"],
)
def test_a_corpus_that_is_not_whole_is_named(file, content, directory):
    path = directory / "corpus" / file
    path.unlink() if content is None else path.write_text(content)
    message = refused("vocoder", "--directory", directory)
    assert f"{path} must be a whole file of a corpus" in message
    assert f"remove {directory / 'corpus'} and run: streamchar train data" in message


def test_a_checkpoint_that_is_cut_short_is_named(directory):
    for stage, parent in (("vocoder", "vocoder"), ("decoder", "vae")):
        file = directory / "train" / parent / "checkpoint.pt"
        file.parent.mkdir(parents=True)
        torch.save({"step": 1}, file)
        file.write_bytes(file.read_bytes()[:-100])
        message = refused(stage, "--directory", directory)
        assert f"{file} must be a whole file of training" in message
        assert f"remove it and run: streamchar train {parent}" in message


def test_curves_of_nothing_say_what_is_missing(tmp_path):
    assert "must hold the log of a stage, got none" in refused("curves", "--directory", tmp_path)


def test_curves_are_drawn_up_to_a_line_half_written(tmp_path):
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
def test_a_package_that_is_missing_comes_with_the_command_that_installs_it(
    package, stage, tmp_path, monkeypatch
):
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
