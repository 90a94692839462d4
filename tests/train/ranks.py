"""Two processes that train together, and stages to compare them with a single process on."""

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
from streamchar.model.dit import JointDiT
from streamchar.model.kv_cache import KVCache
from streamchar.train.distributed.parallel import mean_over_ranks, process_group, randn, rank
from streamchar.train.distributed.sharding import Shardable, shard_layers
from streamchar.train.joint import JointModel
from streamchar.train.loop import LoopConfig, Stage, Trainable, run
from streamchar.train.stages import orchestrator, rollout, student, teacher
from tests.engine.small import SMALL
from tests.train.miniature import SilenceListener, random_data

PRESET = replace(
    SMALL,
    orchestrator=replace(
        preset("tiny").orchestrator, dim=64, layers=1, heads=1, kv_heads=1, ffn=64, transcript_tokens=48
    ),
)
CORPUS = CorpusConfig(hours=0.006, sentences=(1, 2))
STEPS = 4
CPU = torch.device("cpu")
#: Seconds after which a hanging process fails the test.
TIMEOUT = 300.0


class Net(Shardable):
    """A network in fp32 with an odd number of rows, called through a method other than forward."""

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
    """Trains :class:`Net` on random inputs."""

    name = "net"

    def __init__(self, config: LoopConfig) -> None:
        super().__init__(config, {})
        torch.manual_seed(0)
        self.net = Net()
        self.trainables = {"net": Trainable(self.net, config)}

    def update(self, step: int, generator: torch.Generator) -> dict[str, float]:
        x = randn((self.config.batch, 3), generator)
        loss = (self.net.predict(x) - x.prod(1, keepdim=True)).square().mean()
        return {"loss": loss.item(), "norm": self.trainables["net"].update(loss, step)}


def build(name: str, config: LoopConfig, corpus_directory: Path) -> Stage:
    """Build a stage at :data:`PRESET`; every process builds the same one."""
    if name == "net":
        return NetStage(config)
    corpus = build_corpus(corpus_directory, CORPUS)
    data = random_data(PRESET, corpus, torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    model = JointModel(PRESET)
    if name == "orchestrator":
        return orchestrator.OrchestratorStage(PRESET, data, CPU, config)
    if name == "student":
        return student.StudentStage(PRESET, data, model, CPU, config)
    if name == "rollout":
        aligner = SilenceListener(PRESET.orchestrator.vocabulary)
        return rollout.RolloutStage(PRESET, data, model, model, model, aligner, CPU, config)
    velocity = nn.Linear(PRESET.orchestrator.dim, PRESET.dit.audio_channels)
    return teacher.TeacherStage(PRESET, data, (model.orchestrator, velocity), CPU, config)


@contextmanager
def in_fp32() -> Iterator[None]:
    """Build joint stages in fp32; the rounding of bf16 would hide differences between process counts."""

    def wide(preset: Preset, batch: int, device: torch.device, _: torch.dtype) -> KVCache:
        return KVCache(preset, batch, device, torch.float32)

    with (
        patch.object(JointDiT, "bfloat16", lambda self: self),
        patch.object(teacher, "KVCache", wide),
        patch.object(student, "KVCache", wide),
    ):
        yield


def config(name: str, batch: int, shard: bool, narrow: bool) -> LoopConfig:
    # Muon computes in bf16, which would hide differences in the larger networks too.
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
    """Train a stage; unless ``unbroken``, stop after the first step and resume with a newly built stage.

    The state after the first step is copied to :func:`first_of`. The values that every step logs, averaged
    over processes, are written to curve.json.
    """
    curve = []

    def fresh() -> Stage:
        with nullcontext() if narrow else in_fp32():
            stage = build(name, config(name, batch, shard, narrow), corpus)
        update = stage.update

        def recorded(step: int, generator: torch.Generator) -> dict[str, float]:
            logged = update(step, generator)
            curve.append(
                {"step": step, **dict(zip(logged, mean_over_ranks([*logged.values()]), strict=True))}
            )
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
    """Return the directory with the states after the first step of the runs in ``directory``."""
    return directory.with_name(f"first step of {directory.name}")


def work(number: int, port: int, tasks: list[tuple], corpus: Path) -> None:
    """Run all tasks as one of two processes."""
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(number),
        "LOCAL_RANK": str(number),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    with process_group(CPU):
        assert rank() == number
        for name, batch, directory, *rest in tasks:
            train(name, batch, corpus, directory, *rest)


def together(tasks: list[tuple], corpus: Path) -> None:
    """Run tasks in two processes; a task is the arguments of :func:`train` without the corpus."""
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
