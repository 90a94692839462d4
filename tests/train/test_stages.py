"""Every stage takes its first steps on a miniature of the system, each from what those before it left."""

import io
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from rich.console import Console

from streamchar.config import OrchestratorConfig, VocoderConfig
from streamchar.train.cli import _train
from streamchar.train.curves import COLUMNS, draw_curves
from streamchar.train.export import engine_of, export
from streamchar.train.loop import TrainingError, read_log, run, step_generator
from streamchar.train.stages import SHIPPED, Workshop
from tests.engine.small import SMALL, picture

MINIATURE = replace(
    SMALL,
    vocoder=VocoderConfig(dim=16, layers=1, ffn=32),
    orchestrator=OrchestratorConfig(
        dim=64,
        layers=2,
        heads=1,
        kv_heads=1,
        head_dim=64,
        ffn=128,
        vocabulary=192,
        history_seconds=2.0,
        transcript_tokens=48,
        tokenizer="phonemes",
        duration_dim=16,
    ),
)
STEPS = 2
LOGGED = {
    "vocoder": {"spectral", "judged", "fooled", "features", "norm"},
    "vae": {"pixels", "edges", "size", "psnr", "norm"},
    "decoder": {"pixels", "edges", "psnr", "judged", "fooled", "features", "norm"},
    "orchestrator": {"flow", "pointer", "durations", "norm"},
    "aligner": {"entropy", "norm"},
    "teacher": {"video", "audio", "norm"},
    "student": {"anchor", "matching", "score", "norm"},
    "rollout": {"matching", "anchor", "pointer", "off", "score", "norm", "chunks"},
    "rollout-without-sink": {"matching", "anchor", "pointer", "off", "score", "norm", "chunks"},
    "rollout-without-pointer": {"matching", "anchor", "off", "score", "norm", "chunks"},
}


def quick(config):
    return replace(config, steps=STEPS, batch=2, warmup=1)


@pytest.fixture(scope="module")
def workshop(corpus, tmp_path_factory):
    """Return a workshop on the miniature corpus; its stages are trained by the tests, in their order."""
    root = tmp_path_factory.mktemp("workshop")
    shutil.copytree(corpus.directory, root / "corpus")
    return Workshop(root, MINIATURE, torch.device("cpu"), videos=2)


@pytest.fixture(scope="module")
def trained(workshop):
    """Train every stage; return how far each weight moved, by stage and module."""
    moved = {}
    for name in workshop.stages:
        stage = workshop.stage(name, quick)
        before = {each: [x.detach().clone() for x in one.wide] for each, one in stage.trained.items()}
        assert run(stage, workshop.runs) == STEPS
        moved[name] = {
            each: [
                float((new.detach() - old).abs().max())
                for new, old in zip(one.wide, before[each], strict=True)
            ]
            for each, one in stage.trained.items()
        }
    return moved


@pytest.mark.parametrize("name", LOGGED)
def test_a_stage_logs_finite_losses_and_moves_its_weights(name, workshop, trained):
    entries = list(read_log(workshop.runs / name))
    assert entries[-1]["step"] == STEPS
    assert set(entries[-1]) == {"step", "seconds"} | LOGGED[name]
    assert all(torch.isfinite(torch.tensor(list(entry.values()))).all() for entry in entries)
    for module, distances in trained[name].items():
        assert all(torch.isfinite(torch.tensor(distances))), module
        # A bias before a norm, for one, has no gradient.
        assert sum(distance > 0 for distance in distances) > 0.8 * len(distances), module


def test_long_clips_come_late_and_can_be_learned_from(workshop):
    stage = workshop.stage("vae", lambda config: replace(config, steps=10, batch=2))
    assert [stage.latents(step) for step in range(10)] == [1, 1, 1, 1, 1, 1, 12, 1, 12, 1]
    logged = stage.update(6, step_generator(0, 6))
    assert torch.isfinite(torch.tensor(list(logged.values()))).all()


def test_a_decoder_that_is_trained_on_leaves_latents_as_they_are(workshop, trained, rng):
    before, after = workshop.vae("vae"), workshop.vae("decoder")
    frames = torch.rand(1, 5, 3, MINIATURE.picture.height, MINIATURE.picture.width, generator=rng)
    with torch.no_grad():
        latents = before.encode(frames)
        assert torch.equal(after.encode(frames), latents)
        assert not torch.equal(after.decode_clip(latents), before.decode_clip(latents))


def test_all_that_ships_is_trained_in_order_and_what_is_done_is_left_alone(workshop, trained):
    before = {name: (workshop.runs / name / "checkpoint.pt").read_bytes() for name in SHIPPED}
    console = Console(record=True, file=io.StringIO())
    _train(workshop, "all", quick, None, "", Path(), console)
    assert console.export_text().splitlines() == [f"{name}: {STEPS} of {STEPS} steps" for name in SHIPPED]
    assert {name: (workshop.runs / name / "checkpoint.pt").read_bytes() for name in SHIPPED} == before


def test_all_stops_where_the_time_is_up(corpus, tmp_path):
    shutil.copytree(corpus.directory, tmp_path / "corpus")
    console = Console(record=True, file=io.StringIO())
    workshop = Workshop(tmp_path, MINIATURE, torch.device("cpu"), videos=2)
    _train(workshop, "all", quick, 0.0, "", Path(), console)
    assert console.export_text() == f"vocoder: 1 of {STEPS} steps\n"
    assert [each.name for each in workshop.runs.iterdir()] == ["vocoder"]


def test_the_stages_are_all_there(workshop):
    assert set(workshop.stages) == set(LOGGED)
    with pytest.raises(TrainingError, match="stage must be one of vocoder, vae"):
        workshop.stage("voice")


def test_a_stage_without_the_one_before_it_says_what_to_run(corpus, tmp_path):
    shutil.copytree(corpus.directory, tmp_path / "corpus")
    with pytest.raises(TrainingError, match="run: streamchar train orchestrator"):
        Workshop(tmp_path, MINIATURE, torch.device("cpu"), videos=1).stage("teacher")


def test_a_joint_model_is_the_stages_average_with_the_orchestrator_it_was_given(workshop, trained):
    speech = workshop.joint("teacher").orchestrator.state_dict()
    again = workshop.joint("student").orchestrator.state_dict()
    assert all(torch.equal(speech[name], again[name]) for name in speech)
    stage = workshop.stage("teacher", quick)
    run(stage, workshop.runs)
    averages = stage.trained["joint"].ema
    loaded = list(workshop.joint("teacher").dit.parameters())
    assert len(averages) == len(loaded)
    assert all(torch.equal(a.bfloat16(), b) for a, b in zip(averages, loaded, strict=True))


def test_latents_of_all_recordings_are_normalised(workshop, trained):
    video = workshop.video()
    reference, latents = video.of(1)
    assert reference.shape[0] == 1
    assert len(latents) * MINIATURE.picture.temporal_stride == workshop.corpus()[1].frames
    whole = torch.cat([torch.cat(video.of(index)) for index in range(len(video))])
    torch.testing.assert_close(whole.mean((0, 2, 3)), torch.zeros(16), atol=1e-3, rtol=0)
    torch.testing.assert_close(whole.std((0, 2, 3)), torch.ones(16), atol=1e-3, rtol=0)
    audio = workshop.audio()
    assert len(audio) == sum(workshop.corpus().frames)
    assert audio.float().square().mean().item() == pytest.approx(1.0, abs=0.05)


def test_every_stage_has_its_curves(workshop, trained):
    with Image.open(draw_curves(workshop.runs)) as drawn:
        width, height = drawn.size
    rows = -(-len(LOGGED) // COLUMNS)
    assert width / height == pytest.approx(4 * COLUMNS / (3 * rows), rel=0.01)


def test_places_without_a_stage_are_left_white(workshop, trained, tmp_path):
    shutil.copytree(workshop.runs / "vocoder", tmp_path / "vocoder")
    with Image.open(draw_curves(tmp_path)) as drawn:
        right = drawn.convert("L").crop((drawn.width // 2, 0, drawn.width, drawn.height))
    assert right.getextrema() == (255, 255)


def test_the_exported_engine_speaks(workshop, trained, tmp_path):
    engine = engine_of(workshop, "student")
    with engine.open(picture(), seed=1) as session:
        chunk = next(iter(session.speak("Hello there.", max_seconds=5)))
    assert torch.isfinite(chunk.audio).all()
    assert chunk.video.shape[0] == MINIATURE.frames
    export(workshop, "teacher", tmp_path / "out")
    assert (tmp_path / "out" / "reference.png").is_file()
    assert any((tmp_path / "out").rglob("*.safetensors"))
