"""The gate passes for the shipped kernels and fails for a kernel that became worse.

The rest of this suite runs in the interpreter, which compiles nothing. So this file is also a script, which a
process of its own runs: it compiles the cases below and prints their figures.
"""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner

from streamchar.kernels._shared.compat import tl, triton
from streamchar.kernels._shared.dispatch import Launch
from streamchar.kernels.modulation import forward as modulation
from streamchar.kernels.modulation.arguments import ModulationArgs
from streamchar.tools import codegen
from streamchar.tools.codegen import CodegenError, gate, read_baseline, write_baseline
from streamchar.tools.sass import Figures, compare, faults

ROOT = Path(__file__).parents[1]
BASELINE = ROOT / codegen.BASELINE


@triton.jit
def _matmul_kernel(
    out_ptr,
    a_ptr,
    b_ptr,
    k_size,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
    IMPRECISE: tl.constexpr = None,
):
    rows, cols, inner = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_K)
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for k in range(0, k_size, BLOCK_K):
        a = tl.load(a_ptr + rows[:, None] * k_size + k + inner[None, :])
        b = tl.load(b_ptr + cols[:, None] * k_size + k + inner[None, :])
        total = tl.dot(a, tl.trans(b), total, input_precision=PRECISION, max_num_imprecise_acc=IMPRECISE)
    tl.store(out_ptr + rows[:, None] * BLOCK_N + cols[None, :], total.to(out_ptr.dtype.element_ty))


def _matmul(
    dtype: torch.dtype,
    block_m: int,
    precision: str = "tf32",
    num_stages: int = 3,
    block_k: int = 32,
    imprecise: int | None = None,
) -> Launch:
    block_n, k = 64, 1024
    args = {
        "out_ptr": torch.empty((block_m, block_n), dtype=dtype, device="meta"),
        "a_ptr": torch.empty((block_m, k), dtype=dtype, device="meta"),
        "b_ptr": torch.empty((block_n, k), dtype=dtype, device="meta"),
        "k_size": k,
        "BLOCK_M": block_m,
        "BLOCK_N": block_n,
        "BLOCK_K": block_k,
        "PRECISION": precision,
        "IMPRECISE": imprecise,
    }
    return Launch(_matmul_kernel, (1,), args, num_warps=4, num_stages=num_stages)


def _norm(dim: int, stride: int) -> Launch:
    x = torch.empty((1, 64, stride), dtype=torch.bfloat16, device="meta")[..., :dim]
    return modulation.launch(ModulationArgs(x, out=x))


def _cases() -> dict[str, Launch]:
    return {
        "matmul/bf16": _matmul(torch.bfloat16, 64),
        "matmul/short tile": _matmul(torch.bfloat16, 16),
        "matmul/exact fp32": _matmul(torch.float32, 64, "ieee"),
        "matmul/unpipelined": _matmul(torch.bfloat16, 64, num_stages=1),
        "matmul/fp8": _matmul(torch.float8_e4m3fn, 64, block_k=128),
        "matmul/fp8, sums read back": _matmul(torch.float8_e4m3fn, 64, block_k=128, imprecise=64),
        "norm/aligned": _norm(3072, 3072),
        "norm/odd stride": _norm(3072, 3073),
        "norm/wide": _norm(16384, 16384),
        "norm/wide in one warp": replace(_norm(16384, 16384), num_warps=1),
    }


def _run(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run([sys.executable, *arguments], cwd=cwd, env=clean, capture_output=True, text=True)


@pytest.fixture(scope="module")
def compiled() -> dict[str, Figures]:
    done = _run(__file__)
    assert done.returncode == 0, done.stderr
    return {name: Figures.from_json(fields) for name, fields in json.loads(done.stdout).items()}


# Good and bad kernels, with the real compiler.


def test_the_shipped_kernels_pass_the_gate():
    done = _run("-m", "streamchar.codegen")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "modulation  " in done.stdout


def test_a_spilling_configuration_fails(compiled):
    good, bad = compiled["norm/wide"], compiled["norm/wide in one warp"]
    assert not faults(good)
    assert bad.op("LDL") > 0
    assert bad.op("STL") > 0
    (message,) = [m for m in gate({"norm/wide": bad}, {"norm/wide": good}) if "spills" in m]
    assert message.startswith("kernel norm, configuration wide: spills 0 -> ")


@pytest.mark.parametrize(("worse", "instead"), [("short tile", "HMMA"), ("exact fp32", None)])
def test_a_matmul_that_loses_its_tensor_cores_fails(compiled, worse, instead):
    good, bad = compiled["matmul/bf16"], compiled[f"matmul/{worse}"]
    assert good.op("HGMMA") > 0
    assert instead is None or bad.op(instead) > 0
    (message,) = [m for m in gate({"matmul/x": bad}, {"matmul/x": good}) if "HGMMA" in m]
    assert f"HGMMA {good.op('HGMMA')} -> 0: the matmul lost its tensor-core instruction" in message


def test_a_matmul_that_loses_its_asynchronous_copies_fails(compiled):
    figures = {r.figure for r in compare(compiled["matmul/bf16"], compiled["matmul/unpipelined"])}
    assert "LDGSTS" in figures


def test_matrix_instructions_that_wait_for_one_another_fail(compiled):
    assert compiled["matmul/fp8"].op("QGMMA")
    assert not faults(compiled["matmul/fp8"])
    assert compiled["matmul/fp8, sums read back"].op("QGMMA")
    assert [found.figure for found in faults(compiled["matmul/fp8, sums read back"])] == [
        "matrix instructions"
    ]


def test_an_odd_stride_narrows_the_loads_and_fails(compiled):
    good, bad = compiled["norm/aligned"], compiled["norm/odd stride"]
    assert max(good.loads) == 128
    assert max(bad.loads) < 128
    (regression,) = [r for r in compare(good, bad) if r.figure == "global loads"]
    assert regression.reason == "a vectorised access narrowed"
    assert str(regression).startswith("global loads 100% of bytes at least 128 bits wide [")


def test_equal_figures_are_no_regression(compiled):
    for figures in compiled.values():
        assert not compare(figures, figures)


# What counts as a regression.

RESOURCES = {"registers": 168, "stack_bytes": 0, "shared_bytes": 65536, "threads": 128, "blocks_per_sm": 3}
GEMM = Figures(
    **RESOURCES,
    instructions=900,
    ops={"HGMMA": 8, "UTMALDG": 4, "UTMASTG": 2, "LDGSTS": 6, "USETMAXREG": 2},
    loads={128: 10, 64: 4, 32: 1},
    stores={128: 8},
)


def with_ops(**ops: int) -> Figures:
    return replace(GEMM, ops={**GEMM.ops, **ops})


@pytest.mark.parametrize(
    ("after", "figure", "said"),
    [
        (with_ops(HGMMA=0), "HGMMA", "8 -> 0"),
        (with_ops(HGMMA=0, HMMA=64), "HGMMA", "8 -> 0"),
        (with_ops(HMMA=16), "HMMA", "fell from a warp-group to a warp instruction"),
        (with_ops(LDL=1), "spills", "0 local accesses, 0 stack bytes -> 1 local accesses"),
        (with_ops(STL=1), "spills", "1 local accesses"),
        (replace(GEMM, stack_bytes=8), "spills", "8 stack bytes"),
        (replace(GEMM, blocks_per_sm=2, registers=200), "occupancy", "19% (3 blocks) -> 12% (2 blocks)"),
        (replace(GEMM, blocks_per_sm=2, registers=200), "occupancy", "registers 168 -> 200"),
        (with_ops(UTMALDG=0), "UTMALDG", "4 -> 0"),
        (with_ops(UTMASTG=0), "UTMASTG", "2 -> 0"),
        (with_ops(LDGSTS=0), "LDGSTS", "6 -> 0"),
        (with_ops(USETMAXREG=0), "USETMAXREG", "2 -> 0"),
        (replace(GEMM, loads={64: 20, 32: 9}), "global loads", "[10/4/1/0/0] -> 0% [0/20/9/0/0]"),
        (replace(GEMM, loads={128: 8, 64: 4, 32: 9}), "global loads", "narrowed"),
        (replace(GEMM, loads={128: 10, 32: 9}), "global loads", "at least 64 bits"),
        (replace(GEMM, stores={128: 7, 16: 8}), "global stores", "100%"),
    ],
)
def test_each_kind_of_regression_is_named_with_before_and_after(after, figure, said):
    (message,) = gate({"gemm/up bf16": after}, {"gemm/up bf16": GEMM})[:1] or [""]
    assert message.startswith(f"kernel gemm, configuration up bf16: {figure} ")
    (regression,) = [each for each in compare(GEMM, after) if each.figure == figure]
    assert said in str(regression)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (GEMM, replace(GEMM, registers=180)),
        (GEMM, replace(GEMM, instructions=2000)),
        (GEMM, with_ops(HGMMA=4)),
        (GEMM, replace(GEMM, loads={128: 10, 64: 4, 32: 2})),
        (GEMM, replace(GEMM, threads=256, blocks_per_sm=2)),
        (GEMM, with_ops(UTMALDG=8, LDGSTS=0)),
        (GEMM, replace(with_ops(UTMALDG=8), loads={32: 1})),
        (GEMM, replace(with_ops(UTMASTG=4), stores={32: 1})),
        (GEMM, replace(GEMM, loads={})),
        (with_ops(HGMMA=0, HMMA=64), GEMM),
        (with_ops(LDL=2), with_ops(LDL=1)),
    ],
)
def test_a_change_for_the_better_or_a_register_alone_passes(before, after):
    assert compare(before, after) == []


def test_a_warp_matmul_that_falls_to_plain_arithmetic_is_a_regression():
    (regression,) = compare(with_ops(HGMMA=0, HMMA=64), with_ops(HGMMA=0))
    assert (regression.figure, regression.before, regression.after) == ("HMMA", 64, 0)


def test_a_kernel_that_cannot_run_fails_even_as_its_own_baseline():
    stuck = replace(GEMM, blocks_per_sm=0, shared_bytes=240000)
    (message,) = gate({"gemm/x": stuck}, {"gemm/x": stuck})
    assert "no block of 168 registers, 128 threads, 240000 shared bytes fits in sm_90" in message


def test_a_missing_record_fails_and_so_does_a_missing_kernel():
    new, gone = gate({"gemm/new": GEMM}, {"gemm/gone": GEMM})
    assert new.startswith("kernel gemm, configuration new: no recorded baseline")
    assert "--update" in new
    assert gone == "kernel gemm, configuration gone: in the baseline, but no longer shipped"


def test_a_family_may_name_the_launches_that_spill():
    spilling = with_ops(LDL=1)
    assert gate({"gemm/x": spilling}, {"gemm/x": spilling})
    assert gate({"gemm/x": spilling}, {"gemm/x": spilling}, spills_allowed={"gemm/x"}) == []
    assert gate({"gemm/x": with_ops(LDL=2)}, {"gemm/x": spilling}, spills_allowed={"gemm/x"})


# The command, with the compiler replaced.


@pytest.fixture
def measured(monkeypatch) -> dict[str, Figures]:
    figures = {"gemm/up": GEMM, "norm/rms": replace(GEMM, ops={})}
    monkeypatch.setattr(codegen, "triton_version", lambda: "3.7.1")
    monkeypatch.setattr(codegen, "shipped_launches", lambda: dict.fromkeys(figures))
    monkeypatch.setattr(codegen, "compile_launches", lambda chosen: {name: figures[name] for name in chosen})
    return figures


def invoke(*arguments: str):
    app = typer.Typer()
    app.command()(codegen.main)
    result = CliRunner().invoke(app, list(arguments))
    return result.exit_code, " ".join(result.output.split())


def test_the_table_shows_every_figure(measured, tmp_path):
    code, output = invoke("--update", "--baseline", str(tmp_path / "b.json"))
    assert code == 0
    for shown in ("gemm up 168 0 0/0 65536 128 3 19% 8 HGMMA 4/2 6 0 10/4/1/0/0 8/0/0/0/0 2 900", "norm rms"):
        assert shown in output


def test_update_records_and_the_gate_then_passes(measured, tmp_path):
    path = tmp_path / "new" / "b.json"
    assert invoke("--update", "--baseline", str(path))[0] == 0
    assert read_baseline(path) == {"3.7.1": measured}
    assert invoke("--baseline", str(path))[0] == 0


def test_a_regression_exits_with_1_and_both_figures(measured, tmp_path):
    write_baseline(tmp_path / "b.json", {"3.7.1": measured})
    measured["gemm/up"] = with_ops(HGMMA=0)
    code, output = invoke("--baseline", str(tmp_path / "b.json"))
    assert code == 1
    assert "FAIL kernel gemm, configuration up: HGMMA 8 -> 0" in output


def test_a_register_count_alone_is_shown_and_passes(measured, tmp_path):
    write_baseline(tmp_path / "b.json", {"3.7.1": measured})
    measured["gemm/up"] = replace(GEMM, registers=160)
    code, output = invoke("--baseline", str(tmp_path / "b.json"))
    assert code == 0
    assert "kernel gemm, configuration up: registers 168 -> 160" in output


def test_a_kernel_gone_from_the_tree_exits_with_1(measured, tmp_path):
    write_baseline(tmp_path / "b.json", {"3.7.1": {**measured, "gemm/down": GEMM}})
    code, output = invoke("--baseline", str(tmp_path / "b.json"))
    assert code == 1
    assert "kernel gemm, configuration down: in the baseline, but no longer shipped" in output


def test_a_triton_version_without_figures_exits_with_1_and_the_remedy(measured, tmp_path):
    write_baseline(tmp_path / "b.json", {"3.6.0": measured})
    code, output = invoke("--baseline", str(tmp_path / "b.json"))
    assert code == 1
    assert "no figures for Triton 3.7.1 (it has: 3.6.0); record them with --update" in output


def test_an_absent_baseline_fails_after_the_table_with_the_remedy(measured, tmp_path):
    code, output = invoke("--baseline", str(tmp_path / "absent.json"))
    assert code == 2
    assert "8 HGMMA" in output
    assert "run from the repository root, name one with --baseline, or record one with --update" in output


@pytest.mark.parametrize("text", ["[]", "{", '{"3.7.1": {"gemm/up": {"registers": 1}}}'])
def test_a_file_that_is_no_baseline_is_named(measured, tmp_path, text):
    (tmp_path / "b.json").write_text(text)
    code, output = invoke("--baseline", str(tmp_path / "b.json"))
    assert code == 2
    assert "is not a codegen baseline" in output


def test_update_keeps_other_versions_and_drops_what_is_gone(measured, tmp_path):
    path = tmp_path / "b.json"
    write_baseline(path, {"3.6.0": {"old/x": GEMM}, "3.7.1": {"gone/x": GEMM}})
    assert invoke("--update", "--baseline", str(path))[0] == 0
    assert read_baseline(path) == {"3.6.0": {"old/x": GEMM}, "3.7.1": measured}


def test_only_limits_what_is_compared_and_recorded(measured, tmp_path):
    path = tmp_path / "b.json"
    write_baseline(path, {"3.7.1": {"gemm/up": with_ops(HGMMA=4), "norm/rms": with_ops(LDGSTS=7)}})
    assert invoke("--only", "gemm/*", "--baseline", str(path))[0] == 0
    assert invoke("--only", "gemm/*", "--update", "--baseline", str(path))[0] == 0
    assert read_baseline(path)["3.7.1"] == {"gemm/up": GEMM, "norm/rms": with_ops(LDGSTS=7)}
    code, output = invoke("--only", "conv/*", "--baseline", str(path))
    assert code == 2
    assert "no shipped kernel matches 'conv/*'" in output


def test_update_refuses_to_record_a_spill(measured, tmp_path):
    measured["gemm/up"] = with_ops(STL=3)
    code, output = invoke("--update", "--baseline", str(tmp_path / "b.json"))
    assert code == 1
    assert "kernel gemm, configuration up: spills 0 -> 3 local accesses" in output
    assert not (tmp_path / "b.json").exists()


def test_the_measured_figures_are_written_as_json(measured, tmp_path):
    path = tmp_path / "out.json"
    invoke("--json", str(path), "--baseline", str(tmp_path / "absent.json"))
    assert read_baseline(path) == {"3.7.1": measured}


def test_a_recorded_file_is_sorted_for_readable_diffs(measured, tmp_path):
    path, again = tmp_path / "a.json", tmp_path / "b.json"
    write_baseline(path, {"3.7.1": measured, "3.6.0": measured})
    write_baseline(again, {"3.6.0": measured, "3.7.1": dict(reversed(measured.items()))})
    assert path.read_text() == again.read_text()
    assert '   "registers": 168,\n' in path.read_text()


@pytest.mark.skipif(not codegen.INTERPRETED, reason="kernels are compiled here")
def test_the_interpreter_is_refused():
    for run in (codegen.run_gate, lambda: codegen.compile_launch(_norm(64, 64))):
        with pytest.raises(CodegenError, match="TRITON_INTERPRET=1"):
            run()


def test_an_absent_triton_is_refused(monkeypatch):
    monkeypatch.setattr(codegen, "HAS_TRITON", False)
    with pytest.raises(CodegenError, match="needs the triton package"):
        codegen.require_compiler()


def test_a_kernel_that_does_not_compile_is_named(monkeypatch):
    def fail(launch):
        raise ValueError("no such type")

    monkeypatch.setattr(codegen, "require_compiler", lambda: None)
    monkeypatch.setattr(codegen, "_compile", fail)
    with pytest.raises(
        CodegenError, match=r"kernel gemm, configuration up: does not compile .* no such type"
    ):
        codegen.compile_launches({"gemm/up": None})


def test_every_family_ships_under_a_name_of_its_own(monkeypatch):
    launches = codegen.shipped_launches()
    assert "modulation/rms bf16" in launches
    assert all(isinstance(launch, Launch) for launch in launches.values())
    for names in ({"noslash": None}, {"modulation/rms bf16": None}):
        with monkeypatch.context() as patch:
            double = type("Family", (), {"shipped": lambda names=names: names, "__name__": "double"})
            patch.setattr(codegen, "_families", lambda double=double: [modulation, double])
            with pytest.raises(CodegenError, match="must name family/configuration once"):
                codegen.shipped_launches()


def test_the_recorded_baseline_has_both_versions_and_no_spill():
    versions = read_baseline(BASELINE)
    assert {"3.6.0", "3.7.1"} <= set(versions)
    for recorded in versions.values():
        assert not [name for name, figures in recorded.items() if faults(figures)]


if __name__ == "__main__":
    figures = codegen.compile_launches(_cases())
    print(json.dumps({name: each.to_json() for name, each in figures.items()}))


def test_the_readme_shows_the_recorded_figures():
    recorded = read_baseline(BASELINE)["3.7.1"]
    rows = [
        line.split("|")[1:-1]
        for line in (ROOT / "docs" / "kernels.md").read_text().splitlines()
        if "| `" in line
    ]
    shown = {row[0].strip(" `"): [cell.strip() for cell in row[1:]] for row in rows if "/" in row[0]}
    assert len(shown) >= 8
    for name, cells in shown.items():
        figures = recorded[name]
        matrix = [f"{figures.op(op)} {op}" for op in ("HGMMA", "QGMMA") if figures.op(op)]
        assert cells == [
            str(figures.registers),
            str(figures.spills),
            f"{figures.shared_bytes / 1024:.0f} KB" if figures.shared_bytes >= 1024 else "-",
            str(figures.blocks_per_sm),
            " ".join(matrix) or "-",
            str(figures.op("UTMALDG") or "-"),
            f"{max(figures.loads)} / {max(figures.stores)}",
        ]
