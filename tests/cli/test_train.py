"""``streamchar train``: a stage is asked for by name, and what is missing is told in a line."""

import shutil

import pytest
from typer.testing import CliRunner

from streamchar.cli import app

RUNNER = CliRunner()


def run(*arguments):
    return RUNNER.invoke(app, ["train", *map(str, arguments)])


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


def test_a_corpus_that_is_there_is_counted(corpus, tmp_path):
    shutil.copytree(corpus.directory, tmp_path / "corpus")
    done = run("data", "--directory", tmp_path)
    assert done.exit_code == 0, done.output
    assert f"{len(corpus)} recordings" in done.output


@pytest.mark.parametrize(
    ("stage", "message"),
    [("voice", "stage must be one of vocoder, vae"), ("teacher", "run: streamchar train orchestrator")],
)
def test_a_stage_that_cannot_be_trained_says_why(stage, message, corpus, tmp_path):
    shutil.copytree(corpus.directory, tmp_path / "corpus")
    done = run(stage, "--directory", tmp_path)
    assert done.exit_code == 1
    assert message in " ".join(done.output.split())
    assert "Traceback" not in done.output
