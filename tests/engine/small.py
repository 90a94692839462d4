"""An engine small enough for a test: the code of the tiny preset in a fraction of its time."""

from dataclasses import replace

import torch

from streamchar.codecs.vae import Vae
from streamchar.codecs.vocoder import Vocoder
from streamchar.config import DiTConfig, OrchestratorConfig, PictureConfig, VaeConfig, preset
from streamchar.engine import StreamCharEngine
from streamchar.model.dit import JointDiT
from streamchar.model.orchestrator import Orchestrator
from streamchar.model.packing import Prefix
from streamchar.runtime.request import ChunkRequest
from streamchar.runtime.timeline import Timeline
from streamchar.text.transcript_window import TextWindow

#: The tiny preset with fewer and smaller layers: the same code in a fraction of the time.
SMALL = replace(
    preset("tiny"),
    vae=VaeConfig(
        base_dim=8,
        decoder_base_dim=8,
        z_dim=16,
        dim_mult=(1, 2, 2),
        num_res_blocks=1,
        temporal_downsample=(True, True),
        patch_size=2,
        latents_mean=(0.0,) * 16,
        latents_std=(1.0,) * 16,
    ),
    dit=DiTConfig(dim=64, layers=2, heads=1, head_dim=64, video_ffn=128, audio_ffn=64, audio_channels=16),
    picture=PictureConfig(height=32, width=32, spatial_stride=8, channels=16, patch=2),
    orchestrator=OrchestratorConfig(
        dim=64, layers=2, heads=1, kv_heads=1, head_dim=64, ffn=128, vocabulary=512, transcript_tokens=64
    ),
)
#: The same with planned durations, by which the shipped voice speaks; pretrained language models have none.
PLANNED = replace(SMALL, orchestrator=replace(SMALL.orchestrator, duration_dim=16))
TEXT = "one two three four five six seven eight nine ten"


def build(max_sessions=1, seed=0, config=SMALL, report=None):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        modules = (
            JointDiT(config),
            Orchestrator.from_preset(config),
            Vae(config.vae),
            Vocoder.from_preset(config),
        )
    return StreamCharEngine(config, *modules, max_sessions=max_sessions, report=report)


def picture(seed=0):
    return torch.rand((3, 32, 32), generator=torch.Generator().manual_seed(seed)) * 2 - 1


def take(session, count=2, text=TEXT):
    chunks = [chunk for _, chunk in zip(range(count), session.speak(text, max_seconds=60), strict=False)]
    session.interrupt()
    return chunks


def media(chunks):
    return torch.cat([chunk.video for chunk in chunks]), torch.cat([chunk.audio for chunk in chunks])


def fixed_tensors(engine):
    """List every weight and every buffer that a step may read or write."""
    modules = engine.dit, engine.orchestrator, engine.vae, engine.vocoder
    found = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
    rows = engine.scheduler.executor.rows
    for runner in (rows.runner, *(row.runner for row in rows)):
        found += [x for x in vars(runner.denoiser).values() if isinstance(x, torch.Tensor)]
        found += [*runner.denoiser.modulation, *runner.cache.k, *runner.cache.v]
        found += [*vars(runner.buffers).values(), *vars(runner.state).values()]
        found += [tensor for tables in runner.cache.tables.values() for tensor in vars(tables).values()]
    for decoders in (rows.decoders, *(row.decoders for row in rows)):
        state = decoders.state
        found += [*vars(decoders.media).values(), *state.vae.past, *vars(state.vocoder).values()]
    return found


def window_of(session):
    """Return what the session's window held when its last chunk was made."""
    return " ".join(word.text for word in session._channel.timeline.window.words)


class OpenRow:
    """A row of an engine with a text, for tests that make its chunks by the executor alone."""

    def __init__(self, engine, seed, text):
        self.row = engine.scheduler.open(picture(seed), seed)
        window = TextWindow(engine.tokenizer, engine.preset.orchestrator.transcript_tokens)
        self.timeline = Timeline(window, engine.preset)
        window.append(text)

    def request(self):
        return ChunkRequest(self.row, self.timeline)


def one_pass(orchestrator, ids, spoken, history, heard, x_audio, sigma, progress=None):
    """Run the orchestrator over prefix and chunk in one pass."""
    return orchestrator(Prefix(ids, spoken, history, heard, progress), x_audio, sigma)
