"""The transformer against one dense block-causal forward pass, written anew in float64.

Bounds: every block puts about ten rounded operations on the path of the stream (two norms, two modulations,
four products, the softmax, two residuals), each off by at most one epsilon in relative norm: products sum
some hundred terms, but pairwise in vector lanes, and their roundings are as often up as down. That makes ten
epsilons a block, and as many again for embedding and head.
"""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from streamchar.config import ChunkConfig, DiTConfig, PictureConfig, Preset, preset
from streamchar.kernels import KernelArgumentError
from streamchar.model.dit import JointDiT, Modulation
from streamchar.model.kv_cache import KVCache
from streamchar.numerics import relative_error
from tests.closeness import assert_close
from tests.engine.small import SMALL

LAYERS = 3
GROWTH = 10.0 * (LAYERS + 1)
SIGMAS = (1.0, 0.9, 0.4)


def small_preset(head_dim: int = 64) -> Preset:
    return replace(
        preset("tiny"),
        dit=DiTConfig(
            dim=2 * head_dim,
            layers=LAYERS,
            heads=2,
            head_dim=head_dim,
            video_ffn=160,
            audio_ffn=96,
            audio_channels=32,
        ),
        vae=SMALL.vae,
        picture=PictureConfig(height=32, width=48, spatial_stride=8, channels=16, patch=2),
        chunk=ChunkConfig(latent_frames=3, sink_latents=3, motion_latents=2),
    )


def small_model(config: Preset, device: torch.device, dtype: torch.dtype, backend: str = "auto") -> JointDiT:
    """A model whose every parameter matters: biases and norms are not at their neutral values."""
    torch.manual_seed(7)
    model = JointDiT(config, backend)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("bias", "q_norm", "k_norm")):
                parameter.add_(0.3 * torch.randn(parameter.shape))
    return model.to(device, dtype).requires_grad_(False)


class Inputs:
    """Latents of all segments, noisy chunk and conditions for ``batch`` rows, in float64."""

    def __init__(self, config: Preset, rng: torch.Generator, batch: int = 1) -> None:
        def draw(*shape: int) -> torch.Tensor:
            return torch.randn(batch, *shape, generator=rng, dtype=torch.float64)

        cell, chunk = (config.picture.channels, *config.picture.latent_size), config.chunk
        self.clean = {
            "reference": draw(chunk.reference_latents, *cell),
            "sink": draw(chunk.sink_latents, *cell),
            "motion": draw(chunk.motion_latents, *cell),
        }
        self.video = draw(chunk.latent_frames, *cell)
        self.audio = draw(config.audio_tokens, config.dit.audio_channels)
        self.c_a = draw(config.audio_tokens, config.orchestrator.dim)

    def noisy(self, device: torch.device, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
        return tuple(x.to(device, dtype) for x in (self.video, self.audio, self.c_a))


def commit_all(
    model: JointDiT, cache: KVCache, modulation: Modulation, inputs: Inputs, roles: list[str], row: int = 0
) -> None:
    for role in roles:
        model.commit(role, inputs.clean[role].to(cache.k[0]), modulation, cache)
        cache.set_valid(row, **{role: True})


def dense(
    model: JointDiT, inputs: Inputs, roles: list[str], sigma: float, row: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """One pass over [roles | video | audio] with an explicit mask; shares no code with the model."""
    config = model.preset
    w = {name: value.detach().double().cpu() for name, value in model.state_dict().items()}
    heads, head_dim = config.dit.heads, config.dit.head_dim
    # Of this file's chunk: 1 latent, 3, 2 and 3; the motion is the end of a whole chunk of 3.
    times = {"reference": -7, "sink": -6, "motion": -2, "video": 0}

    def affine(name: str, x: torch.Tensor) -> torch.Tensor:
        y = torch.einsum("...i,oi->...o", x, w[f"{name}.weight"])
        return y + w[f"{name}.bias"] if f"{name}.bias" in w else y

    def rms(x: torch.Tensor) -> torch.Tensor:
        return x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()

    tokens, positions, order, noise = [], [], [], []
    parts = [(role, inputs.clean[role][row]) for role in roles] + [("video", inputs.video[row])]
    for rank, (role, latents) in enumerate(parts):
        tokens.append(affine("video_in", F.unfold(latents, 2, stride=2).mT.flatten(0, 1)))
        for frame in range(len(latents)):
            positions += [(times[role] + frame, y, x) for y in range(2) for x in range(3)]
        order += [rank] * len(tokens[-1])
        noise += [sigma if role == "video" else 0.0] * len(tokens[-1])
    tokens.append(affine("audio_in", inputs.audio[row]) + affine("condition_in", inputs.c_a[row]))
    positions += [(j / 4, 0, 0) for j in range(len(tokens[-1]))]
    order += [len(parts) - 1] * len(tokens[-1])
    noise += [sigma] * len(tokens[-1])
    x, video = torch.cat(tokens), sum(map(len, tokens[:-1]))

    frequencies = [1000 * math.exp(-math.log(1e4) * i / 128) for i in range(128)]
    angle = torch.outer(*(torch.tensor(x, dtype=torch.float64) for x in (noise, frequencies)))
    t = affine("timestep_out", F.silu(affine("timestep_in", torch.cat((angle.cos(), angle.sin()), 1))))
    shared = affine("modulation_out", F.silu(t)).unflatten(1, (6, -1))

    third = head_dim // 6
    pairs = (head_dim // 2 - 2 * third, third, third)
    turns = [
        [position[axis] * 1e4 ** (-i / pairs[axis]) for axis in range(3) for i in range(pairs[axis])]
        for position in positions
    ]
    # The kernels read these tables in fp32.
    turn = torch.tensor(turns, dtype=torch.float64)
    turn = torch.complex(turn.cos().float().double(), turn.sin().float().double())
    rank = torch.tensor(order)
    hidden = rank[:, None] < rank[None, :]

    for layer in range(config.dit.layers):
        name = f"blocks.{layer}"
        shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = (w["table"][layer] + shared).unbind(1)
        qkv = affine(f"{name}.qkv", rms(x) * (1 + scale) + shift).unflatten(1, (3, heads, head_dim))

        def rotated(z: torch.Tensor) -> torch.Tensor:
            a, b = z.chunk(2, -1)
            z = torch.complex(a, b) * turn[:, None]
            return torch.cat((z.real, z.imag), -1)

        q = rotated(rms(qkv[:, 0]) * w[f"{name}.q_norm"])
        k = rotated(rms(qkv[:, 1]) * w[f"{name}.k_norm"])
        scores = torch.einsum("qhd,khd->hqk", q, k) / math.sqrt(head_dim)
        p = scores.masked_fill(hidden, -math.inf).softmax(-1)
        x = x + gate * affine(f"{name}.out", torch.einsum("hqk,khd->qhd", p, qkv[:, 2]).flatten(1))
        y = rms(x) * (1 + ffn_scale) + ffn_shift
        experts = [
            affine(f"{name}.{kind}_down", F.gelu(affine(f"{name}.{kind}_up", part), approximate="tanh"))
            for kind, part in (("video", y[:video]), ("audio", y[video:]))
        ]
        x = x + ffn_gate * torch.cat(experts)

    final_shift, final_scale = (w["final_table"] + t[:, None]).unbind(1)
    y = rms(x) * (1 + final_scale) + final_shift
    frames = config.chunk.latent_frames
    cells = affine("video_out", y[video - config.video_tokens : video]).unflatten(0, (frames, -1))
    v_video = F.fold(cells.mT, config.picture.latent_size, 2, stride=2)
    return v_video, affine("audio_out", y[video:])


def through_cache(
    model: JointDiT, inputs: Inputs, roles: list[str], level: int, cache: KVCache
) -> tuple[torch.Tensor, torch.Tensor]:
    weights = model.table
    modulation = model.modulation(torch.tensor(SIGMAS, dtype=weights.dtype, device=weights.device))
    commit_all(model, cache, modulation, inputs, roles)
    step = torch.tensor([level], dtype=torch.int32, device=weights.device)
    return model.step(*inputs.noisy(weights.device, weights.dtype), step, modulation, cache)


CASES = {
    "first chunk": ["reference"],
    "no conditioning": [],
    "later chunk": ["reference", "sink", "motion"],
    "without sink": ["reference", "motion"],
}


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
@pytest.mark.parametrize("roles", CASES.values(), ids=CASES.keys())
def test_cached_conditioning_equals_one_dense_pass(device, rng, head_dim, dtype, roles):
    config = small_preset(head_dim)
    backend = "torch" if dtype == torch.float64 else "auto"
    model, inputs = small_model(config, device, dtype, backend), Inputs(config, rng)
    if dtype == torch.float32:
        inputs.video, inputs.audio, inputs.c_a = (x.float().double() for x in inputs.noisy("cpu", dtype))
        inputs.clean = {role: x.float().double() for role, x in inputs.clean.items()}
    cache = KVCache(config, device=device, dtype=dtype)
    # Whatever no one has written must not be read.
    for buffer in (*cache.k, *cache.v):
        buffer.fill_(float("nan"))
    sigma = torch.tensor(SIGMAS[1], dtype=dtype).item()
    results = through_cache(model, inputs, roles, 1, cache)
    for out, reference in zip(results, dense(model, inputs, roles, sigma)):
        assert out.dtype == dtype
        assert_close(out[0], reference, dtype, GROWTH)


def test_bf16_stays_within_its_own_rounding(device, rng):
    config = small_preset()
    model, inputs = small_model(config, device, torch.bfloat16), Inputs(config, rng)
    cache = KVCache(config, device=device, dtype=torch.bfloat16)
    inputs.video, inputs.audio, inputs.c_a = (
        x.double() for x in inputs.noisy(torch.device("cpu"), torch.bfloat16)
    )
    inputs.clean = {role: x.bfloat16().double() for role, x in inputs.clean.items()}
    results = through_cache(model, inputs, CASES["later chunk"], 2, cache)
    for out, reference in zip(results, dense(model, inputs, CASES["later chunk"], SIGMAS[2])):
        assert out.dtype == torch.bfloat16
        # Independent roundings of half an epsilon add up as their root: a quarter of the bound.
        assert_close(out[0], reference, torch.bfloat16, GROWTH / 4)


def test_every_conditioning_segment_changes_the_result(device, rng):
    config = small_preset()
    model, inputs = small_model(config, device, torch.float32), Inputs(config, rng)
    results = [
        through_cache(model, inputs, roles, 1, KVCache(config, device=device))[0] for roles in CASES.values()
    ]
    for index, one in enumerate(results):
        for other in results[:index]:
            assert relative_error(one, other.double()) > 1e-3


def test_an_absent_segment_is_not_seen_even_when_it_was_written(device, rng):
    config = small_preset()
    model, inputs = small_model(config, device, torch.float32), Inputs(config, rng)
    cache = KVCache(config, device=device)
    later = through_cache(model, inputs, CASES["later chunk"], 0, cache)
    cache.set_valid(0, sink=False, motion=False)
    first = through_cache(model, inputs, CASES["first chunk"], 0, cache)
    fresh = through_cache(model, inputs, CASES["first chunk"], 0, KVCache(config, device=device))
    assert relative_error(first[0], later[0].double()) > 1e-3
    assert all(map(torch.equal, first, fresh))


def test_conditioning_of_no_latents_is_conditioning_that_never_came(device, rng):
    config = small_preset()
    inputs = Inputs(config, rng)
    expected = through_cache(
        small_model(config, device, torch.float32),
        inputs,
        CASES["first chunk"],
        0,
        KVCache(config, device=device),
    )
    bare = replace(config, chunk=replace(config.chunk, sink_latents=0, motion_latents=0))
    inputs.clean |= {role: inputs.clean[role][:, :0] for role in ("sink", "motion")}
    results = through_cache(
        small_model(bare, device, torch.float32),
        inputs,
        CASES["later chunk"],
        0,
        KVCache(bare, device=device),
    )
    for out, reference in zip(results, expected):
        assert_close(out, reference, torch.float32, GROWTH)


def test_rows_at_different_points_equal_rows_alone(device, rng):
    config = small_preset()
    model, inputs = small_model(config, device, torch.float32), Inputs(config, rng, batch=2)
    modulation = model.modulation(torch.tensor(SIGMAS, device=device))
    cache = KVCache(config, batch=2, device=device)
    levels, roles = (0, 2), (CASES["first chunk"], CASES["later chunk"])
    for role in ("reference", "sink", "motion"):
        for row in range(2):
            cache.set_valid(row, **{role: role in roles[row]})
        due = torch.tensor([role in roles[row] for row in range(2)], device=device)
        model.commit(role, inputs.clean[role].to(cache.k[0]), modulation, cache, due)
    step = torch.tensor(levels, dtype=torch.int32, device=device)
    results = model.step(*inputs.noisy(device, torch.float32), step, modulation, cache)
    for row in range(2):
        for out, reference in zip(results, dense(model, inputs, roles[row], SIGMAS[levels[row]], row)):
            assert_close(out[row], reference, torch.float32, GROWTH)


def test_commit_leaves_rows_that_are_not_due_bit_for_bit(device, rng):
    config = small_preset()
    model, inputs = small_model(config, device, torch.float32), Inputs(config, rng, batch=2)
    modulation = model.modulation(torch.tensor(SIGMAS, device=device))
    cache = KVCache(config, batch=2, device=device)
    for buffer in (*cache.k, *cache.v):
        buffer.normal_()
    before = [buffer.clone() for buffer in (*cache.k, *cache.v)]
    due = torch.tensor([False, True], device=device)
    model.commit("motion", inputs.clean["motion"].to(device, torch.float32), modulation, cache, due)
    start, length = cache.regions["motion"]
    for old, new in zip(before, (*cache.k, *cache.v)):
        assert torch.equal(old[0], new[0])
        changed = (old[1] != new[1]).flatten(1).any(1).nonzero().flatten().tolist()
        assert changed == list(range(start, start + length))


def test_committing_one_row_alone_equals_committing_it_in_the_batch(device, rng):
    config = small_preset()
    model, inputs = small_model(config, device, torch.float32), Inputs(config, rng, batch=2)
    modulation = model.modulation(torch.tensor(SIGMAS, device=device))
    latents = inputs.clean["reference"].to(device, torch.float32)
    together, apart = (KVCache(config, batch=2, device=device) for _ in range(2))
    model.commit("reference", latents, modulation, together)
    for row in range(2):
        model.commit("reference", latents[row : row + 1], modulation, apart.row(row))
    for one, other in zip((*together.k, *together.v), (*apart.k, *apart.v)):
        assert_close(one, other, torch.float32, GROWTH)


def test_nothing_reads_a_device_value_on_the_host(rng):
    # Meta tensors have no values: whatever asked for one, or for a shape that depends on one, would raise.
    config = small_preset()
    model = JointDiT(config).to("meta").requires_grad_(False)
    inputs, cache = Inputs(config, rng, batch=2), KVCache(config, batch=2, device="meta")
    modulation = model.modulation(torch.empty(3, device="meta"))
    due, step = (torch.empty(2, dtype=dtype, device="meta") for dtype in (torch.bool, torch.int32))
    for role, latents in inputs.clean.items():
        model.commit(role, latents.to("meta"), modulation, cache, due)
    v_video, v_audio = model.step(*inputs.noisy("meta", torch.float32), step, modulation, cache)
    assert (v_video.shape, v_audio.shape) == (inputs.video.shape, inputs.audio.shape)
    assert v_video.is_contiguous()
    assert v_audio.is_contiguous()


def test_triton_and_pytorch_give_the_same_step(device, rng):
    config = small_preset()
    inputs, results = Inputs(config, rng), []
    for backend in ("triton", "torch"):
        model = small_model(config, device, torch.float32, backend)
        results.append(through_cache(model, inputs, CASES["later chunk"], 1, KVCache(config, device=device)))
    for out, reference in zip(*results):
        # Both are off.
        assert_close(out, reference, torch.float32, 2 * GROWTH)


def test_modulation_keeps_wide_precision_under_narrow_weights(device):
    config = small_preset()
    model = small_model(config, device, torch.bfloat16)
    wide = small_model(config, device, torch.bfloat16).double()
    sigmas = torch.tensor(SIGMAS, device=device)
    modulation = model.modulation(sigmas)
    assert modulation.blocks.shape == (LAYERS, 6, len(SIGMAS) + 1, config.dit.dim)
    assert modulation.final.shape == (2, len(SIGMAS) + 1, config.dit.dim)
    # The fastest of the angles reaches 1000 radians, half an epsilon of which is 500 epsilons of its sine.
    assert_close(modulation.blocks, wide.modulation(sigmas).blocks, torch.float32, 500.0)
    assert_close(modulation.final, wide.modulation(sigmas).final, torch.float32, 500.0)


def test_random_weights_keep_activations_at_scale(device, rng, record_property):
    config = preset("tiny")
    torch.manual_seed(0)
    model = JointDiT(config).to(device).requires_grad_(False)
    inputs, cache = Inputs(config, rng), KVCache(config, device=device)
    scales: list[float] = []
    for block in model.blocks:
        # Queries, of four dimensions, are what the last block of a commit leaves: it only writes.
        block.register_forward_hook(
            lambda _, given, x: scales.append(x.std().item()) if x.dim() == 3 else None
        )
    v_video, v_audio = through_cache(model, inputs, CASES["later chunk"], 0, cache)
    record_property("scales", scales)
    assert len(scales) == 4 * config.dit.layers - 3
    assert all(0.5 < scale < 2 for scale in scales)
    assert 0.02 < v_video.std() < 1
    assert 0.02 < v_audio.std() < 1


def test_gradients_are_those_of_the_function(device, rng):
    config = small_preset()
    model = small_model(config, device, torch.float64, "torch").requires_grad_(True)
    inputs = Inputs(config, rng)
    cache = KVCache(config, device=device, dtype=torch.float64)
    parameters = dict(model.named_parameters())
    direction = {
        name: torch.randn(p.shape, generator=rng, dtype=torch.float64).to(device) * p.detach().std()
        for name, p in parameters.items()
    }
    weight = torch.randn(inputs.video.shape, generator=rng, dtype=torch.float64).to(device)

    def loss() -> torch.Tensor:
        cache.detach_()
        v_video, v_audio = through_cache(model, inputs, CASES["later chunk"], 1, cache)
        return (v_video * weight).sum() + v_audio.sum()

    # Twice, as training does: the second pass must not reach back into the first.
    loss().backward()
    model.zero_grad()
    loss().backward()
    slope = sum((parameters[name].grad * step).sum() for name, step in direction.items())
    values, size = [], 1e-6
    with torch.no_grad():
        for sign in (1, -2):
            for name, parameter in parameters.items():
                parameter.add_(direction[name], alpha=sign * size)
            values.append(loss())
    # A central difference is off by its size squared, and by the values' rounding over its size.
    assert slope.item() == pytest.approx(((values[0] - values[1]) / (2 * size)).item(), rel=1e-6)
    assert all(p.grad is not None and p.grad.any() for p in parameters.values())


def arguments(config: Preset, rng: torch.Generator) -> dict[str, object]:
    inputs = Inputs(config, rng)
    video, audio, c_a = inputs.noisy(torch.device("cpu"), torch.float32)
    return {
        "x_video": video,
        "x_audio": audio,
        "c_a": c_a,
        "step": torch.zeros(1, dtype=torch.int32),
        "modulation": JointDiT(config).modulation(torch.tensor(SIGMAS)),
        "cache": KVCache(config),
    }


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("x_video", torch.zeros(1, 2, 16, 4, 6), r"x_video must be .* = \[1, 3, 16, 4, 6\], got \[1, 2"),
        ("x_audio", torch.zeros(1, 12, 31), r"x_audio must be .* = \[1, 12, 32\]"),
        ("c_a", torch.zeros(1, 11, 256), r"c_a must be .* = \[1, 12, 256\]"),
        ("step", torch.zeros(2, dtype=torch.int32), r"step must be \[batch\] = \[1\]"),
        ("step", torch.zeros(1, dtype=torch.int64), "step must be int32, got int64"),
        ("cache", KVCache(small_preset(), dtype=torch.bfloat16), "cache.k must be float32, got bfloat16"),
        ("cache", KVCache(small_preset(128)), "cache must be built for the sizes of preset 'tiny'"),
        ("cache", KVCache(small_preset(), batch=2), r"x_video must be .* = \[2, 3"),
    ],
)
def test_a_step_that_does_not_fit_is_refused(rng, name, wrong, message):
    config = small_preset()
    given = arguments(config, rng) | {name: wrong}
    with pytest.raises(KernelArgumentError, match=message):
        JointDiT(config).step(**given)


@pytest.mark.parametrize(
    ("role", "frames", "due", "message"),
    [
        ("chunk", 3, None, r"role must be 'reference' or 'sink' or 'motion', got 'chunk'; use step"),
        ("motion", 3, None, r"latents must be .* = \[1, 2, 16, 4, 6\], got \[1, 3"),
        ("motion", 2, torch.ones(2, dtype=torch.bool), r"due must be \[batch\] = \[1\]"),
        ("motion", 2, torch.ones(1), "due must be bool, got float32"),
    ],
)
def test_a_commit_that_does_not_fit_is_refused(rng, role, frames, due, message):
    config = small_preset()
    given = arguments(config, rng)
    latents = torch.zeros(1, frames, 16, 4, 6)
    with pytest.raises(KernelArgumentError, match=message):
        JointDiT(config).commit(role, latents, given["modulation"], given["cache"], due)


@pytest.mark.parametrize("sigmas", [torch.zeros(1, 2), torch.zeros(2, dtype=torch.int32)])
def test_noise_levels_that_are_no_vector_of_floats_are_refused(sigmas):
    with pytest.raises(KernelArgumentError, match="sigmas must be"):
        JointDiT(small_preset()).modulation(sigmas)
