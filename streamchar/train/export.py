"""Export trained modules as a checkpoint of the engine."""

import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image

from ..checkpoint import CONFIG_FILE, INDEX_FILE
from ..codecs.vae import Vae
from ..config import SamplerConfig
from ..data.renderer.character import Identity, neutral, render
from ..engine import StreamCharEngine
from ..model.dit import JointDiT
from ..model.orchestrator import Orchestrator
from .loop import TrainingError, finished_checkpoint
from .workshop import JOINT, Workshop

#: Denoising steps of an exported teacher.
TEACHER_STEPS = 50
#: Speech is slower than the synthesiser's. Word error rates of the recogniser on four minutes of seeds 1 and
#: 2, which have different texts: 22.6 and 17.9 % at 1.15, 19.8 and 13.9 % at 1.2, 21.3 and 18.4 % at 1.25;
#: on the synthesiser's own speech 19.1 and 12.0 %. Seed 1 alone: 22.8 % at 1 and at 1.1. To measure another
#: value, set it in config.json and run
#: streamchar eval long --minutes 4 --identities 16 --seed 1 --checkpoint DIR --name PACE -o eval-pace.
DURATION_SCALE = 1.2
#: Largest size of a file of weights, small enough for any means of transport.
SHARD_BYTES = 15 * 2**20
#: Identity of the reference image for sessions that are opened without one.
DEFAULT_IDENTITY = 7
CARD, REFERENCE = "README.md", "reference.png"


def engine_of(workshop: Workshop, stage: str, max_sessions: int = 1) -> StreamCharEngine:
    """Build an engine from the averaged weights of a joint stage.

    The transformer is fp32 but holds the average rounded to bf16, the dtype of training and export. The other
    modules hold their averages unrounded.

    Args:
        workshop: workshop with the trained stages.
        stage: "teacher", which gets :data:`TEACHER_STEPS` Euler steps, "student", or a rollout.
        max_sessions: concurrent sessions of the engine.

    Raises:
        TrainingError: ``stage`` is not a joint stage, or a stage that the engine needs is not finished.
    """
    if stage not in JOINT:
        raise TrainingError(f"stage to export must be one of {', '.join(JOINT)}, got {stage!r}")
    # Checked first because encoding the latents takes minutes.
    for each in (stage, "vocoder", "vae", "decoder"):
        finished_checkpoint(workshop.runs, each)
    preset, joint = workshop.normalised(), workshop.joint(stage)
    if preset.orchestrator.duration_dim:
        preset = replace(preset, orchestrator=replace(preset.orchestrator, duration_scale=DURATION_SCALE))
    if stage == "teacher":
        preset = replace(preset, sampler=SamplerConfig.shifted(TEACHER_STEPS))
    vae = Vae(preset.vae)
    vae.load_state_dict(workshop.vae("decoder").cpu().state_dict())
    dit = JointDiT(preset)
    dit.load_state_dict(joint.dit.float().state_dict())
    orchestrator = Orchestrator.from_preset(preset)
    orchestrator.load_state_dict(joint.orchestrator.state_dict())
    return StreamCharEngine(preset, dit, orchestrator, vae, workshop.vocoder(), max_sessions=max_sessions)


def export(workshop: Workshop, stage: str, directory: Path) -> None:
    """Write the engine of a stage in bf16, with a reference image; replaces an existing checkpoint.

    The new checkpoint is written next to ``directory`` and moved into place once it is complete. An existing
    README.md is kept.

    Args:
        workshop: workshop with the trained stages.
        stage: "teacher", "student", or a rollout.
        directory: new, empty, or a directory that holds only a checkpoint.

    Raises:
        TrainingError: the directory holds other files, or a stage that the engine needs is not finished.
    """
    directory = directory.resolve()
    _require_replaceable(directory)
    engine = engine_of(workshop, stage)
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{directory.name}-", dir=directory.parent) as beside:
        new, old = Path(beside, "new"), Path(beside, "old")
        engine.save_pretrained(new, torch.bfloat16, SHARD_BYTES)
        if (card := directory / CARD).is_file():
            (new / CARD).write_bytes(card.read_bytes())
        frame = render(Identity.sample(DEFAULT_IDENTITY), neutral(), 384, 384)[0]
        Image.fromarray(frame.permute(1, 2, 0).numpy()).save(new / REFERENCE, optimize=True)
        if not directory.exists():
            new.rename(directory)
            return
        directory.rename(old)
        try:
            new.rename(directory)
        except OSError:
            old.rename(directory)
            raise


def _require_replaceable(directory: Path) -> None:
    if not directory.exists():
        return
    if not directory.is_dir():
        raise TrainingError(f"out must be a directory, got the file {directory}; choose another --out")
    ours = (CONFIG_FILE, INDEX_FILE, CARD, REFERENCE)
    others = sorted(
        each.name
        for each in directory.iterdir()
        if not each.is_file() or (each.name not in ours and each.suffix != ".safetensors")
    )
    if others:
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        raise TrainingError(
            f"out must be new, empty or hold only a checkpoint, got {directory} with "
            f"{', '.join(others[:3])}{more}; choose another --out"
        )
