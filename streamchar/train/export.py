"""Put trained parts together as a checkpoint of the engine."""

import shutil
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image

from ..codecs.vae import Vae
from ..config import SamplerConfig
from ..data.character import Identity, neutral, render
from ..engine import StreamCharEngine
from ..model import JointDiT
from .stages import Workshop

TEACHER_STEPS = 50
#: Of one file of weights, so that any channel carries it.
SHARD_BYTES = 15 * 2**20
#: Who a session shows that gives no reference of its own.
DEFAULT_IDENTITY = 7


def engine_of(workshop: Workshop, stage: str, max_sessions: int = 1) -> StreamCharEngine:
    """Return an engine of the averaged weights of a joint stage in fp32; the teacher's takes many steps."""
    preset, joint = workshop.normalised(), workshop.joint(stage)
    if stage == "teacher":
        preset = replace(preset, sampler=SamplerConfig.shifted(TEACHER_STEPS))
    vae = Vae(preset.vae)
    vae.load_state_dict(workshop.vae("decoder").cpu().state_dict())
    dit = JointDiT(preset)
    dit.load_state_dict(joint.dit.float().state_dict())
    return StreamCharEngine(
        preset, dit, joint.orchestrator, vae, workshop.vocoder(), max_sessions=max_sessions
    )


def export(workshop: Workshop, stage: str, directory: Path) -> None:
    """Write the engine of a stage in bf16, with a reference image, replacing what ``directory`` holds."""
    card = directory / "README.md"
    kept = card.read_text() if card.is_file() else None
    shutil.rmtree(directory, ignore_errors=True)
    engine_of(workshop, stage).save_pretrained(directory, torch.bfloat16, SHARD_BYTES)
    if kept is not None:
        card.write_text(kept)
    frame = render(Identity.sample(DEFAULT_IDENTITY), neutral(), 384, 384)[0]
    Image.fromarray(frame.permute(1, 2, 0).numpy()).save(directory / "reference.png", optimize=True)
