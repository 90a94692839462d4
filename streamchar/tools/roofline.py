"""Predict the least time of every kernel and of a whole chunk from FLOP, bytes and a device's peak rates.

Launch gaps, cache hits between launches and the decoders are not modelled: this is a prediction, not a
measurement.

Run as ``python -m streamchar.tools.roofline --preset 5b``.
"""

import sys
from dataclasses import replace
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from ..config import PRESETS, ConfigError, Preset, preset
from .costs import (
    BYTES,
    DEVICES,
    Cost,
    Device,
    Precision,
    chunk_costs,
    frames_cost,
    kernel_costs,
    recompute_costs,
    repeated,
    total_bytes,
    total_compute_seconds,
    total_floor_seconds,
    total_flop,
)


def kernel_table(config: Preset, device: Device, precision: Precision) -> Table:
    """Return a table of the floors of every kernel, per launch and per denoising step."""
    out = _table(
        f"prediction: kernels of a {config.name} denoising step in {precision} on {device.name}, "
        f"{config.noisy_tokens} x {config.cached_tokens + config.noisy_tokens} tokens",
        "kernel", "launches", "FLOP", "bytes", "FLOP/byte",
        "compute us", "memory us", "floor us", "bound", "step ms",
    )  # fmt: skip
    costs = kernel_costs(config, precision)
    for cost in [*costs, replace(frames_cost(config), launches=0)]:
        out.add_row(
            cost.name,
            str(cost.launches) if cost.launches else "once per chunk",
            f"{cost.flop:.2e}",
            f"{cost.bytes:.2e}",
            f"{cost.flop / cost.bytes:.1f}",
            f"{cost.compute_seconds(device) * 1e6:.1f}",
            f"{cost.memory_seconds(device) * 1e6:.1f}",
            f"{cost.floor_seconds(device) * 1e6:.1f}",
            cost.bound(device),
            f"{cost.floor_seconds(device) * cost.launches * 1e3:.2f}",
        )
    out.add_section()
    for label, share in (("one layer", config.dit.layers), ("one step", 1)):
        chosen = [cost for cost in costs if share == 1 or cost.launches == share]
        out.add_row(
            label,
            str(sum(cost.launches for cost in chosen) // share),
            f"{total_flop(chosen) / share:.2e}",
            f"{total_bytes(chosen) / share:.2e}",
            f"{total_flop(chosen) / total_bytes(chosen):.1f}",
            f"{total_compute_seconds(chosen, device) / share * 1e6:.1f}",
            f"{total_bytes(chosen) / share / device.bandwidth * 1e6:.1f}",
            f"{total_floor_seconds(chosen, device) / share * 1e6:.1f}",
            "",
            f"{total_floor_seconds(chosen, device) / share * 1e3:.2f}",
        )
    return out


def chunk_table(config: Preset, device: Device) -> Table:
    """Return a table of a chunk's stages in bf16 and fp8, their share of playback, and the uncached costs."""
    budget = config.seconds
    out = _table(
        f"prediction: one {config.name} chunk on {device.name}, {config.chunk.latent_frames} latent frames = "
        f"{config.frames} frames = {budget * 1e3:.0f} ms of playback",
        "stage", "FLOP", "bf16 arithmetic ms", "bf16 floor ms", "fp8 floor ms", "bf16 share of budget",
    )  # fmt: skip

    def row(stage: str, bf16: list[Cost], fp8: list[Cost]) -> None:
        floor = total_floor_seconds(bf16, device)
        out.add_row(
            stage,
            f"{total_flop(bf16):.2e}",
            f"{total_compute_seconds(bf16, device) * 1e3:.1f}",
            f"{floor * 1e3:.1f}",
            f"{total_floor_seconds(fp8, device) * 1e3:.1f}",
            f"{floor / budget:.1%}",
        )

    stages, stages8 = chunk_costs(config), chunk_costs(config, "fp8")
    for stage, costs in stages.items():
        row(stage, costs, stages8[stage])
    out.add_section()
    for label, chosen in (
        ("critical path", [stage for stage in stages if "overlapped" not in stage]),
        ("all work", list(stages)),
    ):
        row(label, *([cost for stage in chosen for cost in each[stage]] for each in (stages, stages8)))
    out.add_section()
    steps = config.sampler.steps
    recomputed = [repeated(recompute_costs(config, precision), steps) for precision in ("bf16", "fp8")]
    row(f"{steps} steps, conditioning recomputed", *recomputed)
    return out


def _table(title: str, *headings: str) -> Table:
    out = Table(title=title, title_justify="left", box=box.SIMPLE, padding=(0, 1, 0, 0))
    for heading in headings:
        out.add_column(heading, justify="right" if out.columns else "left", no_wrap=True)
    return out


def notes(config: Preset, device: Device) -> list[str]:
    """Return notes on the tables: the peak rates, the time to read the weights, and what is not modelled."""
    weights = BYTES["bf16"] * config.dit.parameters
    copy = f", {device.copy_bandwidth / 1e12:.2f} measured with a copy" if device.copy_bandwidth else ""
    rates = ", ".join(f"{unit} {rate / 1e12:.0f}" for unit, rate in device.flops.items())
    return [
        f"peak rates: {device.bandwidth / 1e12:.2f} TB/s{copy}; TFLOP/s {rates} ({device.source})",
        f"transformer weights: {config.dit.parameters / 1e9:.2f} G, "
        f"{weights / device.bandwidth * 1e3:.2f} ms per step to read them in bf16",
        "not modelled: embeddings and output heads (under 1 %), decoders, launch gaps, copies to the host",
    ]


def main(
    preset_name: Annotated[str, typer.Option("--preset", help=" or ".join(PRESETS))] = "5b",
    device: Annotated[str, typer.Option(help=" or ".join(DEVICES))] = "h100",
    latent_frames: Annotated[
        int | None, typer.Option(help="Latent frames per chunk; default: those of the preset.")
    ] = None,
) -> None:
    """Print the predicted least time of every kernel and of a whole chunk. Nothing is measured."""
    console = Console(width=None if sys.stdout.isatty() else 200, highlight=False)
    try:
        config = preset(preset_name)
        if latent_frames is not None:
            config = config.with_latent_frames(latent_frames)
        if device not in DEVICES:
            raise ConfigError("device", " or ".join(map(repr, DEVICES)), repr(device))
    except ConfigError as error:
        console.print(f"roofline: {error}", style="red", markup=False)
        raise typer.Exit(2) from None
    gpu = DEVICES[device]
    console.print(kernel_table(config, gpu, "bf16"))
    console.print(kernel_table(config, gpu, "fp8"))
    console.print(chunk_table(config, gpu))
    for note in notes(config, gpu):
        console.print(note, markup=False, soft_wrap=True)


if __name__ == "__main__":
    typer.run(main)
