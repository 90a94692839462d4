"""Engines that lack a part, to measure what the part contributes."""

from dataclasses import replace

import torch

from ...engine import StreamCharEngine
from ...model.dit import JointDiT
from ...model.pointer import PlannedPointer


def ablated(
    engine: StreamCharEngine, *, sink: int | None = None, motion: int | None = None, pointer: bool = True
) -> StreamCharEngine:
    """Return an engine with the same weights but less conditioning.

    Do not use the given engine any more: both share the language model.

    Args:
        engine: an engine without open sessions.
        sink: latents of the first chunk to keep in the cache, from 0 to all of them; None for the preset's
            number.
        motion: latents of the last chunk to keep in the cache, from 0 to all of them; None for the preset's
            number.
        pointer: whether the position in the text is read from the audio; otherwise it follows the planned
            durations.

    Raises:
        ConfigError: ``sink`` or ``motion`` exceeds the latents of a chunk.
        ValueError: ``pointer`` is False and the engine has no duration predictor.
    """
    chunk = engine.preset.chunk
    kept = replace(
        chunk,
        sink_latents=chunk.sink_latents if sink is None else sink,
        motion_latents=chunk.motion_latents if motion is None else motion,
    )
    config = replace(engine.preset, chunk=kept)
    if not pointer:
        if engine.orchestrator.durations is None:
            raise ValueError("orchestrator must have a duration predictor to replace its pointer, got none")
        engine.orchestrator.pointer = PlannedPointer(config.audio_tokens)
    with torch.device("meta"):
        dit = JointDiT(config, engine.dit.backend)
    dit.load_state_dict(engine.dit.state_dict(), assign=True)
    return StreamCharEngine(config, dit, engine.orchestrator, engine.vae, engine.vocoder, engine.tokenizer)
