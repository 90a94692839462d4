"""Convert configs to and from JSON objects; reading checks every field."""

import typing
from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields, is_dataclass
from typing import Any

from .checks import ConfigError
from .presets import Preset, preset


def config_to_json(config: object) -> dict[str, Any]:
    """Return a config dataclass, such as a :class:`Preset`, as a dict that ``json`` can write.

    Raises:
        ConfigError: ``config`` is not a dataclass instance.
    """
    if not is_dataclass(config) or isinstance(config, type):
        raise ConfigError("config", "a dataclass or a dict", repr(config))
    return asdict(config)


def preset_from_json(value: object) -> Preset:
    """Return the preset that a JSON value describes.

    Args:
        value: the dict that :func:`config_to_json` returned, or the name of a preset.

    Raises:
        ConfigError: a field is unknown, missing, of the wrong type or out of range; the message gives its
            path, such as ``dit.heads``.
    """
    if isinstance(value, str):
        return preset(value)
    built: Preset = _decode(Preset, value, "")
    return built


def _decode(kind: Any, value: object, path: str) -> Any:
    """Convert a parsed JSON value to type ``kind``; ``path`` names the field in errors."""

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
        raise ConfigError(path, f"{kind.__name__}", "a number that is too large") from None


def _decode_dataclass(kind: type, value: Mapping[str, object], path: str) -> Any:
    prefix = f"{path}." if path else ""
    known = {entry.name: entry for entry in fields(kind)}
    for name in value:
        limit = "a known field: " + ", ".join(known)
        if name not in known:
            raise ConfigError(f"{prefix}{name}", limit, "an unknown field")
    for name, entry in known.items():
        if name not in value and entry.default is MISSING and entry.default_factory is MISSING:
            raise ConfigError(f"{prefix}{name}", "present", "nothing")
    types_of = typing.get_type_hints(kind)
    decoded = {name: _decode(types_of[name], item, f"{prefix}{name}") for name, item in value.items()}
    try:
        return kind(**decoded)
    except ConfigError as error:
        raise ConfigError(f"{prefix}{error.argument}", error.limit, error.value, error.remedy) from error
