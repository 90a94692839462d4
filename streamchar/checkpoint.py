"""Checkpoints: a directory with ``config.json`` and safetensors shards, written whole or not at all.

::

    config.json                       {"format": "streamchar", "version": 1, "config": {...}}
    model-00001-of-00002.safetensors  tensors named "<module>.<name in its state dict>"
    model-00002-of-00002.safetensors
    model.safetensors.index.json      {"metadata": {"total_size": bytes}, "weight_map": {tensor: shard}}

Shards are filled in order of the tensors' names, so that equal weights give equal files. Loading maps the
files into memory and takes one tensor at a time: the most held at once is the weights and one tensor more.
"""

import json
import os
import shutil
import typing
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, asdict, fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from .config import ConfigError, Preset, preset

FORMAT = "streamchar"
VERSION = 1
CONFIG_FILE = "config.json"
INDEX_FILE = "model.safetensors.index.json"


class CheckpointError(ValueError):
    """A checkpoint that cannot be read or written.

    Attributes:
        file: the file at fault.
        tensor: the tensor at fault, or "".
    """

    def __init__(
        self, file: str | os.PathLike[str], problem: str, remedy: str = "", tensor: str = ""
    ) -> None:
        self.file, self.tensor = str(file), tensor
        about = f"tensor {tensor!r} " if tensor else ""
        super().__init__(f"{file}: {about}{problem}" + (f"; {remedy}" if remedy else ""))


def config_to_json(config: object) -> dict[str, Any]:
    """Return a config dataclass, such as a :class:`Preset`, as what ``json`` can write."""
    if not is_dataclass(config) or isinstance(config, type):
        raise ConfigError("config", "a dataclass or a dict", repr(config))
    return asdict(config)


def preset_from_json(value: object) -> Preset:
    """Return the preset that :func:`config_to_json` wrote, or the one that a string names.

    Raises:
        ConfigError: naming the field (``dit.heads``) that is unknown, missing, of another type or refused.
    """
    if isinstance(value, str):
        return preset(value)
    built: Preset = _decode(Preset, value, "")
    return built


def _decode(kind: Any, value: object, path: str) -> Any:
    """Build a value of type ``kind`` from what ``json`` read; ``path`` is the field's name."""

    def require(ok: bool, limit: str) -> None:
        if not ok:
            raise ConfigError(path or "config", limit, repr(value))

    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if is_dataclass(kind) and isinstance(kind, type):
        require(isinstance(value, dict), "an object")
        return _decode_dataclass(kind, typing.cast(dict[str, object], value), path)
    if origin is tuple:
        require(isinstance(value, list), "a list")
        items = typing.cast(list[object], value)
        kinds = arguments[:1] * len(items) if arguments[-1] is Ellipsis else arguments
        require(len(items) == len(kinds), f"a list of {len(kinds)}")
        return tuple(_decode(k, item, f"{path}[{i}]") for i, (k, item) in enumerate(zip(kinds, items)))
    if origin is typing.Literal:
        require(value in arguments, " or ".join(map(repr, arguments)))
        return value
    accepted = (int, float) if kind is float else kind
    require(isinstance(value, accepted) and (kind is bool or not isinstance(value, bool)), f"{kind.__name__}")
    try:
        return kind(value)
    except OverflowError:
        raise ConfigError(path, f"{kind.__name__}", "a number of more digits than one has") from None


def _decode_dataclass(kind: type, value: Mapping[str, object], path: str) -> Any:
    prefix = f"{path}." if path else ""
    known = {entry.name: entry for entry in fields(kind)}
    for name in value:
        limit = "a known field: " + ", ".join(known)
        if name not in known:
            raise ConfigError(f"{prefix}{name}", limit, "one that this version does not have")
    for name, entry in known.items():
        if name not in value and entry.default is MISSING and entry.default_factory is MISSING:
            raise ConfigError(f"{prefix}{name}", "present", "nothing")
    types_of = typing.get_type_hints(kind)
    decoded = {name: _decode(types_of[name], item, f"{prefix}{name}") for name, item in value.items()}
    try:
        return kind(**decoded)
    except ConfigError as error:
        raise ConfigError(f"{prefix}{error.argument}", error.limit, error.value, error.remedy) from error


def save_pretrained(
    directory: str | os.PathLike[str],
    config: object,
    modules: Mapping[str, Mapping[str, torch.Tensor]],
    *,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = 4 * 2**30,
) -> None:
    """Write a checkpoint; the directory appears complete, or not at all.

    Args:
        directory: where; must not exist or be empty, its parent is made if need be.
        config: a config dataclass such as a :class:`Preset`, or a dict that ``json`` can write.
        modules: state dict of each module, by a name without dots.
        dtype: what floating-point tensors are cast to; by default they are written as they are.
        max_shard_bytes: most bytes of tensors in one file; a larger tensor has a file to itself.

    Raises:
        CheckpointError: the directory holds something, the disk is full, or a value cannot be stored. Nothing
            half-written stays behind.
    """
    target = Path(directory)
    if max_shard_bytes <= 0:
        raise CheckpointError(target, f"max_shard_bytes must be above 0, got {max_shard_bytes}")
    written = dict(config) if isinstance(config, Mapping) else config_to_json(config)
    tensors = _flatten(target, modules)
    shards = _shards(tensors, dtype, max_shard_bytes)
    names = [f"model-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
    with _appearing(target) as partial:
        for name, members in zip(names, shards):
            # Tensors that share memory, as tied weights do, are stored once each: clone parts them.
            shard = {key: tensors[key].detach().to("cpu", _cast(tensors[key], dtype)) for key in members}
            save_file(
                {key: x.clone(memory_format=torch.contiguous_format) for key, x in shard.items()},
                partial / name,
            )
        total = sum(_bytes(x, dtype) for x in tensors.values())
        where = {key: name for name, members in zip(names, shards) for key in members}
        _write_json(partial / INDEX_FILE, {"metadata": {"total_size": total}, "weight_map": where})
        _write_json(partial / CONFIG_FILE, {"format": FORMAT, "version": VERSION, "config": written})
        # safetensors writes files that their owner alone may read; the umask decides, as for any other file.
        for name in names:
            shutil.copymode(partial / CONFIG_FILE, partial / name)


def _flatten(target: Path, modules: Mapping[str, Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for module, state in modules.items():
        if not module or "." in module:
            raise CheckpointError(target, f"module name must be without dots, got {module!r}")
        for name, tensor in state.items():
            full = f"{module}.{name}"
            if not isinstance(tensor, torch.Tensor) or tensor.is_meta:
                raise CheckpointError(target, "has no values to store", tensor=full)
            tensors[full] = tensor
    return dict(sorted(tensors.items()))


def _cast(tensor: torch.Tensor, dtype: torch.dtype | None) -> torch.dtype:
    return dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype


def _bytes(tensor: torch.Tensor, dtype: torch.dtype | None) -> int:
    return tensor.numel() * _cast(tensor, dtype).itemsize


def _shards(tensors: Mapping[str, torch.Tensor], dtype: torch.dtype | None, most: int) -> list[list[str]]:
    shards: list[list[str]] = []
    room = 0
    for name, tensor in tensors.items():
        size = _bytes(tensor, dtype)
        if not shards or size > room:
            shards.append([])
            room = most
        shards[-1].append(name)
        room -= size
    return shards


@contextmanager
def _appearing(target: Path) -> Iterator[Path]:
    """Yield a directory beside ``target`` that takes its name at the end, or vanishes with the error."""
    partial = target.parent / f".{target.name}.{uuid.uuid4().hex}.partial"
    try:
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise CheckpointError(target, "exists already", "give another directory or remove this one first")
        target.parent.mkdir(parents=True, exist_ok=True)
        partial.mkdir()
        yield partial
        for path in (*partial.iterdir(), partial):
            _sync(path)
        # Takes the place of an empty directory in one step.
        partial.rename(target)
        _sync(target.parent)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(target, f"cannot be written: {error}", "nothing was left behind") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _write_json(path: Path, value: object) -> None:
    try:
        text = json.dumps(value, indent=2, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(path.name, f"cannot be written as JSON: {error}") from error
    path.write_text(text + "\n", encoding="utf-8")


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number that JSON has")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except FileNotFoundError as error:
        raise CheckpointError(path, "is missing", "give a directory that save_pretrained wrote") from error
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(path, f"is not readable JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(path, f"must hold an object, got {type(value).__name__}")
    return value


def shipped_weights(name: str) -> Path | None:
    """Return the directory of the weights that the package ships for a preset, None where it ships none."""
    directory = Path(__file__).parent / "weights" / name
    return directory if (directory / CONFIG_FILE).is_file() else None


def load_config(directory: str | os.PathLike[str]) -> Any:
    """Return what was given to :func:`save_pretrained` as ``config``, a dataclass as a dict.

    Raises:
        CheckpointError: the file is missing or corrupt, or of another format or version.
    """
    path = Path(directory) / CONFIG_FILE
    value = _read_json(path)
    if value.get("format") != FORMAT:
        raise CheckpointError(path, f"format must be {FORMAT!r}, got {value.get('format')!r}")
    if value.get("version") != VERSION:
        remedy = "use the release that wrote it, or save it again"
        raise CheckpointError(path, f"version must be {VERSION}, got {value.get('version')!r}", remedy)
    if "config" not in value:
        raise CheckpointError(path, "config must be present, got nothing")
    return value["config"]


def load_preset(directory: str | os.PathLike[str]) -> Preset:
    """Return the preset of a checkpoint.

    Raises:
        CheckpointError: as :func:`load_config`, or naming a field that is unknown, missing or refused.
    """
    try:
        return preset_from_json(load_config(directory))
    except ConfigError as error:
        raise CheckpointError(Path(directory) / CONFIG_FILE, str(error)) from error


def load_pretrained(
    directory: str | os.PathLike[str],
    modules: Mapping[str, nn.Module],
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> None:
    """Load a checkpoint into modules, which may have been built on the meta device.

    Every parameter and buffer of the state dicts is replaced by a new tensor, ties between them kept; nothing
    else of a module is touched, and nothing at all if a name, shape or file is at fault.

    Args:
        directory: what :func:`save_pretrained` wrote.
        modules: by the names they were saved under; all of the checkpoint, no more and no less.
        dtype: what floating-point tensors are cast to; by default they stay as stored.
        device: where the tensors go.

    Raises:
        CheckpointError: naming file and tensor, where one is missing, unexpected, of another shape or kind,
            not finite (after the cast), or where a file is missing, truncated or corrupt.
    """
    root = Path(directory)
    expected = {
        f"{module}.{name}": tensor
        for module, built in modules.items()
        for name, tensor in built.state_dict(keep_vars=True).items()
    }
    where = _locate(root, expected)
    loaded: dict[str, torch.Tensor] = {}
    # State dicts give a tied tensor under several names; one object must stay one.
    tied: dict[int, torch.Tensor] = {}
    for shard in sorted(set(where.values())):
        names = sorted(name for name in where if where[name] == shard)
        for name, tensor in _read_shard(
            root / shard, {name: expected[name] for name in names}, dtype, device
        ):
            old = expected[name]
            if isinstance(old, nn.Parameter):
                tensor = nn.Parameter(tensor, old.requires_grad and tensor.is_floating_point())
            loaded[name] = tied.setdefault(id(old), tensor)
    for module, built in modules.items():
        prefix = f"{module}."
        state = {name.removeprefix(prefix): x for name, x in loaded.items() if name.startswith(prefix)}
        built.load_state_dict(state, strict=True, assign=True)


def _locate(root: Path, expected: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Read which file holds each tensor, and hold the names against those expected."""
    path = root / INDEX_FILE
    where = _read_json(path).get("weight_map")
    if not isinstance(where, dict):
        raise CheckpointError(path, "weight_map must be an object")
    for name, shard in where.items():
        # A file of another directory is none of ours.
        if not isinstance(shard, str) or Path(shard).name != shard or Path(shard).suffix != ".safetensors":
            raise CheckpointError(path, f"must be in a file of this directory, got {shard!r}", tensor=name)
    for problem, names in (
        ("is missing", sorted(expected.keys() - where.keys())),
        ("is unexpected", sorted(where.keys() - expected.keys())),
    ):
        if names:
            more = f", and so {'are' if len(names) > 2 else 'is'} {len(names) - 1} more" if names[1:] else ""
            remedy = "build the modules from the config of this checkpoint"
            raise CheckpointError(path, problem + more, remedy, names[0])
    return where


def _read_shard(
    path: Path,
    expected: Mapping[str, torch.Tensor],
    dtype: torch.dtype | None,
    device: torch.device | str,
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield each tensor of one file, checked."""
    if not path.is_file():
        raise CheckpointError(path, "is missing", "copy every file that the index names")
    try:
        with safe_open(path, framework="pt") as file:
            present = set(file.keys())
            for name in sorted(present ^ expected.keys()):
                problem = "is not in the index" if name in present else "is missing from this file"
                raise CheckpointError(path, problem, tensor=name)
            for name, built in expected.items():
                shape = list(file.get_slice(name).get_shape())
                if shape != list(built.shape):
                    raise CheckpointError(
                        path, f"must have shape {list(built.shape)}, got {shape}", tensor=name
                    )
                yield name, _checked(path, name, file.get_tensor(name), built, dtype, device)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(path, f"is truncated or corrupt: {error}", "copy it again") from error


def _checked(
    path: Path,
    name: str,
    stored: torch.Tensor,
    built: torch.Tensor,
    dtype: torch.dtype | None,
    device: torch.device | str,
) -> torch.Tensor:
    if stored.is_floating_point() != built.is_floating_point():
        raise CheckpointError(path, f"must be like {built.dtype}, got {stored.dtype}", tensor=name)
    # A copy even where nothing changes: aligned as kernels want, and free of the file.
    tensor = stored.to(device, _cast(stored, dtype), copy=True)
    if tensor.is_floating_point():
        wide = tensor.float() if tensor.dtype.itemsize == 1 else tensor
        if not torch.isfinite(wide).all():
            count = int((~torch.isfinite(wide)).sum())
            cast = f" as {tensor.dtype}".replace("torch.", "") if tensor.dtype != stored.dtype else ""
            raise CheckpointError(path, f"has {count} values that are not finite{cast}", tensor=name)
    return tensor
