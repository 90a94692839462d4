"""Two processes that train together, and the stages that they and a single one are compared on."""

import json
import multiprocessing
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import torch
from torch import nn

from streamchar.config import Preset, preset
from streamchar.data.corpus import CorpusConfig, build_corpus
from streamchar.memory import KVMemory
from streamchar.model import JointDiT
from streamchar.train import orchestrator, rollout, student, teacher
from streamchar.train.joint import JointModel, VideoLatents
from streamchar.train.loop import LoopConfig, Stage, Trained, run
from streamchar.train.parallel import means, processes, randn, rank
from streamchar.train.sharding import Shardable, shard_layers
from tests.engine.small import SMALL

PRESET = replace(
    SMALL,
    orchestrator=replace(
        preset("tiny").orchestrator, dim=64, layers=1, heads=1, kv_heads=1, ffn=64, transcript_tokens=48
    ),
)
CORPUS = CorpusConfig(hours=0.006, sentences=(1, 2))
STEPS = 4
CPU = torch.device("cpu")
#: A hang must fail the test, not stop the suite.
TIMEOUT = 300.0


class Listener(nn.Module):
    """Hears silence, token 0, whatever the latents are."""

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        heard = torch.full((*latents.shape[:2], PRESET.orchestrator.vocabulary), -20.0)
        heard[..., 0] = 0.0
        return heard


class Net(Shardable):
    """A network in fp32 whose rows do not divide by two, called through a method of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(3, 5)
        self.layers = nn.ModuleList(nn.Linear(5, 5) for _ in range(2))
        self.leave = nn.Linear(5, 1)

    def predict(self, x: torch.Tensor) -> torch.Tensor:
        x = self.enter(x)
        for layer in (*self.layers, *self.layers):
            x = x + layer(x).tanh()
        return self.leave(x)

    def shard(self) -> None:
        shard_layers(self, self.layers, ("predict",), written=())


class NetStage(Stage):
    """Learn a map of random inputs."""

    name = "net"

    def __init__(self, config: LoopConfig) -> None:
        super().__init__(config, {})
        torch.manual_seed(0)
        self.net = Net()
        self.trained = {"net": Trained(self.net, config)}

    def update(self, step: int, generator: torch.Generator) -> dict[str, float]:
        x = randn((self.config.batch, 3), generator)
        loss = (self.net.predict(x) - x.prod(1, keepdim=True)).square().mean()
        return {"loss": loss.item(), "norm": self.trained["net"].update(loss, step)}


def build(name: str, config: LoopConfig, corpus_directory: Path) -> Stage:
    """Return a stage of the miniature, the same whoever builds it."""
    if name == "net":
        return NetStage(config)
    corpus = build_corpus(corpus_directory, CORPUS)
    generator = torch.Generator().manual_seed(0)
    audio = torch.randn(int(corpus.frames.sum()), PRESET.dit.audio_channels, generator=generator)
    bounds = [0]
    for recording in corpus:
        bounds.append(bounds[-1] + recording.frames // PRESET.picture.temporal_stride + 1)
    channels = PRESET.picture.channels
    latents = torch.randn(bounds[-1], channels, *PRESET.picture.latent_size, generator=generator)
    video = VideoLatents(latents.half(), bounds, torch.zeros(channels), torch.ones(channels))
    torch.manual_seed(0)
    model = JointModel(PRESET)
    if name == "orchestrator":
        return orchestrator.OrchestratorStage(PRESET, corpus, audio, CPU, config)
    if name == "student":
        return student.StudentStage(PRESET, corpus, audio, video, model, CPU, config)
    if name == "rollout":
        models = model, model, model
        return rollout.RolloutStage(PRESET, corpus, audio, video, *models, Listener(), CPU, config)
    velocity = nn.Linear(PRESET.orchestrator.dim, PRESET.dit.audio_channels)
    return teacher.TeacherStage(PRESET, corpus, audio, video, (model.orchestrator, velocity), CPU, config)


@contextmanager
def in_fp32() -> Iterator[None]:
    """Build joint stages in fp32 instead of bf16, whose rounding hides what two processes do differently."""

    def wide(preset: Preset, batch: int, device: torch.device, _: torch.dtype) -> KVMemory:
        return KVMemory(preset, batch, device, torch.float32)

    with (
        patch.object(JointDiT, "bfloat16", lambda self: self),
        patch.object(teacher, "KVMemory", wide),
        patch.object(student, "KVMemory", wide),
    ):
        yield


def config(name: str, batch: int, shard: bool, narrow: bool) -> LoopConfig:
    # Muon computes in bf16, which would hide as much in the larger networks.
    muon = {"matrix_lr": 1e-2} if name == "net" or narrow else {}
    return LoopConfig(steps=STEPS, lr=1e-3, batch=batch, warmup=1, ema=0.9, log_steps=1, shard=shard, **muon)


def train(
    name: str,
    batch: int,
    corpus: Path,
    directory: Path,
    shard: bool = False,
    steps: int = STEPS,
    narrow: bool = False,
    unbroken: bool = False,
) -> None:
    """Train a stage, by default ended after its first step and gone on with by a stage built anew.

    A copy of that first state stays beside it. What every step logs, averaged over processes, is left in
    curve.json.
    """
    curve = []

    def fresh() -> Stage:
        with nullcontext() if narrow else in_fp32():
            stage = build(name, config(name, batch, shard, narrow), corpus)
        update = stage.update

        def recorded(step: int, generator: torch.Generator) -> dict[str, float]:
            logged = update(step, generator)
            curve.append({"step": step, **dict(zip(logged, means([*logged.values()]), strict=True))})
            return logged

        stage.update = recorded
        return stage

    folder = directory / name
    if not unbroken and not (folder / "checkpoint.pt").exists():
        run(fresh(), directory, minutes=0)
        if rank() == 0:
            shutil.copytree(folder, first_of(directory) / name)
    if steps > 1:
        run(fresh(), directory)
    if rank() == 0:
        (folder / "curve.json").write_text(json.dumps(curve))


def first_of(directory: Path) -> Path:
    """Return where runs in a directory leave their states after the first step."""
    return directory.with_name(f"first step of {directory.name}")


def work(number: int, port: int, tasks: list[tuple], corpus: Path) -> None:
    """Be one of two processes, and train one task after another."""
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(number),
        "LOCAL_RANK": str(number),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    with processes(CPU):
        assert rank() == number
        for name, batch, directory, *rest in tasks:
            train(name, batch, corpus, directory, *rest)


def together(tasks: list[tuple], corpus: Path) -> None:
    """Train tasks, each the arguments of :func:`train` without the corpus, in two processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    pair = [context.Process(target=work, args=(number, port, tasks, corpus)) for number in range(2)]
    try:
        for each in pair:
            each.start()
        for each in pair:
            each.join(TIMEOUT)
        codes = [each.exitcode for each in pair]
        assert codes == [0, 0], f"exit codes {codes}; None is a hang"
    finally:
        for each in pair:
            if each.is_alive():
                each.kill()
