"""Checkpoints: a directory with ``config.json`` and safetensors shards, written atomically.

::

    config.json                       {"format": "streamchar", "version": 1, "config": {...}}
    model-00001-of-00002.safetensors  tensors named "<module>.<name in its state dict>"
    model-00002-of-00002.safetensors
    model.safetensors.index.json      {"metadata": {"total_size": bytes}, "weight_map": {tensor: shard}}

Shards are filled in the order of tensor names, so equal weights give identical files. Loading memory-maps the
files and reads one tensor at a time, so peak memory is the weights plus one tensor.
"""

import json
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from .config import ConfigError, Preset
from .config.json import config_to_json, preset_from_json
from .errors import StreamCharError

FORMAT = "streamchar"
VERSION = 1
CONFIG_FILE = "config.json"
INDEX_FILE = "model.safetensors.index.json"


class CheckpointError(StreamCharError, ValueError):
    """A checkpoint cannot be read or written.

    Attributes:
        file: path of the file that causes the error.
        tensor: name of the tensor that causes the error, or "".
    """

    def __init__(
        self, file: str | os.PathLike[str], problem: str, remedy: str = "", tensor: str = ""
    ) -> None:
        self.file, self.tensor = str(file), tensor
        about = f"tensor {tensor!r} " if tensor else ""
        super().__init__(f"{file}: {about}{problem}" + (f"; {remedy}" if remedy else ""))


def save_pretrained(
    directory: str | os.PathLike[str],
    config: object,
    modules: Mapping[str, Mapping[str, torch.Tensor]],
    *,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = 4 * 2**30,
) -> None:
    """Write a checkpoint atomically: on any error, no partial files remain.

    Args:
        directory: target directory; must be missing or empty. Parent directories are created.
        config: a config dataclass such as a :class:`Preset`, or a dict that ``json`` can write.
        modules: maps a name without dots to the state dict of a module.
        dtype: dtype to which floating-point tensors are cast; by default they keep theirs.
        max_shard_bytes: largest total size of the tensors in one file; a larger tensor gets its own file.

    Raises:
        CheckpointError: the directory is not empty, the disk is full, or a value cannot be stored.
    """
    target = Path(directory)
    if max_shard_bytes <= 0:
        raise CheckpointError(target, f"max_shard_bytes must be above 0, got {max_shard_bytes}")
    written = dict(config) if isinstance(config, Mapping) else config_to_json(config)
    tensors = _flatten(target, modules)
    shards = _split_into_shards(tensors, dtype, max_shard_bytes)
    names = [f"model-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
    with _atomic_directory(target) as partial:
        for name, members in zip(names, shards):
            # safetensors refuses tensors that share memory, such as tied weights, so each is cloned.
            shard = {key: tensors[key].detach().to("cpu", _cast(tensors[key], dtype)) for key in members}
            save_file(
                {key: x.clone(memory_format=torch.contiguous_format) for key, x in shard.items()},
                partial / name,
            )
        total = sum(_bytes(x, dtype) for x in tensors.values())
        where = {key: name for name, members in zip(names, shards) for key in members}
        _write_json(partial / INDEX_FILE, {"metadata": {"total_size": total}, "weight_map": where})
        _write_json(partial / CONFIG_FILE, {"format": FORMAT, "version": VERSION, "config": written})
        # safetensors makes its files readable by the owner only; give them the permissions of the umask.
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


def _split_into_shards(
    tensors: Mapping[str, torch.Tensor], dtype: torch.dtype | None, max_bytes: int
) -> list[list[str]]:
    shards: list[list[str]] = []
    room = 0
    for name, tensor in tensors.items():
        size = _bytes(tensor, dtype)
        if not shards or size > room:
            shards.append([])
            room = max_bytes
        shards[-1].append(name)
        room -= size
    return shards


@contextmanager
def _atomic_directory(target: Path) -> Iterator[Path]:
    """Yield a temporary directory that is renamed to ``target`` at the end, or removed on an error."""
    partial = target.parent / f".{target.name}.{uuid.uuid4().hex}.partial"
    try:
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise CheckpointError(target, "already exists", "give another directory or remove this one first")
        target.parent.mkdir(parents=True, exist_ok=True)
        partial.mkdir()
        yield partial
        for path in (*partial.iterdir(), partial):
            _sync(path)
        # The rename also replaces an empty directory, in one step.
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
    raise ValueError(f"{name} is not a valid JSON number")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except FileNotFoundError as error:
        raise CheckpointError(path, "is missing", "give a directory written by save_pretrained") from error
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(path, f"is not readable JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(path, f"must hold an object, got {type(value).__name__}")
    return value


def shipped_weights(name: str) -> Path | None:
    """Return the directory of the weights that the package ships for a preset, or None if there are none."""
    directory = Path(__file__).parent / "weights" / name
    return directory if (directory / CONFIG_FILE).is_file() else None


def load_config(directory: str | os.PathLike[str]) -> Any:
    """Return the ``config`` that was passed to :func:`save_pretrained`; a dataclass comes back as a dict.

    Raises:
        CheckpointError: the file is missing or corrupt, or has another format or version.
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
        CheckpointError: as in :func:`load_config`, or a field is unknown, missing or out of range.
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
    """Load a checkpoint into modules, which may be on the meta device.

    Every parameter and buffer of the state dicts is replaced by a new tensor; tied tensors stay tied. On an
    error, no module is changed.

    Args:
        directory: directory that :func:`save_pretrained` wrote.
        modules: modules by the names under which they were saved; exactly those of the checkpoint.
        dtype: dtype to which floating-point tensors are cast; by default they stay as stored.
        device: device of the loaded tensors.

    Raises:
        CheckpointError: a tensor is missing, unexpected, misshapen, of the wrong kind or not finite after the
            cast, or a file is missing, truncated or corrupt; the message names file and tensor.
    """
    root = Path(directory)
    expected = {
        f"{module}.{name}": tensor
        for module, built in modules.items()
        for name, tensor in built.state_dict(keep_vars=True).items()
    }
    where = _locate(root, expected)
    loaded: dict[str, torch.Tensor] = {}
    # A state dict lists a tied tensor under several names; they must load as one object.
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
    """Return the file of each tensor, after checking the names against those expected."""
    path = root / INDEX_FILE
    where = _read_json(path).get("weight_map")
    if not isinstance(where, dict):
        raise CheckpointError(path, "weight_map must be an object")
    for name, shard in where.items():
        # Never follow a path out of this directory.
        if not isinstance(shard, str) or Path(shard).name != shard or Path(shard).suffix != ".safetensors":
            raise CheckpointError(path, f"must be in a file of this directory, got {shard!r}", tensor=name)
    remedy = "build the modules from the config of this checkpoint"
    _refuse(path, "is missing", expected.keys() - where.keys(), remedy)
    _refuse(path, "is unexpected", where.keys() - expected.keys(), remedy)
    return where


def _refuse(path: Path, problem: str, names: Iterable[str], remedy: str) -> None:
    """Raise an error for the first of ``names``, if there are any."""
    first, *others = sorted(names) or [""]
    if first:
        more = f", and so {'are' if len(others) > 1 else 'is'} {len(others)} more" if others else ""
        raise CheckpointError(path, problem + more, remedy, first)


def _read_shard(
    path: Path,
    expected: Mapping[str, torch.Tensor],
    dtype: torch.dtype | None,
    device: torch.device | str,
) -> Iterator[tuple[str, torch.Tensor]]:
    """Check and yield each tensor of one file."""
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
        raise CheckpointError(path, f"must be of a dtype like {built.dtype}, got {stored.dtype}", tensor=name)
    # Always copy: the result is aligned for the kernels and independent of the mapped file.
    tensor = stored.to(device, _cast(stored, dtype), copy=True)
    if tensor.is_floating_point():
        wide = tensor.float() if tensor.dtype.itemsize == 1 else tensor
        if not torch.isfinite(wide).all():
            count = int((~torch.isfinite(wide)).sum())
            cast = f" as {tensor.dtype}".replace("torch.", "") if tensor.dtype != stored.dtype else ""
            raise CheckpointError(path, f"has {count} values that are not finite{cast}", tensor=name)
    return tensor


def load_foreign(
    module: nn.Module,
    directory: str | os.PathLike[str],
    file: str,
    *,
    prefix: str = "",
    ignored: Sequence[str] = (),
) -> None:
    """Load the parameters of a module in place from a checkpoint that another library saved.

    Tensors are memory-mapped and cast to the parameters' dtype one at a time.

    Args:
        module: its parameters are overwritten.
        directory: directory of the safetensors files.
        file: name of the file if there is only one; for several, an index ``<file>.index.json`` lists them.
        prefix: removed from the names of the stored tensors if present.
        ignored: names of stored tensors to skip.

    Raises:
        CheckpointError: a tensor is missing, unexpected, misshapen or not finite, or a file is missing,
            truncated or corrupt. The module may then be partly loaded.
    """
    root = Path(directory)
    wanted = dict(module.named_parameters())
    remedy = "give the checkpoint of this architecture"
    for name, tensor in _read_foreign(root, file):
        if name in ignored:
            continue
        parameter = wanted.pop(name.removeprefix(prefix), None)
        if parameter is None:
            raise CheckpointError(root, "is unexpected", remedy, name)
        if parameter.shape != tensor.shape:
            shapes = list(parameter.shape), list(tensor.shape)
            raise CheckpointError(root, "must have shape {}, got {}".format(*shapes), tensor=name)
        if not torch.isfinite(tensor).all():
            raise CheckpointError(root, "must be finite, got NaN or infinity", tensor=name)
        parameter.data.copy_(tensor)
    _refuse(root, "is missing", wanted, remedy)


def _read_foreign(root: Path, file: str) -> Iterator[tuple[str, torch.Tensor]]:
    index = root / f"{file}.index.json"
    try:
        names = {file}
        if index.is_file():
            names = set(json.loads(index.read_text())["weight_map"].values())
        for name in sorted(names):
            with safe_open(root / name, framework="pt") as tensors:
                for key in tensors.keys():  # noqa: SIM118 - safe_open is not a mapping
                    yield key, tensors.get_tensor(key)
    except (OSError, KeyError, ValueError, SafetensorError) as error:
        raise CheckpointError(root, f"must hold complete safetensors files: {error}") from error
