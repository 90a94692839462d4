"""The denoising loop: its arithmetic, its seeds, and that it replays with new values at old addresses."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from streamchar.config import (
    ChunkConfig,
    ConfigError,
    DiTConfig,
    PictureConfig,
    Preset,
    SamplerConfig,
    preset,
)
from streamchar.kernels import KernelArgumentError
from streamchar.kernels._shared.philox import philox_normal_reference
from streamchar.model.denoiser import Conditions, Denoiser
from streamchar.model.dit import JointDiT
from streamchar.model.kv_cache import KVCache
from streamchar.numerics import relative_error
from tests.closeness import assert_close
from tests.engine.small import SMALL


def small_preset() -> Preset:
    return replace(
        preset("tiny"),
        dit=DiTConfig(
            dim=128, layers=2, heads=2, head_dim=64, video_ffn=160, audio_ffn=96, audio_channels=32
        ),
        vae=SMALL.vae,
        picture=PictureConfig(height=32, width=48, spatial_stride=8, channels=16, patch=2),
        chunk=ChunkConfig(latent_frames=3, sink_latents=3, motion_latents=2),
    )


class Scene:
    """A model, a cache with its reference committed, and the buffers of a chunk."""

    def __init__(
        self,
        device: torch.device | str,
        batch: int = 1,
        schedule: SamplerConfig | None = None,
        config: Preset | None = None,
    ) -> None:
        config = config or small_preset()
        torch.manual_seed(5)
        self.model = JointDiT(config).requires_grad_(False)
        with torch.no_grad():
            for head in (self.model.video_out, self.model.audio_out):
                head.weight.mul_(10)  # so that the velocity, not the noise, decides what comes out
        channels, audio_channels = config.picture.channels, config.dit.audio_channels
        clean = torch.randn(1, config.chunk.latent_frames, channels, *config.picture.latent_size)
        c_a = torch.randn(1, config.audio_tokens, config.orchestrator.dim)
        self.model.to(device)
        self.clean, self.c_a = (x.to(device).repeat(batch, *(1,) * (x.dim() - 1)) for x in (clean, c_a))
        self.denoiser = Denoiser(self.model, schedule, batch)
        self.cache = KVCache(config, batch, device)
        self.commit("reference", self.clean[:, : config.chunk.reference_latents])
        self.x_video = torch.full_like(self.clean, float("nan"))
        self.x_audio = torch.full((batch, config.audio_tokens, audio_channels), float("nan"), device=device)
        self.seed = torch.full((batch,), 11, dtype=torch.int64, device=device)
        self.chunk = torch.zeros(batch, dtype=torch.int64, device=device)

    def commit(self, role: str, latents: torch.Tensor) -> None:
        self.model.commit(role, latents, self.denoiser.modulation, self.cache)
        for row in range(self.cache.batch):
            self.cache.set_valid(row, **{role: True})

    def remember(self) -> None:
        """Make sink and motion of the clean latents."""
        chunk = self.model.preset.chunk
        self.commit("sink", self.clean[:, : chunk.sink_latents])
        self.commit("motion", self.clean[:, -chunk.motion_latents :])

    def conditions(self, x_audio: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """Stand in for the orchestrator: depends on the noisy audio and on its level."""
        return self.c_a * (1 + sigma[:, None, None]) + x_audio.mean((1, 2), keepdim=True)

    def run(self, conditions: Conditions | torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        self.denoiser(
            self.x_video,
            self.x_audio,
            self.seed,
            self.chunk,
            self.conditions if conditions is None else conditions,
            self.cache,
        )
        return self.x_video.clone(), self.x_audio.clone()

    def addresses(self) -> list[int]:
        tensors = [self.x_video, self.x_audio, self.denoiser.sigmas, *self.denoiser.modulation]
        tensors += [*self.cache.k, *self.cache.v]
        tensors += [tables.segments for tables in self.cache.tables.values()]
        return [tensor.data_ptr() for tensor in tensors]


def noise(scene: Scene, draw: int) -> list[torch.Tensor]:
    at = torch.full_like(scene.seed, draw)
    return [
        philox_normal_reference(scene.seed, scene.chunk, at, modality, x[0].numel()).view(x.shape)
        for modality, x in enumerate((scene.x_video, scene.x_audio))
    ]


@pytest.mark.parametrize("mode", ["renoise", "euler"])
def test_the_loop_follows_its_equation(device, mode):
    scene = Scene(device, schedule=replace(SamplerConfig(), mode=mode))
    scene.chunk.fill_(3)
    sigmas = [*SamplerConfig().sigmas, 0.0]
    modulation = scene.model.modulation(torch.tensor(sigmas[:-1], device=device))
    x = noise(scene, 0)
    for step, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        c_a = scene.conditions(x[1], torch.full((1,), sigma, device=device))
        at = torch.full((1,), step, dtype=torch.int32, device=device)
        v = scene.model.step(*x, c_a, at, modulation, scene.cache)
        if mode == "euler":
            x = [a + (sigma_next - sigma) * b for a, b in zip(x, v)]
        else:
            fresh = noise(scene, step + 1)
            clean = [a - sigma * b for a, b in zip(x, v)]
            x = [(1 - sigma_next) * a + sigma_next * b for a, b in zip(clean, fresh)]
    # Four steps that differ from the kernel's by a few roundings, each carried through a block or two.
    for out, reference in zip(scene.run(), x):
        assert_close(out, reference, torch.float32, 4 * 30)


def test_many_euler_steps_converge(device):
    # Euler's error is of first order: from 8 to 16 to 32 steps its change halves, or nearly.
    ends = [Scene(device, schedule=SamplerConfig.shifted(steps, shift=1.0)).run()[0] for steps in (8, 16, 32)]
    changes = [relative_error(a, b.double()) for a, b in pairwise(ends)]
    assert changes[1] < 0.7 * changes[0]


def test_the_student_schedule_is_the_shifted_one():
    assert SamplerConfig.shifted(4).sigmas == pytest.approx(SamplerConfig().sigmas, abs=5e-5)
    assert SamplerConfig.shifted(50).steps == 50
    assert SamplerConfig.shifted(2, shift=1.0).sigmas == (1.0, 0.5)
    with pytest.raises(ConfigError, match="steps must be a positive integer, got 0"):
        SamplerConfig.shifted(0)
    with pytest.raises(ConfigError, match="shift must be above 0"):
        SamplerConfig.shifted(4, shift=0.0)


def test_the_same_seed_and_chunk_give_the_same_media(device):
    scene, other = Scene(device), Scene(device)
    assert all(map(torch.equal, scene.run(), other.run()))
    first = scene.run()
    assert all(map(torch.equal, first, scene.run()))


@pytest.mark.parametrize("name", ["seed", "chunk"])
def test_another_seed_or_chunk_gives_other_media(device, name):
    scene = Scene(device)
    first = scene.run()
    getattr(scene, name).add_(1)
    for old, new in zip(first, scene.run()):
        assert relative_error(new, old.double()) > 0.1


def test_a_replay_with_changed_tensors_equals_a_fresh_run_at_old_addresses(device):
    scene = Scene(device)
    before = scene.addresses()
    first = scene.run()
    other = SamplerConfig((1.0, 0.8, 0.5, 0.2))

    def change(target: Scene) -> None:
        target.remember()
        target.seed.fill_(99)
        target.chunk.fill_(7)
        target.c_a.mul_(0.5)

    change(scene)
    scene.denoiser.set_schedule(other)
    second = scene.run()
    fresh = Scene(device, schedule=other)
    change(fresh)
    assert all(map(torch.equal, second, fresh.run()))
    for old, new in zip(first, second):
        assert relative_error(new, old.double()) > 0.1
    # And back: no trace of the second run is left.
    scene.cache.set_valid(0, sink=False, motion=False)
    scene.seed.fill_(11)
    scene.chunk.zero_()
    scene.c_a.mul_(2)
    scene.denoiser.set_schedule(SamplerConfig())
    assert all(map(torch.equal, scene.run(), first))
    assert scene.addresses() == before


def test_rows_do_not_disturb_one_another(device):
    both = Scene(device, batch=2)
    both.seed[1], both.chunk[1] = 12, 3
    for row in range(2):
        single = both.cache.row(row)
        single.set_valid(0, reference=row == 0)
    results = both.run()
    for row in range(2):
        one = Scene(device)
        one.seed.fill_(11 + row)
        one.chunk.fill_(3 * row)
        one.cache.set_valid(0, reference=row == 0)
        for out, reference in zip(results, one.run()):
            # A batched product may sum in another order: a few roundings in each of four steps.
            assert_close(out[row : row + 1], reference, torch.float32, 4 * 30)
    # A row with nothing due may hold anything.
    both.cache.k[0][1].fill_(float("nan"))
    both.cache.v[1][1].fill_(float("nan"))
    both.c_a[1].fill_(float("nan"))
    for out, reference in zip(both.run(), results):
        assert torch.equal(out[0], reference[0])


def test_steps_one_by_one_are_the_whole(device):
    scene = Scene(device)
    whole = scene.run(scene.c_a)
    scene.x_video.copy_(noise(scene, 0)[0])
    scene.x_audio.copy_(noise(scene, 0)[1])
    for index in range(scene.denoiser.steps):
        scene.denoiser.step(
            index,
            scene.x_video,
            scene.x_audio,
            scene.seed,
            scene.chunk,
            lambda x_audio, sigma: scene.c_a,
            scene.cache,
        )
    for out, reference in zip((scene.x_video, scene.x_audio), whole):
        assert_close(out, reference, torch.float32, 4 * 30)


def test_the_whole_loop_reads_no_device_value_on_the_host():
    # Meta tensors have no values to read.
    config = small_preset()
    model = JointDiT(config).to("meta").requires_grad_(False)
    cache, denoiser = KVCache(config, 2, "meta"), Denoiser(model, batch=2)
    x_video = torch.empty(2, 3, 16, 4, 6, device="meta")
    x_audio = torch.empty(2, 12, 32, device="meta")
    c_a = torch.empty(2, 12, 256, device="meta")
    seed = torch.empty(2, dtype=torch.int64, device="meta")
    denoiser(x_video, x_audio, seed, seed, c_a, cache)


def test_weights_that_change_are_taken_up(device):
    scene = Scene(device)
    first = scene.run()
    scene.model.table.mul_(2)
    scene.denoiser.set_schedule(SamplerConfig())
    assert relative_error(scene.run()[0], first[0].double()) > 1e-3
    modulation = scene.model.modulation(scene.denoiser.sigmas[:-1])
    assert all(map(torch.equal, scene.denoiser.modulation, modulation))


def test_the_tiny_preset_makes_a_finite_chunk_of_its_full_size(device):
    config = preset("tiny")
    scene = Scene(device, config=config)
    video, audio = scene.run(scene.c_a)
    scene.commit("motion", video)
    assert video.shape == (
        1,
        config.chunk.latent_frames,
        config.picture.channels,
        *config.picture.latent_size,
    )
    assert audio.shape == (1, config.audio_tokens, config.dit.audio_channels)
    assert torch.isfinite(video).all()
    assert torch.isfinite(audio).all()


def test_arguments_that_do_not_fit_are_refused(device):
    scene = Scene(device)
    with pytest.raises(KernelArgumentError, match="batch must be at least 1"):
        Denoiser(scene.model, batch=0)
    with pytest.raises(KernelArgumentError, match="config must be a schedule of 4 steps, got 2"):
        scene.denoiser.set_schedule(SamplerConfig((1.0, 0.5)))
    with pytest.raises(KernelArgumentError, match=r"config\.mode must be 'renoise', got euler"):
        scene.denoiser.set_schedule(SamplerConfig.shifted(4))
    given = (scene.x_video, scene.x_audio, scene.seed, scene.chunk, scene.conditions, scene.cache)
    with pytest.raises(KernelArgumentError, match="index must be between 0 and 3, got 4"):
        scene.denoiser.step(4, *given)
    with pytest.raises(KernelArgumentError, match="seed must be int64, got int32"):
        scene.denoiser(*given[:2], scene.seed.int(), *given[3:])
    wide = KVCache(scene.model.preset, 2, device)
    with pytest.raises(KernelArgumentError, match=r"cache\.batch must be 1, as in this Denoiser, got 2"):
        scene.denoiser(*given[:-1], wide)
