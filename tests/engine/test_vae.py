"""The video VAE is the Wan2.2 network, and a stream decodes the same however it is cut and batched."""

import json
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from diffusers import AutoencoderKLWan
from safetensors.torch import load_file, save_file

from streamchar.checkpoint import CheckpointError
from streamchar.codecs.vae import Vae
from streamchar.config import PRESETS, ConfigError, VaeConfig, preset
from streamchar.kernels import pack_frames
from tests.closeness import assert_close

WEIGHTS = "diffusion_pytorch_model.safetensors"
MEAN, STD = (0.1, -0.2, 0.3, 0.4), (0.5, 1.0, 1.5, 2.0)
LIKE_5B = VaeConfig(8, 16, 4, (1, 2, 4, 4), 1, (False, True, True), 2, MEAN, STD)
LIKE_TINY = VaeConfig(16, 8, 4, (1, 2, 2), 2, (True, True), 2, MEAN, STD)
# The last level narrows; the finest halves time, so that its shortcut fills two frames from different
# channels; pixels are not folded.
ODD = VaeConfig(8, 8, 4, (1, 2, 4, 2), 1, (True, False, True), 1, MEAN, STD)
SMALL = VaeConfig(8, 8, 4, (1, 1), 1, (True,), 2, MEAN, STD)
CELLS = (3, 2)


def foreign(config: VaeConfig) -> AutoencoderKLWan:
    """Build the same network in diffusers."""
    return AutoencoderKLWan(
        base_dim=config.base_dim,
        decoder_base_dim=config.decoder_base_dim,
        z_dim=config.z_dim,
        dim_mult=list(config.dim_mult),
        num_res_blocks=config.num_res_blocks,
        temperal_downsample=list(config.temporal_downsample),
        latents_mean=list(config.latents_mean),
        latents_std=list(config.latents_std),
        is_residual=True,
        in_channels=config.patch_channels,
        out_channels=config.patch_channels,
        patch_size=config.patch_size,
        scale_factor_spatial=config.spatial_stride,
    ).eval()


def save_foreign(config, rng, directory, **options):
    """Save a diffusers VAE whose every parameter, norms' gains and biases too, is random."""
    model = foreign(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.03 * torch.randn(parameter.shape, generator=rng))
    model.save_pretrained(directory, **options)
    return model


def statistics(config):
    return (torch.tensor(values)[:, None, None] for values in (config.latents_mean, config.latents_std))


def growth(vae):
    """Epsilons of a whole pass.

    A convolution over K = 27 * channels terms rounds K times; roundings are independent, so their squares add
    up over the terms and over the convolutions, and the norms between them keep the scale.
    """
    kernels = [module.weight for module in vae.modules() if getattr(module, "weight", None) is not None]
    return sum(weight[0].numel() for weight in kernels) ** 0.5


@pytest.fixture(autouse=True)
def _no_tf32(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture
def vae(device):
    return build(LIKE_TINY, device)


def build(config, device):
    vae = Vae(config, device, torch.float32).requires_grad_(False)
    vae.reset_parameters(torch.Generator(device).manual_seed(7))
    return vae


def draw(rng, device, *shape):
    return torch.randn(shape, generator=rng).to(device)


def stream(vae, latents, cuts=()):
    """Prime with the first latent and decode the others, cut before each index of ``cuts``."""
    state = vae.new_state(latents.shape[0], latents.shape[3:])
    frames = [vae.prime(state, latents[:, 0])[:, None]]
    edges = [1, *cuts, latents.shape[1]]
    frames += [vae.decode(state, latents[:, a:b]) for a, b in pairwise(edges)]
    return torch.cat(frames, 1)


@pytest.mark.parametrize("config", [LIKE_5B, LIKE_TINY, ODD], ids=["like 5b", "like tiny", "odd"])
def test_a_diffusers_checkpoint_gives_the_same_pixels_and_latents(config, rng, device, tmp_path):
    theirs = save_foreign(config, rng, tmp_path)
    ours = Vae.from_diffusers(tmp_path, device, torch.float32).requires_grad_(False)
    assert ours.config == config
    mean, std = statistics(config)
    latents = torch.randn(2, 4, 4, *CELLS, generator=rng)
    with torch.no_grad():
        pixels = theirs.decode((latents * std + mean).transpose(1, 2)).sample.transpose(1, 2)
    assert pixels.abs().lt(1).float().mean() > 0.5, "too many pixels are clamped to tell networks apart"
    assert_close(stream(ours, latents.to(device)), pixels, torch.float32, growth(ours.decoder))

    space = config.spatial_stride
    frames = 2 * torch.rand(2, 9, 3, CELLS[0] * space, CELLS[1] * space, generator=rng) - 1
    with torch.no_grad():
        posterior = theirs.encode(frames.transpose(1, 2)).latent_dist.mode().transpose(1, 2)
    expected = (posterior - mean) / std
    # Taking the mean off cancels; its size beside the result's adds to the error.
    bound = growth(ours.encoder) * (1 + mean.norm() / std.norm()).item()
    assert_close(ours.encode(frames.to(device)), expected, torch.float32, bound)
    assert_close(ours.encode_image(frames[:, 0].to(device)), expected[:, 0], torch.float32, bound)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_has_the_parameters_of_diffusers(name):
    config = preset(name).vae
    with torch.device("meta"):
        theirs = foreign(config)
    shapes = {name: value.shape for name, value in theirs.state_dict().items()}
    assert {name: value.shape for name, value in Vae(config, "meta").state_dict().items()} == shapes


def test_a_sharded_checkpoint_loads(rng, device, tmp_path):
    theirs = save_foreign(SMALL, rng, tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    ours = Vae.from_diffusers(tmp_path, device, torch.bfloat16).state_dict()
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(ours[name].cpu(), value.bfloat16(), rtol=0, atol=0)


def test_a_stream_gives_the_same_bits_however_it_is_cut(vae, rng, device):
    latents = draw(rng, device, 2, 7, 4, *CELLS)
    whole = stream(vae, latents)
    assert whole.shape == (2, 25, 3, 24, 16)
    for cuts in [(2, 3, 4, 5, 6), (3,), (2, 6)]:
        assert torch.equal(stream(vae, latents, cuts), whole)


def test_a_stream_equals_the_whole_clip_in_one_pass(rng):
    # decode_clip keeps no state: its past is zeros before the clip. In float64 no seam hides in rounding.
    vae = build(LIKE_5B, "cpu").double()
    latents = draw(rng, "cpu", 2, 5, 4, *CELLS).double()
    clip = vae.decode_clip(latents).clamp(-1, 1)
    assert_close(stream(vae, latents), clip, torch.float64, growth(vae.decoder))


def test_rows_do_not_see_each_other(vae, rng, device):
    latents = draw(rng, device, 3, 4, 4, *CELLS)
    before = stream(vae, latents)
    latents[1] = torch.nan
    after = stream(vae, latents)
    assert torch.equal(after[[0, 2]], before[[0, 2]])
    assert after[1].isnan().all()


def test_one_row_is_opened_anew_while_the_others_go_on(vae, rng, device):
    latents = draw(rng, device, 2, 5, 4, *CELLS)
    undisturbed = stream(vae, latents)
    state = vae.new_state(2, CELLS)
    vae.prime(state, latents[:, 0])
    vae.decode(state, latents[:, 1:3])
    frame = vae.prime(state.row(1), latents[1:, 0])
    assert_close(frame, undisturbed[1:, 0], torch.float32, growth(vae.decoder))
    # Row 0 is at its latent 3, row 1 at its latent 1 again.
    frames = vae.decode(state, torch.stack((latents[0, 3:5], latents[1, 1:3])))
    assert torch.equal(frames[0], undisturbed[0, 9:])
    assert_close(frames[1], undisturbed[1, 1:9], torch.float32, growth(vae.decoder))


def test_priming_forgets_whatever_came_before(vae, rng, device):
    latents = draw(rng, device, 1, 3, 4, *CELLS)
    state = vae.new_state(1, CELLS)
    for buffer in state.past:
        buffer.fill_(torch.nan)
    frames = torch.cat((vae.prime(state, latents[:, 0])[:, None], vae.decode(state, latents[:, 1:])), 1)
    assert torch.equal(frames, stream(vae, latents))


def test_reset_zeroes_one_row_or_all(vae):
    state = vae.new_state(2, CELLS)
    for buffer in state.past:
        buffer.fill_(1.0)
    state.reset(0)
    assert all(not buffer[0].any() and buffer[1].all() for buffer in state.past)
    state.reset()
    assert not any(buffer.any() for buffer in state.past)


def test_the_state_never_moves_or_grows(vae, rng, device):
    state = vae.new_state(2, CELLS)
    addresses = [buffer.data_ptr() for buffer in state.past]
    vae.prime(state, draw(rng, device, 2, 4, *CELLS))
    for _ in range(3):
        vae.decode(state, draw(rng, device, 2, 2, 4, *CELLS))
    assert [buffer.data_ptr() for buffer in state.past] == addresses
    assert not any(buffer.requires_grad for buffer in state.past)
    row = state.row(1)
    assert all(a.data_ptr() == b[1].data_ptr() for a, b in zip(row.past, state.past))


def test_decoding_compiles_to_one_graph_that_updates_the_state(rng, device):
    vae = build(SMALL, device)
    latents = draw(rng, device, 1, 4, 4, *CELLS)
    step = torch.compile(vae.decode, fullgraph=True, backend="aot_eager")
    state = vae.new_state(1, CELLS)
    vae.prime(state, latents[:, 0])
    frames = torch.cat([step(state, latents[:, i : i + 1]) for i in (1, 2, 3)], 1)
    assert_close(frames, stream(vae, latents)[:, 1:], torch.float32, growth(vae.decoder))


@pytest.mark.parametrize("name", PRESETS)
def test_no_value_is_read_back_and_sizes_are_the_presets(name):
    # Tensors on the meta device have no values: anything that decides by one raises.
    config = preset(name)
    vae = Vae(config.vae, "meta", torch.bfloat16)
    state = vae.new_state(1, config.picture.latent_size)
    size = (3, config.picture.height, config.picture.width)
    image = torch.empty(1, *size, device="meta")
    latent = vae.encode_image(image)
    assert latent.shape == (1, config.picture.channels, *config.picture.latent_size)
    assert vae.prime(state, latent).shape == (1, *size)
    latents = latent[:, None].expand(-1, config.chunk.latent_frames, -1, -1, -1)
    assert vae.decode(state, latents).shape == (1, config.frames, *size)


def test_decoded_frames_are_packed_without_a_copy(vae, rng, device):
    state = vae.new_state(2, CELLS)
    vae.prime(state, draw(rng, device, 2, 4, *CELLS))
    frames = vae.decode(state, draw(rng, device, 2, 2, 4, *CELLS))
    flat = frames.flatten(0, 1)
    assert flat.data_ptr() == frames.data_ptr()
    assert frames.abs().max() <= 1
    rgb, _ = pack_frames(flat)
    assert rgb.shape == (16, 24, 16, 3)


def test_encoding_looks_only_back(vae, rng, device):
    frames = 2 * torch.rand(1, 9, 3, 24, 16, generator=rng).to(device) - 1
    latents = vae.encode(frames)
    assert latents.shape == (1, 3, 4, *CELLS)
    assert_close(vae.encode_image(frames[:, 0]), latents[:, 0], torch.float32, growth(vae.encoder))
    frames[:, 5:] = torch.nan
    assert torch.equal(vae.encode(frames)[:, :2], latents[:, :2])


def test_latents_are_normalised(rng, device):
    plain = build(replace(LIKE_TINY, latents_mean=(0.0,) * 4, latents_std=(1.0,) * 4), device)
    scaled = build(LIKE_TINY, device)
    mean, std = (value.to(device) for value in statistics(LIKE_TINY))
    image = 2 * torch.rand(1, 3, 24, 16, generator=rng).to(device) - 1
    assert torch.equal(scaled.encode_image(image), (plain.encode_image(image) - mean) / std)
    latents = draw(rng, device, 1, 3, 4, *CELLS)
    assert torch.equal(stream(scaled, latents), stream(plain, latents * std + mean))


def test_a_clip_trains_every_parameter(rng, device):
    vae = build(SMALL, device).requires_grad_(True)
    frames = 2 * torch.rand(1, 5, 3, 12, 8, generator=rng).to(device) - 1
    vae.decode_clip(vae.encode(frames)).square().sum().backward()
    unused = [name for name, value in vae.named_parameters() if value.grad is None or not value.grad.any()]
    assert not unused


@pytest.mark.parametrize("way", ["from diffusers", "cast", "assigned onto meta"])
def test_weights_are_read_where_they_lie_however_they_came(way, rng, device, tmp_path):
    save_foreign(SMALL, rng, tmp_path)
    vae = Vae.from_diffusers(tmp_path, device)
    if way == "cast":
        vae = vae.to(torch.bfloat16)
    elif way == "assigned onto meta":
        weights = {name: weight.contiguous() for name, weight in vae.state_dict().items()}
        loaded = Vae(SMALL, "meta")
        loaded.load_state_dict(weights, assign=True)
        latents = draw(rng, device, 1, 2, 4, *CELLS)
        assert torch.equal(stream(loaded, latents), stream(vae, latents))
        vae = loaded
    for name, weight in vae.named_parameters():
        if weight.dim() == 5:
            stacked = weight.transpose(1, 2).flatten(1, 2)
            assert stacked.data_ptr() == weight.data_ptr(), name
            assert stacked.is_contiguous(memory_format=torch.channels_last), name


def test_the_tiny_preset_is_small_and_its_random_weights_give_pictures(rng, device):
    config = preset("tiny").vae
    vae = build(config, device)
    assert sum(parameter.numel() for parameter in vae.parameters()) < 2.5e6
    frames = stream(vae, draw(rng, device, 1, 3, config.z_dim, 4, 4))
    assert 0.25 < frames.std() < 1
    assert frames.abs().eq(1).float().mean() < 0.25
    assert 0.25 < vae.encode(draw(rng, device, 1, 5, 3, 32, 32)).std() < 2


def test_bf16_follows_fp32(rng, device):
    vae = build(LIKE_TINY, device)
    latents = draw(rng, device, 1, 3, 4, *CELLS)
    exact = stream(vae, latents)
    # Sums are kept in fp32; a layer's results (norm, activation, convolution, residual) each round once, by
    # half an epsilon at most, and the squares of independent roundings add up over the layers.
    layers = sum(hasattr(module, "weight") for module in vae.decoder.modules())
    assert_close(stream(vae.bfloat16(), latents), exact, torch.bfloat16, 0.5 * (4 * layers) ** 0.5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda vae, state: vae.decode(state, torch.zeros(2, 1, 3, *CELLS)), "latents must have shape"),
        (lambda vae, state: vae.decode(state, torch.zeros(1, 1, 4, *CELLS)), "[2, any, 4, 3, 2]"),
        (lambda vae, state: vae.decode(state, torch.zeros(2, 0, 4, *CELLS)), "got [2, 0, 4, 3, 2]"),
        (lambda vae, state: vae.prime(state, torch.zeros(2, 4, 3, 3)), "first_latent must have shape"),
        (lambda vae, state: vae.decode_clip(torch.zeros(2, 4, 3, 2)), "latents must have shape"),
        (lambda vae, state: vae.encode_image(torch.zeros(1, 1, 24, 16)), "images must have shape"),
        (lambda vae, state: vae.encode_image(torch.zeros(1, 3, 25, 16)), "multiples of 8, got 25 x 16"),
        (lambda vae, state: vae.encode(torch.zeros(1, 4, 3, 24, 16)), "1 + 4 n frames, got 4"),
        (lambda vae, state: vae.encode(torch.zeros(1, 3, 5, 24, 16)), "frames must have shape"),
        (lambda vae, state: vae.new_state(0, CELLS), "batch and latent_size must be positive"),
        (lambda vae, state: state.row(2), "index must be between 0 and 1, got 2"),
        (lambda vae, state: state.reset(-1), "index must be between 0 and 1, got -1"),
    ],
)
def test_a_tensor_of_the_wrong_shape_is_refused(call, message):
    vae = build(LIKE_TINY, "cpu")
    with pytest.raises(ValueError, match=r".") as error:
        call(vae, vae.new_state(2, CELLS))
    assert message in str(error.value)


def edit_config(directory, **changes):
    file = directory / "config.json"
    raw = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({name: value for name, value in raw.items() if value != "removed"}))


def edit_weights(directory, change):
    tensors = load_file(directory / WEIGHTS)
    change(tensors)
    save_file(tensors, directory / WEIGHTS)


def _truncate(directory):
    file = directory / WEIGHTS
    file.write_bytes(file.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda d: (d / "config.json").unlink(), "must be the config.json of an AutoencoderKLWan"),
        (lambda d: (d / "config.json").write_text("{"), "must be the config.json of an AutoencoderKLWan"),
        (lambda d: (d / "config.json").write_text("[]"), "must hold an object, got list"),
        (lambda d: edit_config(d, is_residual=False), "is_residual must be True, got False"),
        (lambda d: edit_config(d, _class_name="AutoencoderKL"), "_class_name must be 'AutoencoderKLWan'"),
        (lambda d: edit_config(d, out_channels=3), "out_channels must be 12, got 3"),
        (lambda d: edit_config(d, z_dim="removed"), "must have 'z_dim'"),
        (lambda d: edit_config(d, dim_mult=None), "must be the config.json of an AutoencoderKLWan"),
        (lambda d: edit_config(d, latents_std=[1.0]), "latents_std must be z_dim = 4 numbers, got 1"),
        (lambda d: (d / WEIGHTS).unlink(), "must hold complete safetensors files"),
        (_truncate, "must hold complete safetensors files"),
        (
            lambda d: edit_weights(d, lambda t: t.pop("quant_conv.bias")),
            "tensor 'quant_conv.bias' is missing",
        ),
        (lambda d: edit_weights(d, lambda t: t.update(x=torch.zeros(1))), "tensor 'x' is unexpected"),
        (
            lambda d: edit_weights(d, lambda t: t.update({"quant_conv.bias": torch.zeros(3)})),
            "tensor 'quant_conv.bias' must have shape [8], got [3]",
        ),
        (
            lambda d: edit_weights(d, lambda t: t["quant_conv.bias"].fill_(torch.inf)),
            "tensor 'quant_conv.bias' must be finite",
        ),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(spoil, message, rng, tmp_path):
    save_foreign(SMALL, rng, tmp_path)
    spoil(tmp_path)
    with pytest.raises(CheckpointError) as error:
        Vae.from_diffusers(tmp_path)
    assert message in str(error.value)
    assert str(error.value).count(str(tmp_path)) <= 2  # said once, and once by the system


@pytest.mark.parametrize(
    ("build", "argument"),
    [
        (lambda: replace(SMALL, z_dim=0), "z_dim"),
        (lambda: replace(SMALL, dim_mult=()), "dim_mult"),
        (lambda: replace(SMALL, dim_mult=(1, 2)), "dim_mult"),
        (lambda: replace(SMALL, dim_mult=(3, 3)), "dim_mult"),
        (lambda: replace(SMALL, temporal_downsample=(True, True)), "temporal_downsample"),
        (lambda: replace(SMALL, latents_mean=(0.0,)), "latents_mean"),
        (lambda: replace(SMALL, latents_std=(1.0, 0.0, 1.0, 1.0)), "latents_std"),
        (lambda: replace(preset("tiny"), vae=replace(SMALL, z_dim=4)), "vae.z_dim"),
        (
            lambda: replace(preset("tiny"), vae=replace(preset("tiny").vae, patch_size=8)),
            "vae.spatial_stride",
        ),
    ],
)
def test_an_impossible_vae_is_refused(build, argument):
    with pytest.raises(ConfigError) as error:
        build()
    assert error.value.argument == argument
