"""The orchestrator is the Qwen2 that transformers knows, whether its sequence is run whole or streamed."""

import json
from dataclasses import fields, replace

import pytest
import torch
from safetensors.torch import save_file
from torch.fx.experimental.proxy_tensor import make_fx

from streamchar.checkpoint import CheckpointError
from streamchar.config import OrchestratorConfig, preset
from streamchar.kernels import KernelArgumentError
from streamchar.model.orchestrator import Orchestrator, OrchestratorState, append_history
from streamchar.model.packing import Prefix
from streamchar.model.qwen2 import read_qwen2_config
from streamchar.numerics import relative_error
from tests.closeness import assert_close
from tests.engine.small import one_pass

CONFIG = OrchestratorConfig(
    dim=64,
    layers=3,
    heads=4,
    kv_heads=2,
    head_dim=16,
    ffn=96,
    vocabulary=97,
    history_seconds=0.5,
    transcript_tokens=10,
    rope_theta=10000.0,
)
CHANNELS, CHUNK = 6, 5
HISTORY = 12
TEXT = CONFIG.transcript_tokens
PREFIX = TEXT + HISTORY
# Lengths a row: all used, parts used, only text, only history, nothing at all.
LENGTHS = ([TEXT, 4, 7, 0, 0], [HISTORY, 9, 0, 5, 0])
# A layer rounds about ten times in a row (two norms, q/k/v, RoPE, logits, softmax, values, o, FFN's three);
# sums of n terms add sqrt(n) roundings of size eps / sqrt(n) relative to the result, so each counts once.
GROWTH = 10 * CONFIG.layers


def build(dtype, device, rng, config=CONFIG):
    orchestrator = Orchestrator(config, CHANNELS, CHUNK)
    orchestrator.reset_parameters(rng)
    with torch.no_grad():
        for name, parameter in orchestrator.named_parameters():
            if name.endswith("bias") or "norm" in name:  # zeros and ones would hide a forgotten one
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=rng))
    return orchestrator.to(device=device, dtype=dtype)


def draw(rng, device, dtype=torch.float32, lengths=LENGTHS):
    """Draw a chunk's inputs, poisoned wherever a length says that nothing lies."""
    spoken, heard = lengths
    batch = len(spoken)
    ids = torch.randint(0, CONFIG.vocabulary, (batch, TEXT), generator=rng)
    history = torch.randn(batch, HISTORY, CHANNELS, generator=rng, dtype=dtype)
    for row in range(batch):
        ids[row, spoken[row] :] = -(10**9)
        history[row, heard[row] :] = float("nan")
    x_audio = torch.randn(batch, CHUNK, CHANNELS, generator=rng, dtype=dtype)
    sigma = torch.rand(batch, generator=rng)
    spoken, heard = (torch.tensor(values, dtype=torch.int32) for values in lengths)
    return tuple(tensor.to(device) for tensor in (ids, spoken, history, heard, x_audio, sigma))


def poisoned_state(orchestrator, batch):
    state = orchestrator.new_state(batch)
    for field in fields(OrchestratorState):
        tensor = getattr(state, field.name)
        tensor.fill_(float("nan") if tensor.is_floating_point() else -7)
    return state


def streamed(orchestrator, inputs):
    state = poisoned_state(orchestrator, inputs[0].shape[0])
    orchestrator.prefill(state, Prefix(*inputs[:4]))
    return orchestrator.step(state, *inputs[4:])


@pytest.fixture(scope="module")
def peer(tmp_path_factory):
    """Return a random Qwen2 of transformers and the directory it was saved to."""
    transformers = pytest.importorskip("transformers")
    config = transformers.Qwen2Config(
        vocab_size=CONFIG.vocabulary,
        hidden_size=CONFIG.dim,
        intermediate_size=CONFIG.ffn,
        num_hidden_layers=CONFIG.layers,
        num_attention_heads=CONFIG.heads,
        num_key_value_heads=CONFIG.kv_heads,
        rms_norm_eps=CONFIG.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": CONFIG.rope_theta},
        initializer_range=0.2,
        tie_word_embeddings=True,
        attn_implementation="eager",
    )
    torch.manual_seed(5)
    model = transformers.Qwen2ForCausalLM(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "norm" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    folder = tmp_path_factory.mktemp("qwen2")
    model.save_pretrained(folder / "lm")
    model.model.save_pretrained(folder / "shards", max_shard_size="60KB")
    return model.model, folder


def from_peer(folder):
    sizes = CHANNELS, CHUNK, CONFIG.history_seconds, CONFIG.transcript_tokens
    return Orchestrator.from_qwen2(folder, *sizes, tokenizer="bytes")


@pytest.mark.parametrize("layout", ["lm", "shards"])
def test_a_checkpoint_of_transformers_has_the_same_hidden_states(peer, layout, rng):
    model, folder = peer
    assert ((folder / layout / "model.safetensors.index.json").exists()) == (layout == "shards")
    orchestrator = from_peer(folder / layout)
    assert orchestrator.config == CONFIG
    inputs = draw(rng, torch.device("cpu"), lengths=([TEXT] * 2, [HISTORY] * 2))
    seen = []
    orchestrator.model.register_forward_hook(lambda module, given, states: seen.append(states))
    with torch.no_grad():
        one_pass(orchestrator, *inputs)
        (states,) = seen
        ours = states[:, :TEXT]
        theirs = model(input_ids=inputs[0]).last_hidden_state
    # Both sides round in fp32.
    assert_close(ours, theirs, torch.float32, growth=2 * GROWTH)


def test_the_streamed_chunk_is_transformers_own_pass_over_the_sequence_without_gaps(peer, rng):
    model, folder = peer
    orchestrator = from_peer(folder / "lm")
    ids, spoken, history, heard, x_audio, sigma = inputs = draw(rng, torch.device("cpu"))
    conditions, _ = streamed(orchestrator, inputs)
    for row in range(len(spoken)):
        text = model.embed_tokens(ids[row, : spoken[row]])
        clean = orchestrator._embed_audio(history[row : row + 1, : heard[row]], torch.zeros(1))
        noisy = orchestrator._embed_audio(x_audio[row : row + 1], sigma[row : row + 1])
        packed = torch.cat([text[None], clean, noisy], dim=1)
        with torch.no_grad():
            theirs = model(inputs_embeds=packed).last_hidden_state[0, -CHUNK:]
        assert_close(conditions[row], theirs, torch.float32, growth=2 * GROWTH)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_streamed_equals_one_pass_for_ragged_rows(dtype, device, rng):
    orchestrator = build(dtype, device, rng)
    inputs = draw(rng, device, dtype)
    conditions, position = streamed(orchestrator, inputs)
    with torch.no_grad():
        whole, whole_position = one_pass(orchestrator, *inputs)
    assert conditions.shape == (len(LENGTHS[0]), CHUNK, CONFIG.dim)
    assert_close(conditions, whole, dtype, growth=2 * GROWTH)
    assert_close(position, whole_position, dtype, growth=2 * GROWTH)
    limit = torch.tensor(LENGTHS[0], device=device)[:, None]
    assert ((position >= 0) & (position <= limit)).all()


def test_every_step_of_a_chunk_reads_the_same_prefix(device, rng):
    orchestrator = build(torch.float64, device, rng)
    inputs = draw(rng, device, torch.float64)
    state = poisoned_state(orchestrator, len(LENGTHS[0]))
    orchestrator.prefill(state, Prefix(*inputs[:4]))
    prefix = state.k[:, :, :PREFIX].clone(), state.v[:, :, :PREFIX].clone()
    for sigma in (1.0, 0.9375, 0.625):
        x_audio = torch.randn(inputs[4].shape, generator=rng, dtype=torch.float64).to(device)
        level = torch.full_like(inputs[5], sigma)
        conditions, _ = orchestrator.step(state, x_audio, level)
        with torch.no_grad():
            whole, _ = one_pass(orchestrator, *inputs[:4], x_audio, level)
        assert_close(conditions, whole, torch.float64, growth=2 * GROWTH)
    assert torch.equal(state.k[:, :, :PREFIX], prefix[0])
    assert torch.equal(state.v[:, :, :PREFIX], prefix[1])


def test_a_condition_sees_no_later_audio_and_the_whole_prefix(device, rng):
    orchestrator = build(torch.float64, device, rng)
    inputs = draw(rng, device, torch.float64, ([TEXT], [HISTORY]))
    before, _ = streamed(orchestrator, inputs)
    later = inputs[4].clone()
    later[:, 3] += 1.0
    after, _ = streamed(orchestrator, (*inputs[:4], later, inputs[5]))
    assert torch.equal(after[:, :3], before[:, :3])
    assert relative_error(after[:, 3:], before[:, 3:]) > 1e-3
    for index, place in ((0, 0), (0, TEXT - 1), (2, 0), (2, HISTORY - 1)):
        changed = [tensor.clone() for tensor in inputs]
        changed[index][:, place] = (changed[index][:, place] + 1) % CONFIG.vocabulary
        after, _ = streamed(orchestrator, tuple(changed))
        assert relative_error(after, before) > 1e-4, (index, place)


def test_rows_do_not_see_each_other(device, rng):
    orchestrator = build(torch.float64, device, rng)
    inputs = draw(rng, device, torch.float64)
    together, _ = streamed(orchestrator, inputs)
    for row in range(len(LENGTHS[0])):
        alone, _ = streamed(orchestrator, tuple(tensor[row : row + 1] for tensor in inputs))
        assert_close(together[row : row + 1], alone, torch.float64, growth=2 * GROWTH)


def test_the_noise_level_matters(device, rng):
    orchestrator = build(torch.float32, device, rng)
    inputs = draw(rng, device)
    first, _ = streamed(orchestrator, inputs)
    second, _ = streamed(orchestrator, (*inputs[:5], 1 - inputs[5]))
    assert relative_error(second, first) > 1e-2


def test_a_recorded_chunk_replays_with_changed_tensors_at_the_same_addresses(device, rng):
    # make_fx records operators and every Python number between them, as a CUDA graph would; a size or an
    # index that was read from a tensor would be wrong in the replay, or refuse to be recorded.
    orchestrator = build(torch.float64, device, rng)
    state = poisoned_state(orchestrator, len(LENGTHS[0]))
    names = [field.name for field in fields(OrchestratorState)]
    buffers = [getattr(state, name) for name in names]

    def chunk(inputs, buffers):
        alike = OrchestratorState(**dict(zip(names, buffers)))
        orchestrator.prefill(alike, Prefix(*inputs[:4]))
        return orchestrator.step(alike, *inputs[4:])

    empty = ([0] * len(LENGTHS[0]), [0] * len(LENGTHS[0]))
    inputs = list(draw(rng, device, torch.float64, empty))
    recorded = make_fx(chunk)(inputs, buffers)
    addresses = [tensor.data_ptr() for tensor in (*inputs, *buffers)]
    for lengths in (LENGTHS, tuple(part[::-1] for part in LENGTHS)):
        for old, new in zip(inputs, draw(rng, device, torch.float64, lengths)):
            old.copy_(new)
        conditions, position = recorded(inputs, buffers)
        with torch.no_grad():
            whole, whole_position = one_pass(orchestrator, *inputs)
        assert_close(conditions, whole, torch.float64, growth=2 * GROWTH)
        assert_close(position, whole_position, torch.float64, growth=2 * GROWTH)
    assert addresses == [tensor.data_ptr() for tensor in (*inputs, *buffers)]


def test_lengths_beyond_the_buffers_are_clamped(device, rng):
    orchestrator = build(torch.float32, device, rng)
    inputs = list(draw(rng, device, lengths=([TEXT, 0], [HISTORY, 0])))
    right, position = streamed(orchestrator, tuple(inputs))
    inputs[1] = torch.tensor([10**6, -3], dtype=torch.int32, device=device)
    inputs[3] = torch.tensor([10**6, -3], dtype=torch.int32, device=device)
    clamped, clamped_position = streamed(orchestrator, tuple(inputs))
    assert torch.equal(clamped, right)
    assert torch.equal(clamped_position, position)


def test_an_orchestrator_without_history_works(device, rng):
    orchestrator = build(torch.float32, device, rng, replace(CONFIG, history_seconds=0.0))
    ids, spoken, history, _, x_audio, sigma = draw(rng, device)
    inputs = (ids, spoken, history[:, :0], torch.zeros_like(spoken), x_audio, sigma)
    conditions, _ = streamed(orchestrator, inputs)
    with torch.no_grad():
        assert_close(conditions, one_pass(orchestrator, *inputs)[0], torch.float32, growth=2 * GROWTH)


def test_gradients_reach_every_parameter(device, rng):
    orchestrator = build(torch.float32, device, rng)
    conditions, position = one_pass(orchestrator, *draw(rng, device))
    (conditions.square().sum() + position.sum()).backward()
    for name, parameter in orchestrator.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        # A key's bias adds the same to all logits of a query; only RoPE makes the language model's matter.
        assert name == "pointer.key.bias" or parameter.grad.abs().max() > 0, name


def test_random_weights_of_the_tiny_preset_have_unit_activations(device):
    torch.manual_seed(0)
    config = preset("tiny")
    orchestrator = Orchestrator.from_preset(config).to(device)
    assert orchestrator.history_tokens == config.history_tokens
    assert sum(p.numel() for p in orchestrator.parameters()) < 6e6
    state = orchestrator.new_state(1)
    channels, text = config.dit.audio_channels, config.orchestrator.transcript_tokens
    ids = torch.randint(0, config.orchestrator.vocabulary, (1, text), device=device)
    history = torch.randn(1, config.history_tokens, channels, device=device)
    used = 3 * text // 4, 5 * config.history_tokens // 6
    spoken, heard = (torch.tensor([n], dtype=torch.int32, device=device) for n in used)
    orchestrator.prefill(state, Prefix(ids, spoken, history, heard))
    x_audio = torch.randn(1, config.audio_tokens, channels, device=device)
    conditions, position = orchestrator.step(state, x_audio, torch.ones(1, device=device))
    assert conditions.std().item() == pytest.approx(1.0, abs=0.1)
    assert ((position > 0) & (position < used[0])).all()
    values = state.v[:, :, : used[0]]
    assert 0.5 < values.std().item() < 2.0


def test_parameters_are_counted_by_the_config():
    with torch.device("meta"):
        orchestrator = Orchestrator.from_preset(preset("5b"))
    ours = sum(p.numel() for name, p in orchestrator.named_parameters() if name.startswith("model."))
    assert ours == pytest.approx(preset("5b").orchestrator.parameters, rel=1e-3)


def test_a_model_built_without_memory_gets_the_same_weights_as_one_built_with_it():
    with torch.device("meta"):
        late = Orchestrator(CONFIG, CHANNELS, CHUNK)
    late.to_empty(device="cpu").reset_parameters(torch.Generator().manual_seed(3))
    early = Orchestrator(CONFIG, CHANNELS, CHUNK)
    early.reset_parameters(torch.Generator().manual_seed(3))
    assert early.state_dict().keys() == late.state_dict().keys()
    assert all(torch.equal(early.state_dict()[name], tensor) for name, tensor in late.state_dict().items())


def test_history_keeps_the_newest_latents_of_each_row(device, rng):
    stored = [torch.randn(length, 2, generator=rng) for length in (0, 3, 7)]
    history = torch.full((3, 7, 2), float("nan"), device=device)
    lengths = torch.tensor([len(part) for part in stored], dtype=torch.int32, device=device)
    for row, part in enumerate(stored):
        history[row, : len(part)] = part
    address = history.data_ptr()
    for tokens in (3, 3, 5, 9):
        latents = torch.randn(3, tokens, 2, generator=rng)
        append_history(history, lengths, latents.to(device))
        for row in range(3):
            stored[row] = torch.cat([stored[row], latents[row]])[-7:]
            assert lengths[row] == len(stored[row])
            assert torch.equal(history[row, : len(stored[row])].cpu(), stored[row])
    assert (history.data_ptr(), lengths.dtype) == (address, torch.int32)


@pytest.mark.parametrize(
    ("argument", "index", "wrong"),
    [
        ("text_ids", 0, lambda x: x[:, :-1]),
        ("text_ids", 0, lambda x: x.int()),
        ("text_lengths", 1, lambda x: x.long()),
        ("text_lengths", 1, lambda x: x[:-1]),
        ("history", 2, lambda x: x[..., :-1]),
        ("history_lengths", 3, lambda x: x.long()),
        ("x_audio", 4, lambda x: x[:, 1:]),
        ("sigma", 5, lambda x: x[:, None]),
    ],
)
def test_a_wrong_tensor_is_refused_by_name(argument, index, wrong, device, rng):
    orchestrator = build(torch.float32, device, rng)
    inputs = list(draw(rng, device))
    inputs[index] = wrong(inputs[index])
    for run in (lambda: streamed(orchestrator, inputs), lambda: one_pass(orchestrator, *inputs)):
        with pytest.raises(KernelArgumentError) as error:
            run()
        assert error.value.argument == argument


def copied(folder, target, **changes):
    """Copy a checkpoint, with entries of its config.json changed or, where None, removed."""
    target.mkdir()
    for file in folder.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    config = json.loads((target / "config.json").read_text()) | changes
    config = {name: value for name, value in config.items() if value is not None}
    (target / "config.json").write_text(json.dumps(config))
    return target


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model_type": "llama"}, "model_type must be 'qwen2', got 'llama'"),
        ({"use_sliding_window": True}, "use_sliding_window must be False"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "rope_type must be 'default'"),
        ({"hidden_act": "gelu"}, "hidden_act must be 'silu'"),
        ({"hidden_size": None}, "must have 'hidden_size'"),
        ({"hidden_size": []}, "config.json: must have the sizes of a Qwen2 model"),
        ({"num_attention_heads": 0}, "config.json: must have the sizes of a Qwen2 model"),
    ],
)
def test_a_checkpoint_of_another_kind_is_refused(peer, tmp_path, changes, says):
    folder = copied(peer[1] / "lm", tmp_path / "changed", **changes)
    with pytest.raises(CheckpointError, match=r"config\.json") as error:
        from_peer(folder)
    assert says in str(error.value)


def test_a_config_of_transformers_4_is_read(peer, tmp_path):
    folder = copied(peer[1] / "lm", tmp_path / "old", rope_parameters=None, rope_theta=CONFIG.rope_theta)
    assert read_qwen2_config(folder, CONFIG.history_seconds, CONFIG.transcript_tokens) == CONFIG


def test_a_config_that_is_no_object_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="must hold an object, got list"):
        read_qwen2_config(tmp_path)


def test_a_checkpoint_s_own_tokenizer_is_given_and_its_weights_still_fit(peer):
    sizes = CHANNELS, CHUNK, CONFIG.history_seconds, CONFIG.transcript_tokens
    orchestrator = Orchestrator.from_qwen2(peer[1] / "lm", *sizes)
    assert orchestrator.config == replace(CONFIG, tokenizer="given")
    planned = Orchestrator(replace(CONFIG, tokenizer="given", duration_dim=8), CHANNELS, CHUNK)
    planned.load_qwen2(peer[1] / "lm")


def test_weights_that_do_not_fit_are_refused(peer, tmp_path):
    good = {name: tensor.contiguous() for name, tensor in peer[0].state_dict().items()}
    name = "layers.1.mlp.up_proj.weight"
    broken = {
        f"tensor {name!r} is missing": {key: value for key, value in good.items() if key != name},
        "tensor 'visual.weight' is unexpected": good | {"visual.weight": torch.zeros(2)},
        f"tensor '{name}' must have shape [96, 64], got [64, 96]": good | {name: good[name].T.contiguous()},
        f"tensor '{name}' must be finite": good | {name: good[name] * float("nan")},
    }
    for number, (says, tensors) in enumerate(broken.items()):
        folder = copied(peer[1] / "lm", tmp_path / str(number))
        save_file(tensors, folder / "model.safetensors")
        with pytest.raises(CheckpointError) as error:
            from_peer(folder)
        assert says in str(error.value)


def test_a_truncated_or_absent_file_is_refused(peer, tmp_path):
    folder = copied(peer[1] / "lm", tmp_path / "cut")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="must hold complete safetensors files"):
        from_peer(folder)
    weights.unlink()
    with pytest.raises(CheckpointError, match="must hold complete safetensors files"):
        from_peer(folder)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        from_peer(tmp_path / "nowhere")


def test_weights_of_another_size_are_refused_before_any_is_loaded(peer, rng):
    orchestrator = Orchestrator(replace(CONFIG, ffn=128), CHANNELS, CHUNK)
    with pytest.raises(CheckpointError, match="ffn=96"):
        orchestrator.load_qwen2(peer[1] / "lm")
