"""Register kernel launches as PyTorch operators, in a namespace of this copy of the package.

The argument record of a family, a NamedTuple, is the only list of its operator's arguments: the operator's
schema is built from the record's fields. The namespace is derived from the name and the folder under which
the package was imported, so several copies can be loaded into one process without replacing each other's
operators.
"""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from types import NoneType
from typing import Any, Generic, TypeVar, get_args, get_type_hints

import torch

from .dispatch import Launch

_TYPES = {torch.Tensor: "Tensor", int: "SymInt", float: "float", str: "str"}
Args = TypeVar("Args", bound=tuple[Any, ...])


def _namespace() -> str:
    package, folder = __name__.removesuffix("._shared.operator"), Path(__file__).resolve().parents[1]
    return "streamchar_" + hashlib.sha256(f"{package}\n{folder}".encode()).hexdigest()[:16]


#: Namespace of the operators of this copy of the package under ``torch.ops``.
NAMESPACE = _namespace()


def schema(record: Callable[..., Any], mutates: Sequence[str]) -> str:
    """Build the schema of an operator whose arguments are the fields of ``record``.

    Args:
        record: a NamedTuple class with fields of type Tensor, int, float or str, each of them or None.
        mutates: names of the tensors that the operator writes.

    Returns:
        such as ``"(Tensor x, float eps, Tensor(a2!)? out) -> ()"``.
    """
    arguments = []
    for index, (name, hint) in enumerate(get_type_hints(record).items()):
        options = get_args(hint) or (hint,)
        (kind,) = (option for option in options if option is not NoneType)
        alias = f"(a{index}!)" if name in mutates else ""
        arguments.append(f"{_TYPES[kind]}{alias}{'?' if NoneType in options else ''} {name}")
    return f"({', '.join(arguments)}) -> ()"


class Operator(Generic[Args]):
    """A registered operator that is called with the argument record of its family.

    Attributes:
        registered: the operator as PyTorch knows it, which takes the record's fields one by one.
        launch: builds the launch of a call. Tests replace it.
    """

    def __init__(
        self, name: str, record: Callable[..., Args], launch: Callable[[Args], Launch], mutates: Sequence[str]
    ) -> None:
        """Register ``name`` for the fields of ``record``, of which it writes those named in ``mutates``."""
        self.launch = launch

        def run(*fields: Any) -> None:
            self.launch(record(*fields)).run()

        self.registered = torch.library.custom_op(
            f"{NAMESPACE}::{name}", run, mutates_args=mutates, schema=schema(record, mutates)
        )
        self.registered.register_fake(lambda *fields: None)

    def __call__(self, args: Args) -> None:
        """Launch the kernel, in eager mode or as a node of a traced graph."""
        self.registered(*args)
