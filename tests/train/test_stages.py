"""All stages train for two steps on a miniature of the system, each from the results of earlier stages."""

import io
import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from matplotlib.axes import Axes
from PIL import Image
from rich.console import Console

from streamchar.config import preset
from streamchar.data.corpus import CorpusConfig, build_corpus
from streamchar.data.digest import digest
from streamchar.engine import StreamCharEngine
from streamchar.train.cli import _train
from streamchar.train.curves import COLUMNS, draw_curves
from streamchar.train.export import DURATION_SCALE, engine_of, export
from streamchar.train.loop import TrainingError, read_log, run, step_generator
from streamchar.train.stages import rollout, vocoder
from streamchar.train.workshop import PARENTS, SHIPPED, Workshop
from tests.engine.small import picture
from tests.train.miniature import MINIATURE

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
    """Yield a workshop on a small corpus; the fixture ``trained`` trains its stages."""
    root = tmp_path_factory.mktemp("workshop")
    shutil.copytree(corpus.directory, root / "corpus")
    # Short rollouts of two and three chunks, and excerpts of a third of a second, to save time.
    with patch.object(rollout, "CHUNKS", (2, 3)), patch.object(vocoder, "TOKENS", 8):
        yield Workshop(root, MINIATURE, torch.device("cpu"), videos=2)


@pytest.fixture(scope="module")
def trained(workshop):
    """Train every stage; return by stage and module how far each weight moved."""
    moved = {}
    for name in workshop.stages:
        stage = workshop.stage(name, quick)
        before = {each: [x.detach().clone() for x in one.master] for each, one in stage.trainables.items()}
        assert run(stage, workshop.runs) == STEPS
        moved[name] = {
            each: [
                float((new.detach() - old).abs().max())
                for new, old in zip(one.master, before[each], strict=True)
            ]
            for each, one in stage.trainables.items()
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
        # Some weights have no gradient, such as a bias before a norm.
        assert sum(distance > 0 for distance in distances) > 0.8 * len(distances), module


def tensors(value):
    """Return every tensor in a checkpoint, in order."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return [tensor for each in value for tensor in tensors(each)]
    return [value] if torch.is_tensor(value) else []


@pytest.mark.parametrize("name", LOGGED)
def test_a_resumed_stage_is_bit_equal_to_an_unbroken_one(name, workshop, trained, tmp_path):
    assert run(workshop.stage(name, quick), tmp_path, minutes=0) == 1
    assert run(workshop.stage(name, quick), tmp_path) == STEPS
    ours, theirs = (
        torch.load(folder / name / "checkpoint.pt", weights_only=True) for folder in (tmp_path, workshop.runs)
    )
    assert ours["about"] == theirs["about"]
    assert len(tensors(ours["trained"])) == len(tensors(theirs["trained"])) > 100
    assert all(map(torch.equal, tensors(ours["trained"]), tensors(theirs["trained"])))


@pytest.mark.parametrize("name", LOGGED)
def test_a_checkpoint_names_its_origin(name, workshop, trained):
    state = torch.load(workshop.runs / name / "checkpoint.pt", weights_only=True)
    corpus = json.loads((workshop.root / "corpus" / "corpus.json").read_text())
    assert state["step"] == STEPS
    assert state["config"] == asdict(workshop.stage(name, quick).config)
    assert state["config"]["seed"] == 0
    assert state["about"]["corpus"] == corpus["digest"]
    assert state["about"]["parents"] == {
        parent: digest(workshop.runs / parent / "checkpoint.pt") for parent in PARENTS.get(name, ())
    }


def test_long_clips_come_late_in_the_run(workshop):
    stage = workshop.stage("vae", lambda config: replace(config, steps=10, batch=2))
    assert [stage.latents(step) for step in range(10)] == [1, 1, 1, 1, 1, 1, 12, 1, 12, 1]
    logged = stage.update(6, step_generator(0, 6))
    assert torch.isfinite(torch.tensor(list(logged.values()))).all()


def test_the_decoder_stage_does_not_change_latents(workshop, trained, rng):
    before, after = workshop.vae("vae"), workshop.vae("decoder")
    frames = torch.rand(1, 5, 3, MINIATURE.picture.height, MINIATURE.picture.width, generator=rng)
    with torch.no_grad():
        latents = before.encode(frames)
        assert torch.equal(after.encode(frames), latents)
        assert not torch.equal(after.decode_clip(latents), before.decode_clip(latents))


def test_all_skips_finished_stages_in_order(workshop, trained):
    before = {name: (workshop.runs / name / "checkpoint.pt").read_bytes() for name in SHIPPED}
    console = Console(record=True, file=io.StringIO())
    _train(workshop, "all", quick, None, "", Path(), console)
    assert console.export_text().splitlines() == [f"{name}: {STEPS} of {STEPS} steps" for name in SHIPPED]
    assert {name: (workshop.runs / name / "checkpoint.pt").read_bytes() for name in SHIPPED} == before


def test_all_stops_when_the_time_is_up(corpus, tmp_path):
    shutil.copytree(corpus.directory, tmp_path / "corpus")
    console = Console(record=True, file=io.StringIO())
    workshop = Workshop(tmp_path, MINIATURE, torch.device("cpu"), videos=2)
    _train(workshop, "all", quick, 0.0, "", Path(), console)
    assert console.export_text() == f"vocoder: 1 of {STEPS} steps\n"
    assert [each.name for each in workshop.runs.iterdir()] == ["vocoder"]


def test_the_workshop_has_all_stages(workshop):
    assert set(workshop.stages) == set(LOGGED)
    with pytest.raises(TrainingError, match="stage must be one of vocoder, vae"):
        workshop.stage("voice")


def test_a_stage_without_its_parent_says_what_to_run(corpus, tmp_path):
    shutil.copytree(corpus.directory, tmp_path / "corpus")
    with pytest.raises(TrainingError, match="run: streamchar train orchestrator"):
        Workshop(tmp_path, MINIATURE, torch.device("cpu"), videos=1).stage("teacher")


def test_a_joint_model_has_averages_and_the_given_orchestrator(workshop, trained):
    speech = workshop.joint("teacher").orchestrator.state_dict()
    again = workshop.joint("student").orchestrator.state_dict()
    assert all(torch.equal(speech[name], again[name]) for name in speech)
    stage = workshop.stage("teacher", quick)
    run(stage, workshop.runs)
    averages = stage.trainables["joint"].ema
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


def test_curves_have_one_plot_per_stage(workshop, trained):
    with Image.open(draw_curves(workshop.runs)) as drawn:
        width, height = drawn.size
    rows = -(-len(LOGGED) // COLUMNS)
    assert width / height == pytest.approx(4 * COLUMNS / (3 * rows), rel=0.01)


def test_cells_without_a_stage_are_white(workshop, trained, tmp_path):
    shutil.copytree(workshop.runs / "vocoder", tmp_path / "vocoder")
    with Image.open(draw_curves(tmp_path)) as drawn:
        right = drawn.convert("L").crop((drawn.width // 2, 0, drawn.width, drawn.height))
    assert right.getextrema() == (255, 255)


def test_values_at_or_below_zero_are_drawn(tmp_path, monkeypatch):
    for stage, values in (("above", (0.5, 2.0)), ("below", (0.5, -2.0))):
        (tmp_path / stage).mkdir()
        lines = [json.dumps({"step": step, "fooled": value}) for step, value in enumerate(values)]
        (tmp_path / stage / "log.jsonl").write_text("\n".join(lines))
    scales = []
    monkeypatch.setattr(Axes, "set_yscale", lambda _, scale: scales.append(scale))
    draw_curves(tmp_path)
    assert scales == ["log", "symlog"]


def test_curves_ignore_an_incomplete_line(workshop, trained, tmp_path):
    shutil.copytree(workshop.runs / "vocoder", tmp_path / "vocoder")
    with (tmp_path / "vocoder" / "log.jsonl").open("a") as log:
        log.write('{"step": 5')
    assert draw_curves(tmp_path).is_file()


def encoded(workshop, name):
    """Return the latents of a workshop, and the time at which their file was written."""
    latents = workshop.audio() if name == "audio" else workshop.video().latents
    return latents, (workshop.root / f"{name}_latents.pt").stat().st_mtime_ns


@pytest.fixture
def another(workshop, trained, tmp_path):
    """Return a workshop with copies of the trained one's corpus, VAE and latents."""
    shutil.copytree(workshop.root / "corpus", tmp_path / "corpus")
    shutil.copytree(workshop.runs / "vae", tmp_path / "train" / "vae")
    for name in ("audio", "video"):
        shutil.copy(workshop.root / f"{name}_latents.pt", tmp_path)
    return Workshop(tmp_path, MINIATURE, torch.device("cpu"), videos=2)


@pytest.mark.parametrize("name", ["audio", "video"])
def test_latents_are_encoded_once(name, another):
    before = (another.root / f"{name}_latents.pt").stat().st_mtime_ns
    assert encoded(another, name)[1] == before


@pytest.mark.parametrize("name", ["audio", "video"])
def test_latents_of_another_corpus_are_encoded_again(name, another):
    before, _ = encoded(another, name)
    shutil.rmtree(another.root / "corpus")
    other = build_corpus(another.root / "corpus", CorpusConfig(hours=0.004, seed=1, sentences=(1, 2)))
    after, _ = encoded(another, name)
    assert after.shape != before.shape
    if name == "audio":
        assert len(after) == other.frames.sum()
    assert not list(another.root.glob("*.partial"))


def test_video_latents_of_a_changed_vae_are_encoded_again(another, workshop):
    (before, written), (_, unchanged) = encoded(another, "video"), encoded(another, "audio")
    stage = another.stage("vae", lambda config: replace(quick(config), steps=STEPS + 1))
    assert run(stage, another.runs) == STEPS + 1
    after, again = encoded(another, "video")
    assert again > written
    assert not torch.equal(after, before)
    # The audio encoder is fitted in closed form and does not change.
    assert encoded(another, "audio")[1] == unchanged
    # A stage that was built from the previous VAE is not resumed.
    shutil.copytree(workshop.runs / "decoder", another.runs / "decoder")
    with pytest.raises(TrainingError, match=r"must be made of .* remove it or train in another directory"):
        run(another.stage("decoder", quick), another.runs)


def test_a_file_of_latents_that_cannot_be_read_is_named(another):
    file = another.root / "audio_latents.pt"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(TrainingError, match=f"{file} must be a complete file .* run the same command again"):
        another.audio()


def test_every_preset_is_trained_on_phonemes_and_raw_latents(tmp_path):
    large = preset("5b")
    workshop = Workshop(tmp_path, large, torch.device("cpu"))
    assert large.orchestrator.tokenizer != workshop.preset.orchestrator.tokenizer == "phonemes"
    # Otherwise latents would be normalised twice and denormalised once.
    assert set(workshop.preset.vae.latents_mean) == {0}
    assert set(workshop.preset.vae.latents_std) == {1}
    with pytest.raises(TrainingError, match="duration_dim must be above 0"):
        workshop.stage("rollout-without-pointer")


def test_a_stage_is_refused_before_the_corpus_is_built(tmp_path):
    workshop = Workshop(tmp_path, MINIATURE, torch.device("cpu"))
    for name, missing in (("student", "teacher"), ("decoder", "vae")):
        with pytest.raises(TrainingError, match=f"run: streamchar train {missing}"):
            workshop.stage(name)
    assert not any(tmp_path.iterdir())


def test_a_stage_with_an_unfinished_parent_is_refused(another):
    shutil.rmtree(another.runs)
    run(another.stage("vae", quick), another.runs, minutes=0)
    with pytest.raises(TrainingError, match=r"has 1 of 2 steps; run: streamchar train vae"):
        another.stage("decoder", quick)


def test_the_exported_engine_speaks(workshop, trained):
    engine = engine_of(workshop, "student")
    with engine.open(picture(), seed=1) as session:
        chunk = next(iter(session.speak("Hello there.", max_seconds=5)))
    assert torch.isfinite(chunk.audio).all()
    assert chunk.video.shape[0] == MINIATURE.frames


def test_an_export_is_the_average_in_bf16_with_a_picture(workshop, trained, tmp_path):
    export(workshop, "teacher", tmp_path / "deep" / "out")
    engine = StreamCharEngine.from_pretrained(tmp_path / "deep" / "out")
    assert engine.preset.sampler.steps == len(engine.preset.sampler.sigmas) == 50
    assert engine.orchestrator.config.duration_scale == DURATION_SCALE > MINIATURE.orchestrator.duration_scale
    joint = workshop.joint("teacher")
    ours, theirs = engine.dit.state_dict(), joint.dit.state_dict()
    assert all(torch.equal(ours[name].float(), theirs[name].float()) for name in theirs)
    vae, speech = engine.vae.state_dict(), engine.orchestrator.state_dict()
    for name, value in workshop.vae("decoder").state_dict().items():
        if not name.startswith("latents_"):
            assert torch.equal(vae[name].float(), value.bfloat16().float()), name
    for name, value in joint.orchestrator.state_dict().items():
        assert torch.equal(speech[name].float(), value.bfloat16().float()), name
    with Image.open(tmp_path / "deep" / "out" / "reference.png") as reference:
        assert reference.size == (384, 384)
    assert [each.name for each in (tmp_path / "deep").iterdir()] == ["out"]


def test_an_export_replaces_a_checkpoint_and_keeps_its_card(workshop, trained, tmp_path):
    out = tmp_path / "out"
    export(workshop, "teacher", out)
    (out / "README.md").write_text("A card.")
    (out / "model-00009-of-00009.safetensors").write_bytes(b"of a larger one")
    (out / "reference.png").write_bytes(b"of another")
    export(workshop, "student", out)
    assert (out / "README.md").read_text() == "A card."
    assert not (out / "model-00009-of-00009.safetensors").exists()
    assert Image.open(out / "reference.png").size == (384, 384)
    assert StreamCharEngine.from_pretrained(out).preset.sampler.steps == MINIATURE.sampler.steps


@pytest.mark.parametrize(
    ("stage", "message"),
    [("student", "run: streamchar train student"), ("vae", "must be one of teacher, student, .* got 'vae'")],
)
def test_an_export_that_fails_changes_nothing(stage, message, another, tmp_path_factory):
    out = tmp_path_factory.mktemp("home") / "out"
    out.mkdir()
    for name in ("README.md", "config.json", "model.safetensors"):
        (out / name).write_text(name)
    with pytest.raises(TrainingError, match=message):
        export(another, stage, out)
    assert {each.name: each.read_text() for each in out.iterdir()} == {
        name: name for name in ("README.md", "config.json", "model.safetensors")
    }
    assert [each.name for each in out.parent.iterdir()] == ["out"]


@pytest.mark.parametrize("other", ["thesis.tex", ".git"])
def test_an_export_over_other_files_is_refused(other, workshop, tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / other).mkdir() if other == ".git" else (tmp_path / other).write_text("all my work")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TrainingError, match=f"only a checkpoint, got {tmp_path} with {other}; choose"):
        export(workshop, "student", Path("."))
    assert {each.name for each in tmp_path.iterdir()} == {"config.json", other}


def test_an_export_over_a_file_is_refused(workshop, trained, tmp_path):
    (tmp_path / "out").write_text("all my work")
    with pytest.raises(TrainingError, match="out must be a directory, got the file"):
        export(workshop, "student", tmp_path / "out")
