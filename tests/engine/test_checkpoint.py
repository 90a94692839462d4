"""Checkpoints come back as they went out, and what is wrong with one is named before anything is loaded."""

import json
import os
import resource
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from streamchar.checkpoint import CheckpointError, load_config, load_preset, load_pretrained, save_pretrained
from streamchar.config import PRESETS, ConfigError, preset
from streamchar.config.json import config_to_json, preset_from_json

TINY = preset("tiny")


class Net(nn.Module):
    """A bit of everything that a state dict may hold."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 4)
        self.head = nn.Linear(4, 11, bias=False)
        self.head.weight = self.embedding.weight
        self.norm = nn.BatchNorm1d(4)
        self.frozen = nn.Parameter(torch.randn(3, 5).t(), requires_grad=False)


def nets() -> dict[str, nn.Module]:
    return {"dit": Net(), "vocoder": nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6))}


def states(modules: dict[str, nn.Module]) -> dict[str, dict[str, torch.Tensor]]:
    return {name: module.state_dict() for name, module in modules.items()}


@pytest.fixture
def modules() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return nets()


@pytest.fixture
def saved(tmp_path: Path, modules: dict[str, nn.Module]) -> Path:
    """A checkpoint in several shards."""
    save_pretrained(tmp_path / "model", TINY, states(modules), max_shard_bytes=200)
    return tmp_path / "model"


def shards(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.safetensors"))


def edit_json(path: Path, change: Callable[[dict], object]) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def edit_tensors(path: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    change(tensors)
    save_file(tensors, path)


def shard_of(directory: Path, tensor: str) -> Path:
    index = json.loads((directory / "model.safetensors.index.json").read_text())
    return directory / index["weight_map"][tensor]


@pytest.mark.parametrize("meta", [False, True])
def test_modules_come_back_as_they_were(saved: Path, modules: dict[str, nn.Module], meta: bool) -> None:
    with torch.device("meta" if meta else "cpu"):
        fresh = nets()
    load_pretrained(saved, fresh)
    for name, module in modules.items():
        wanted = module.state_dict()
        for key, tensor in fresh[name].state_dict().items():
            assert torch.equal(tensor, wanted[key])
            assert tensor.dtype == wanted[key].dtype
            assert tensor.data_ptr() % 16 == 0
    assert fresh["dit"].head.weight is fresh["dit"].embedding.weight
    assert not fresh["dit"].frozen.requires_grad
    assert fresh["vocoder"][0].weight.requires_grad


@pytest.mark.parametrize("name", PRESETS)
def test_presets_come_back_as_they_were(tmp_path: Path, name: str) -> None:
    changed = replace(preset(name).with_latent_frames(9), name="mine")
    for config in (preset(name), changed):
        save_pretrained(tmp_path / config.name, config, {})
        assert load_preset(tmp_path / config.name) == config
        load_pretrained(tmp_path / config.name, {})


def test_a_dict_and_a_presets_name_serve_as_config(tmp_path: Path) -> None:
    save_pretrained(tmp_path / "a", {"steps": [1, 2.5, None]}, {})
    assert load_config(tmp_path / "a") == {"steps": [1, 2.5, None]}
    assert preset_from_json("5b") is preset("5b")


def test_shards_keep_their_size_and_are_the_same_every_time(
    saved: Path, tmp_path: Path, modules: dict[str, nn.Module]
) -> None:
    reversed_states = {
        name: dict(reversed(list(state.items()))) for name, state in reversed(states(modules).items())
    }
    save_pretrained(tmp_path / "again", TINY, reversed_states, max_shard_bytes=200)
    files = sorted(path.name for path in saved.iterdir())
    assert files == sorted(path.name for path in (tmp_path / "again").iterdir())
    assert all((saved / name).read_bytes() == (tmp_path / "again" / name).read_bytes() for name in files)
    sizes = [sum(x.nbytes for x in load_file(path).values()) for path in shards(saved)]
    assert len(sizes) > 2
    assert all(size <= 200 for size in sizes)
    index = json.loads((saved / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(sizes)
    assert shards(saved)[0].name == f"model-00001-of-{len(sizes):05}.safetensors"


def test_a_tensor_larger_than_a_shard_has_one_to_itself(tmp_path: Path) -> None:
    state = {"a": torch.zeros(2), "b": torch.zeros(100), "c": torch.zeros(2)}
    save_pretrained(tmp_path / "m", TINY, {"x": state}, max_shard_bytes=16)
    assert [list(load_file(path)) for path in shards(tmp_path / "m")] == [["x.a"], ["x.b"], ["x.c"]]


def test_dtype_casts_floats_on_save_and_on_load_and_nothing_else(
    tmp_path: Path, modules: dict[str, nn.Module]
) -> None:
    save_pretrained(tmp_path / "m", TINY, states(modules), dtype=torch.bfloat16)
    fresh = nets()
    load_pretrained(tmp_path / "m", fresh)
    assert fresh["dit"].embedding.weight.dtype == torch.bfloat16
    assert fresh["dit"].norm.num_batches_tracked.dtype == torch.int64
    load_pretrained(tmp_path / "m", fresh, dtype=torch.float64)
    assert torch.equal(fresh["dit"].frozen, modules["dit"].frozen.bfloat16().double())


def test_weights_go_to_the_device_asked_for(saved: Path, device: torch.device) -> None:
    fresh = nets()
    load_pretrained(saved, fresh, device=device)
    assert all(
        x.device.type == device.type for module in fresh.values() for x in module.state_dict().values()
    )


def test_loaded_weights_do_not_depend_on_the_file_any_more(
    saved: Path, modules: dict[str, nn.Module]
) -> None:
    fresh = nets()
    load_pretrained(saved, fresh)
    for path in shards(saved):
        with path.open("r+b") as file:
            file.truncate(0)
    assert torch.equal(fresh["dit"].frozen, modules["dit"].frozen)


def test_eight_bit_floats_come_back(tmp_path: Path) -> None:
    module = nn.Module()
    module.register_buffer("w", torch.randn(4, 4).to(torch.float8_e4m3fn))
    save_pretrained(tmp_path / "m", TINY, {"x": module.state_dict()})
    fresh = nn.Module()
    fresh.register_buffer("w", torch.zeros(4, 4, dtype=torch.float8_e4m3fn))
    load_pretrained(tmp_path / "m", {"x": fresh})
    assert torch.equal(fresh.w.float(), module.w.float())


def fail(directory: Path, modules: dict[str, nn.Module] | None = None, **kwargs: object) -> CheckpointError:
    """Load what must not load; check that no module was touched."""
    fresh = nets() if modules is None else modules
    before = {id(x) for module in fresh.values() for x in module.state_dict(keep_vars=True).values()}
    with pytest.raises(CheckpointError) as error:
        load_pretrained(directory, fresh, **kwargs)
    after = {id(x) for module in fresh.values() for x in module.state_dict(keep_vars=True).values()}
    assert before == after
    return error.value


def test_a_missing_tensor_is_named(saved: Path) -> None:
    index = saved / "model.safetensors.index.json"
    edit_json(
        index, lambda value: [value["weight_map"].pop(f"vocoder.0.{name}") for name in ("bias", "weight")]
    )
    error = fail(saved)
    assert (error.tensor, error.file) == ("vocoder.0.bias", str(index))
    assert "is missing, and so is 1 more" in str(error)


def test_an_unexpected_tensor_is_named(saved: Path) -> None:
    modules = nets()
    del modules["vocoder"][1]
    error = fail(saved, modules)
    assert error.tensor == "vocoder.1.bias"
    assert "is unexpected" in str(error)


def test_a_tensor_missing_from_the_file_that_the_index_names_is_named(saved: Path) -> None:
    path = shard_of(saved, "dit.frozen")
    edit_tensors(path, lambda tensors: tensors.pop("dit.frozen"))
    error = fail(saved)
    assert (error.tensor, error.file) == ("dit.frozen", str(path))


def test_a_tensor_that_the_index_does_not_name_is_named(saved: Path) -> None:
    path = shard_of(saved, "dit.frozen")
    edit_tensors(path, lambda tensors: tensors.update(stowaway=torch.zeros(1)))
    error = fail(saved)
    assert (error.tensor, error.file) == ("stowaway", str(path))


def test_a_misshapen_tensor_is_named_with_both_shapes(saved: Path) -> None:
    modules = nets()
    modules["dit"].frozen = nn.Parameter(torch.zeros(5, 4))
    error = fail(saved, modules)
    assert error.tensor == "dit.frozen"
    assert "must have shape [5, 4], got [5, 3]" in str(error)


def test_integers_in_place_of_floats_are_refused(saved: Path) -> None:
    edit_tensors(
        shard_of(saved, "dit.frozen"),
        lambda x: x.update({"dit.frozen": torch.zeros(5, 3, dtype=torch.int64)}),
    )
    assert fail(saved).tensor == "dit.frozen"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_weight_that_is_not_finite_is_named(saved: Path, value: float) -> None:
    edit_tensors(shard_of(saved, "dit.frozen"), lambda x: x["dit.frozen"][2, 1].fill_(value))
    error = fail(saved)
    assert error.tensor == "dit.frozen"
    assert "has 1 values that are not finite" in str(error)


def test_a_weight_that_overflows_in_the_dtype_asked_for_is_named(saved: Path) -> None:
    edit_tensors(shard_of(saved, "dit.frozen"), lambda x: x["dit.frozen"][2, 1].fill_(1e6))
    assert "not finite as float16" in str(fail(saved, dtype=torch.float16))
    load_pretrained(saved, nets(), dtype=torch.bfloat16)


@pytest.mark.parametrize("keep", [0, 7, 40, -1])
def test_a_truncated_file_is_named(saved: Path, keep: int) -> None:
    path = shards(saved)[1]
    path.write_bytes(path.read_bytes()[:keep])
    error = fail(saved)
    assert error.file == str(path)
    assert "is truncated or corrupt" in str(error)


def test_a_missing_file_is_named(saved: Path) -> None:
    path = shards(saved)[1]
    path.unlink()
    assert fail(saved).file == str(path)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
@pytest.mark.parametrize(
    "content", [None, b"", b"{", b"[]", b"\xff", b'{"weight_map": NaN}', b'{"weight_map": 1}']
)
def test_a_corrupt_json_is_named(saved: Path, name: str, content: bytes | None) -> None:
    path = saved / name
    path.unlink() if content is None else path.write_bytes(content)
    load = load_preset if name == "config.json" else lambda directory: load_pretrained(directory, nets())
    with pytest.raises(CheckpointError) as error:
        load(saved)
    assert error.value.file == str(path)


@pytest.mark.parametrize("shard", ["../model-00001-of-00001.safetensors", "/etc/passwd", "..", 3])
def test_an_index_cannot_point_elsewhere(saved: Path, shard: object) -> None:
    edit_json(
        saved / "model.safetensors.index.json",
        lambda value: value["weight_map"].update({"dit.frozen": shard}),
    )
    assert fail(saved).tensor == "dit.frozen"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda value: value.update(version=2), "version must be 1, got 2; use the release that wrote it"),
        (lambda value: value.pop("version"), "version must be 1, got None"),
        (lambda value: value.update(format="other"), "format must be 'streamchar', got 'other'"),
        (lambda value: value.pop("config"), "config must be present"),
        (lambda value: value.update(config="6b"), "preset must be 'tiny' or '5b', got '6b'"),
        (lambda value: value.update(config=[]), "config must be an object, got []"),
        (lambda value: value["config"]["dit"].update(heads=3), "dit.dim must be heads * head_dim = 192"),
        (lambda value: value["config"]["dit"].update(heads="4"), "dit.heads must be int, got '4'"),
        (lambda value: value["config"]["dit"].update(heads=True), "dit.heads must be int, got True"),
        (
            lambda value: value["config"]["dit"].update(depth=3),
            "dit.depth must be a known field: dim, layers",
        ),
        (lambda value: value["config"]["dit"].pop("layers"), "dit.layers must be present"),
        (lambda value: value["config"].update(dit=None), "dit must be an object, got None"),
        (
            lambda value: value["config"]["sampler"].update(sigmas=[1.0, "x"]),
            "sampler.sigmas[1] must be float",
        ),
        (lambda value: value["config"]["sampler"].update(sigmas=1.0), "sampler.sigmas must be a list"),
        (
            lambda value: value["config"]["sampler"].update(sigmas=[0.5]),
            "sampler.sigmas must be strictly decreasing",
        ),
    ],
)
def test_a_config_at_fault_says_which_field(saved: Path, change: Callable[[dict], object], said: str) -> None:
    edit_json(saved / "config.json", change)
    with pytest.raises(CheckpointError, match=r"config\.json: ") as error:
        load_preset(saved)
    assert said in str(error.value)


def test_a_config_says_its_field_without_a_file_too() -> None:
    value = json.loads(json.dumps(config_to_json(TINY)))
    value["picture"]["height"] = 100
    with pytest.raises(ConfigError) as error:
        preset_from_json(value)
    assert error.value.argument == "picture.height"
    assert "use 96" in str(error.value)
    with pytest.raises(ConfigError, match="config must be a dataclass"):
        config_to_json(3)


def test_whole_numbers_serve_as_floats() -> None:
    value = asdict(TINY)
    value["orchestrator"]["history_seconds"] = 15
    value["sampler"]["sigmas"] = [1]
    assert type(preset_from_json(json.loads(json.dumps(value))).sampler.sigmas[0]) is float


def test_weights_may_be_read_by_whom_the_config_may(tmp_path: Path, modules: dict[str, nn.Module]) -> None:
    before = os.umask(0o027)
    try:
        save_pretrained(tmp_path / "out", TINY, states(modules))
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "out").iterdir()} == {0o640}


def test_nothing_is_overwritten(saved: Path, modules: dict[str, nn.Module]) -> None:
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    for target in (saved, saved / "config.json"):
        with pytest.raises(CheckpointError, match="already exists; give another directory"):
            save_pretrained(target, TINY, states(modules))
    assert before == {path.name: path.read_bytes() for path in saved.iterdir()}
    assert [path.name for path in saved.parent.iterdir()] == ["model"]


def test_an_empty_directory_is_filled_and_parents_are_made(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for target in (tmp_path / "empty", tmp_path / "a" / "b"):
        save_pretrained(target, TINY, {})
        assert load_preset(target) == TINY


@pytest.fixture
def small_files() -> Iterator[None]:
    """Let no file grow beyond 64 KiB, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65536, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("small_files")
def test_a_full_disk_leaves_nothing_behind(tmp_path: Path) -> None:
    state = {"a": torch.zeros(1000), "b": torch.zeros(100_000)}
    with pytest.raises(CheckpointError, match=r"cannot be written: .*; nothing was left behind"):
        save_pretrained(tmp_path / "m", TINY, {"x": state}, max_shard_bytes=8000)
    assert list(tmp_path.iterdir()) == []


def test_an_interruption_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("streamchar.checkpoint.save_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_pretrained(tmp_path / "m", TINY, {"x": {"a": torch.zeros(1)}})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("config", "modules", "kwargs", "said"),
    [
        (TINY, {"a.b": {}}, {}, "module name must be without dots, got 'a.b'"),
        (TINY, {"": {}}, {}, "module name must be without dots"),
        (TINY, {"x": {"a": "text"}}, {}, "tensor 'x.a' has no values to store"),
        (TINY, {"x": {"a": torch.empty(1, device="meta")}}, {}, "tensor 'x.a' has no values to store"),
        (TINY, {}, {"max_shard_bytes": 0}, "max_shard_bytes must be above 0"),
        ({"a": float("nan")}, {}, {}, "config.json: cannot be written as JSON"),
        ({"a": object()}, {}, {}, "config.json: cannot be written as JSON"),
    ],
)
def test_what_cannot_be_stored_is_refused(
    tmp_path: Path, config: object, modules: dict, kwargs: dict, said: str
) -> None:
    with pytest.raises(CheckpointError) as error:
        save_pretrained(tmp_path / "m", config, modules, **kwargs)
    assert said in str(error.value)
    assert list(tmp_path.iterdir()) == []
