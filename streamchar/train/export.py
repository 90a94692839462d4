"""Put trained parts together as a checkpoint of the engine."""

import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image

from ..checkpoint import CONFIG_FILE, INDEX_FILE
from ..codecs.vae import Vae
from ..config import SamplerConfig
from ..data.character import Identity, neutral, render
from ..engine import StreamCharEngine
from ..model import JointDiT
from ..orchestrator import Orchestrator
from .loop import TrainingError, finished
from .stages import JOINT, Workshop

TEACHER_STEPS = 50
#: Slower than the synthesiser says it. Of four minutes of seeds 1 and 2, which have texts of their own, the
#: recogniser got 22.6 and 17.9 % of the words wrong at 1.15, 19.8 and 13.9 % at 1.2, 21.3 and 18.4 % at 1.25
#: (of the synthesiser's own 19.1 and 12.0); of seed 1 22.8 % at 1 and at 1.1. To try another, in config.json:
#: streamchar eval long --minutes 4 --identities 16 --seed 1 --checkpoint DIR --name PACE -o eval-pace.
DURATION_SCALE = 1.2
#: Of one file of weights, so that any channel carries it.
SHARD_BYTES = 15 * 2**20
#: Who a session shows that gives no reference of its own.
DEFAULT_IDENTITY = 7
CARD, REFERENCE = "README.md", "reference.png"


def engine_of(workshop: Workshop, stage: str, max_sessions: int = 1) -> StreamCharEngine:
    """Return an engine of the averaged weights of a joint stage; the teacher's takes many steps.

    The transformer is in fp32 but holds the average rounded to bf16, which it is trained and exported in; all
    else is as it was averaged.

    Raises:
        TrainingError: there is no such stage, or one that it takes has not been trained to its end.
    """
    if stage not in JOINT:
        raise TrainingError(f"stage to export must be one of {', '.join(JOINT)}, got {stage!r}")
    # Before latents are encoded, which takes minutes.
    for each in (stage, "vocoder", "vae", "decoder"):
        finished(workshop.runs, each)
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
    """Write the engine of a stage in bf16, with a reference image, in place of a checkpoint that is there.

    Nothing is touched until all is written beside it. A README.md that is there is kept.

    Args:
        workshop: of the trained stages.
        stage: "teacher", "student", or a rollout.
        directory: new, empty, or a checkpoint's, with nothing else in it.

    Raises:
        TrainingError: the directory holds other files, or a stage has not been trained to its end.
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
        raise TrainingError(f"out must be a directory, got the file {directory}; give another --out")
    ours = (CONFIG_FILE, INDEX_FILE, CARD, REFERENCE)
    others = sorted(
        each.name
        for each in directory.iterdir()
        if not each.is_file() or (each.name not in ours and each.suffix != ".safetensors")
    )
    if others:
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        raise TrainingError(
            f"out must be new, empty or hold a checkpoint alone, got {directory} with "
            f"{', '.join(others[:3])}{more}; give another --out"
        )
