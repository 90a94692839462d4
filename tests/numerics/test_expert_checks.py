"""Wrong arguments of the expert projections are refused by name."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from streamchar.kernels import (
    KernelArgumentError,
    expert_down,
    expert_down_fp8,
    expert_up,
    expert_up_fp8,
)
from tests.numerics.expert_cases import Case, Fp8Case


def misaligned(tensor: torch.Tensor) -> torch.Tensor:
    shifted = tensor.new_empty(tensor.numel() + 1)[1:].view(tensor.shape)
    return shifted.copy_(tensor)


def refused(function: Callable[..., Any], args: dict[str, Any], change: dict[str, Any]) -> str:
    """Call with the changed arguments and return the name of the one that is refused."""
    changed = {name: change[name](value) if name in change else value for name, value in args.items()}
    with pytest.raises(KernelArgumentError) as error:
        function(**changed, backend="triton")
    return error.value.argument


def bad_up() -> Iterator[Any]:
    def change(argument: str, name: str, **change: Any) -> Any:
        return pytest.param(argument, change, id=f"{argument} {name}")

    yield change("x", "int", x=lambda x: x.int())
    yield change("x", "two dimensions", x=lambda x: x[0])
    yield change("x", "no tokens", x=lambda x: x[:, :0])
    yield change("x", "transposed", x=lambda x: x.transpose(0, 1))
    yield change("x", "misaligned", x=misaligned)
    yield change(
        "x.shape[-1]",
        "12 bytes",
        x=lambda x: x[..., :6].contiguous(),
        w_video=lambda w: w[:, :6].contiguous(),
        w_audio=lambda w: w[:, :6].contiguous(),
    )
    yield change("num_video", "negative", num_video=lambda n: -1)
    yield change("num_video", "beyond the tokens", num_video=lambda n: 40)
    yield change("w_video", "another width", w_video=lambda w: w[:, :32])
    yield change("w_video", "transposed", w_video=lambda w: w[:40].t())
    yield change("w_video", "misaligned", w_video=misaligned)
    yield change("w_video", "another dtype", w_video=lambda w: w.float())
    yield change("w_audio", "one dimension", w_audio=lambda w: w[0])
    yield change("w_audio", "another device", w_audio=lambda w: w.to("meta"))
    yield change("w_audio.shape[0]", "12 bytes", w_audio=lambda w: w[:6], b_audio=lambda b: b[:6])
    yield change("b_video", "another length", b_video=lambda b: b[:8])
    yield change("b_audio", "another dtype", b_audio=lambda b: b.float())
    yield change("b_audio", "strided", b_audio=lambda b: b.repeat_interleave(2)[::2])
    yield change("b_video", "another device", b_video=lambda b: b.to("meta"))


@pytest.mark.parametrize(("argument", "change"), list(bad_up()))
def test_up_names_the_argument_it_refuses(
    argument: str, change: dict[str, Any], rng: torch.Generator, device: torch.device
) -> None:
    case = Case(rng, device, torch.bfloat16)
    names = ("w_video", "b_video", "w_audio", "b_audio")
    args = {"x": case.x, "num_video": case.num_video, **dict(zip(names, case.up))}
    assert refused(expert_up, args, change) == argument


def bad_down() -> Iterator[Any]:
    def change(argument: str, name: str, **change: Any) -> Any:
        return pytest.param(argument, change, id=f"{argument} {name}")

    yield change("h_video", "int", h_video=lambda h: h.int())
    yield change("h_video", "another batch", h_video=lambda h: h[:1])
    yield change("h_video", "transposed", h_video=lambda h: h.transpose(0, 1).contiguous().transpose(0, 1))
    yield change("h_audio", "another dtype", h_audio=lambda h: h.float())
    yield change("h_audio", "another device", h_audio=lambda h: h.to("meta"))
    yield change("h_audio", "misaligned", h_audio=misaligned)
    yield change(
        "h_audio.shape[-1]",
        "12 bytes",
        h_audio=lambda h: h[..., :6].contiguous(),
        w_audio=lambda w: w[:, :6].contiguous(),
    )
    yield change("w_audio", "another width", w_audio=lambda w: w[:, :48])
    yield change("w_video", "another dim", w_video=lambda w: w[:32])
    yield change("b_video", "another dtype", b_video=lambda b: b.float())
    yield change("residual", "two dimensions", residual=lambda r: r[0])
    yield change("residual", "empty", residual=lambda r: r[:, :0])
    yield change("residual.shape[1]", "fewer tokens", residual=lambda r: r[:, :30].contiguous())
    yield change("residual.shape[2]", "12 bytes", residual=lambda r: r[..., :6].contiguous())
    yield change("residual", "another dtype", residual=lambda r: r.float())
    yield change("residual", "strided", residual=lambda r: r.repeat(1, 1, 2)[..., :40])
    yield change("residual", "another device", residual=lambda r: r.to("meta"))
    yield change("gate", "another dim", gate=lambda g: g[..., :32])
    yield change("gate", "strided", gate=lambda g: g.repeat_interleave(2, 2)[..., ::2])
    yield change("gate", "int", gate=lambda g: g.int())
    yield change("gate.shape[1]", "no rows", gate=lambda g: g[:, :0])
    yield change("row_index", "another length", row_index=lambda r: r[:, :5])
    yield change("row_index", "int64", row_index=lambda r: r.long())
    yield change("row_index", "strided", row_index=lambda r: r.repeat_interleave(2, 1)[:, ::2])
    yield change("row_index", "another device", row_index=lambda r: r.to("meta"))


@pytest.mark.parametrize(("argument", "change"), list(bad_down()))
def test_down_names_the_argument_it_refuses(
    argument: str, change: dict[str, Any], rng: torch.Generator, device: torch.device
) -> None:
    case = Case(rng, device, torch.bfloat16)
    names = ("h_video", "h_audio", "w_video", "b_video", "w_audio", "b_audio")
    args = dict(zip(names, (*case.h, *case.down)))
    args |= {"residual": case.residual, "gate": case.gate, "row_index": case.row_index}
    assert refused(expert_down, args, change) == argument


@pytest.mark.parametrize(
    ("position", "argument", "change"),
    [
        (0, "x8", lambda t: t.float()),
        (1, "x_scale", lambda t: t[:, :3]),
        (1, "x_scale", lambda t: t.double()),
        (2, "w8_video", lambda t: t.float()),
        (3, "ws_video", lambda t: t[:8]),
        (4, "b_video", lambda t: t.double()),
        (6, "ws_audio", lambda t: t.repeat_interleave(2)[::2]),
        (6, "ws_audio", lambda t: t.to("meta")),
    ],
)
def test_up_fp8_names_the_argument_it_refuses(
    position: int, argument: str, change: Any, rng: torch.Generator, device: torch.device
) -> None:
    case = Fp8Case(rng, device)
    args = [*case.x8, *case.up8]
    args[position] = change(args[position])
    with pytest.raises(KernelArgumentError) as error:
        expert_up_fp8(*args, num_video=case.num_video, backend="triton")
    assert error.value.argument == argument


@pytest.mark.parametrize(
    ("position", "argument", "change"),
    [
        (0, "h8_video", lambda t: t.float()),
        (1, "hs_video", lambda t: t[:, :3]),
        (3, "hs_audio", lambda t: t.double()),
        (5, "ws_video", lambda t: t[:8]),
        (8, "ws_audio", lambda t: t.half()),
        (10, "residual", lambda t: t.double()),
        (11, "gate", lambda t: t[..., :32]),
    ],
)
def test_down_fp8_names_the_argument_it_refuses(
    position: int, argument: str, change: Any, rng: torch.Generator, device: torch.device
) -> None:
    case = Fp8Case(rng, device)
    args = [*case.h8, *case.down8, case.residual, case.gate, case.row_index]
    args[position] = change(args[position])
    with pytest.raises(KernelArgumentError) as error:
        expert_down_fp8(*args, backend="triton")
    assert error.value.argument == argument


def test_up_fp8_refuses_an_output_dtype_it_cannot_write(rng: torch.Generator, device: torch.device) -> None:
    case = Fp8Case(rng, device)
    with pytest.raises(KernelArgumentError, match=r"^out_dtype must be bfloat16 or float16 or float32"):
        case.run_up8(out_dtype=torch.float64)
