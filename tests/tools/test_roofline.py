"""The cost model reproduces the figures that the design states."""

import pytest
import typer
from typer.testing import CliRunner

from streamchar.config import PRESETS, preset
from streamchar.tools import roofline
from streamchar.tools.costs import (
    DEVICES,
    Cost,
    attention_cost,
    chunk_costs,
    frames_cost,
    gemm_cost,
    kernel_costs,
    layer_costs,
    motion_commit_costs,
    orchestrator_cost,
    recompute_costs,
    total_bytes,
    total_compute_seconds,
    total_floor_seconds,
    total_flop,
)

H100, H200, CONFIG = DEVICES["h100"], DEVICES["h200"], preset("5b")


def by_name(costs: list[Cost]) -> dict[str, Cost]:
    named = {cost.name: cost for cost in costs}
    assert len(named) == len(costs)
    return named


def test_a_denoising_step_is_2_1e13_flop():
    # The design states two digits and counts every token at the video expert; the smaller audio expert makes
    # it 1 % less.
    assert total_flop(kernel_costs(CONFIG)) == pytest.approx(2.1e13, rel=0.03)


def test_attention_is_half_of_1e13_flop_a_step():
    joint = by_name(kernel_costs(CONFIG))["attention/joint"]
    assert joint.flop * joint.launches == 4 * 2080 * 6432 * 3072 * 30
    assert joint.flop * joint.launches == pytest.approx(0.5e13, rel=0.02)


def test_four_steps_cannot_go_below_a_tenth_of_a_second():
    assert 4 * total_compute_seconds(kernel_costs(CONFIG), H100) == pytest.approx(0.10, abs=0.005)


def test_recomputed_conditioning_is_2_6e14_flop_and_0_32_seconds():
    assert 4 * total_flop(recompute_costs(CONFIG)) == pytest.approx(2.6e14, rel=0.03)
    assert 4 * total_compute_seconds(recompute_costs(CONFIG), H100) == pytest.approx(0.32, abs=0.005)


def test_the_motion_commit_is_2e13_flop():
    assert total_flop(motion_commit_costs(CONFIG)) == pytest.approx(2e13, rel=0.1)


def test_reading_the_weights_takes_2_7_ms():
    assert 2 * CONFIG.dit.parameters / H100.bandwidth == pytest.approx(2.7e-3, abs=0.05e-3)


def test_the_traffic_of_a_step_holds_its_weights():
    assert total_bytes(kernel_costs(CONFIG)) > 2 * CONFIG.dit.parameters


def test_an_orchestrator_step_is_bound_by_reading_its_weights():
    # The design's 6 GB and 1.8 ms include the embedding, 10 % of the parameters, which a step does not read.
    step = orchestrator_cost(CONFIG, 32, 648)
    assert step.bound(H100) == "memory"
    assert 1.6e-3 < step.floor_seconds(H100) < 1.8e-3


def test_matrix_products_are_compute_bound_and_fused_passes_not():
    costs = by_name(kernel_costs(CONFIG))
    for name, cost in costs.items():
        matrix = name.partition("/")[0] in ("attention", "gemm", "experts")
        assert cost.bound(H100) == ("compute" if matrix else "memory"), name
        assert cost.launches == (30 if name != "sampler/renoise" else 1)


def test_bytes_are_those_stated_in_the_kernel_files():
    # norm 2 N d e; gated norm 4 N d e; QKV prologue 2 x 3 N d e and 4 N D of tables; update N (2 x 4 + 2).
    costs, stream = by_name(kernel_costs(CONFIG)), 2080 * 3072
    assert costs["modulation/norm"].bytes == 2 * stream * 2
    assert costs["modulation/gated norm"].bytes == 4 * stream * 2
    assert costs["qkv_prologue/rope"].bytes == 2 * 3 * stream * 2 + 4 * 2080 * 128
    assert costs["sampler/renoise"].bytes == (8 * 48 * 32 * 32 + 32 * 64) * 10
    assert frames_cost(CONFIG).bytes == 32 * 512 * 512 * (3 * 2 + 1.5)
    assert frames_cost(CONFIG, yuv=False).bytes == 32 * 512 * 512 * (3 * 2 + 3)


def test_a_gemm_moves_each_operand_once():
    cost = gemm_cost("gemm/x", 3, 5, 7, "bf16")
    assert (cost.flop, cost.bytes) == (2 * 3 * 5 * 7, 2 * (3 * 7 + 7 * 5 + 3 * 5))
    assert gemm_cost("gemm/x", 3, 5, 7, "fp8").bytes == (3 * 7 + 7 * 5) + 2 * 3 * 5


def test_fp8_attention_moves_half_the_operands():
    wide, narrow = (attention_cost("a", 2080, 6432, 24, 128, precision) for precision in ("bf16", "fp8"))
    assert wide.flop == narrow.flop
    assert wide.bytes - narrow.bytes == (2080 + 2 * 6432) * 3072


def test_fp8_adds_quantising_passes_but_lowers_the_floor():
    wide, narrow = kernel_costs(CONFIG), kernel_costs(CONFIG, "fp8")
    extra = set(by_name(narrow)) - set(by_name(wide))
    assert extra == {"modulation/quantize attention", "modulation/quantize hidden"}
    assert total_floor_seconds(narrow, H100) < 0.75 * total_floor_seconds(wide, H100)


def test_experts_split_tokens_by_modality():
    up = by_name(kernel_costs(CONFIG))["experts/up"]
    assert up.flop == 2 * 3072 * (2048 * 14336 + 32 * 4096)
    without_audio = by_name(layer_costs(CONFIG, 2048, 0, 6432))["experts/up"]
    assert up.bytes - without_audio.bytes == 2 * (32 * 3072 + 3072 * 4096 + 32 * 4096)


def test_a_floor_is_the_larger_of_compute_and_memory():
    compute, memory = Cost("x", 8e12, 1.0), Cost("x", 1.0, 3.35e12)
    assert compute.floor_seconds(H100) == pytest.approx(0.01)
    assert (compute.bound(H100), memory.bound(H100)) == ("compute", "memory")
    assert memory.floor_seconds(H100) == pytest.approx(1.0)
    assert memory.floor_seconds(H200) == pytest.approx(3.35 / 4.8)


def test_a_chunk_fits_the_playback_budget():
    stages = chunk_costs(CONFIG)
    assert list(stages)[:2] == ["4 orchestrator steps", "4 denoising steps"]
    assert sum(total_floor_seconds(costs, H100) for costs in stages.values()) < CONFIG.seconds
    assert total_flop(stages["4 denoising steps"]) == pytest.approx(4 * total_flop(kernel_costs(CONFIG)))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("frames", [8, 9])
def test_every_table_is_labelled_a_prediction(name, device, frames):
    result = invoke("--preset", name, "--device", device, "--latent-frames", str(frames))
    assert result.exit_code == 0, result.output
    assert result.output.count("prediction: ") == 3
    for expected in (
        "attention/joint",
        "experts/down",
        "one layer",
        "critical path",
        "of playback",
        "recomputed",
    ):
        assert expected in result.output


def test_the_printed_5b_table_shows_the_figures_of_the_design():
    output = invoke().output
    assert "H100 SXM, 2080 x 6432 tokens" in output
    assert "transformer weights: 4.53 G, 2.70 ms per step" in output
    assert "8 latent frames = 32 frames = 1333 ms of playback" in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("--preset", "6b"), "preset must be"), (("--device", "b200"), "device must be"),
     (("--latent-frames", "0"), "latent_frames must be")],
)  # fmt: skip
def test_an_invalid_option_is_named(arguments, message):
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert message in result.output


def invoke(*arguments: str):
    app = typer.Typer()
    app.command()(roofline.main)
    return CliRunner().invoke(app, list(arguments))
