"""The doctor on described machines and on this one."""

import json
import re
import tomllib
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from streamchar.cli import doctor, machine
from streamchar.cli import main as cli
from streamchar.cli.doctor import Component, Report, diagnose
from streamchar.cli.machine import Gpu, Machine, Package, inspect_machine, parse_driver, version_pair
from streamchar.kernels._shared import compat, configs, dispatch

ROOT = Path(__file__).parents[2]
H100 = Machine(
    python="3.12.1",
    system="Linux",
    release="Linux 6.8, x86_64",
    packages={"torch": Package("2.11.0+cu130"), "triton": Package("3.6.0"), "safetensors": Package("0.6.2")},
    gpus=(Gpu("NVIDIA H100 80GB HBM3", (9, 0), 80 * 2**30),),
    cuda_available=True,
    cuda="13.0",
    driver="580.65",
)
CPU = Machine(
    python="3.11.7",
    system="Linux",
    release="Linux 6.8, x86_64",
    packages={"torch": Package("2.13.0+cpu"), "triton": Package("3.7.1"), "safetensors": Package("0.6.2")},
)


def having(base: Machine, **versions: Package | None) -> Machine:
    packages = {**base.packages, **versions}
    return replace(base, packages={name: package for name, package in packages.items() if package})


def component(report: Report, name: str) -> Component:
    (found,) = [part for part in report.components if part.name == name]
    return found


def backends(report: Report) -> dict[str, str]:
    return {choice.stage: choice.backend for choice in report.choices}


def installs(report: Report) -> str:
    return "\n".join(part.install for part in report.components)


def test_h100_uses_triton_and_cublas_for_untimed_expert_products() -> None:
    report = diagnose(H100)
    assert report.ok
    assert backends(report) == dict.fromkeys(doctor.STAGES, "triton") | {"experts": "cuBLAS"}
    assert {choice.why for choice in report.choices} == {
        "sm_90, triton 3.6.0",
        "no expert product has been timed on this GPU",
    }
    assert component(report, "GPU").found == "NVIDIA H100 80GB HBM3, sm_90, 80 GiB"


@pytest.mark.parametrize(
    ("measured", "backend"),
    [(("triton",), "triton"), (("cublas",), "cuBLAS"), (("cublas", "triton"), "cuBLAS or triton")],
)
def test_measured_expert_products_decide_the_backend(measured: tuple[str, ...], backend: str) -> None:
    assert backends(diagnose(replace(H100, expert_choices=measured)))["experts"] == backend


def test_safetensors_is_required_and_the_voice_package_is_offered() -> None:
    bare = diagnose(having(CPU, safetensors=None))
    assert not bare.ok
    assert component(bare, "safetensors").state == "broken"
    voice = component(diagnose(CPU), "hibari-tts")
    assert (voice.state, voice.install) == ("missing", "pip install 'streamchar[voice]'")


def test_without_gpu_pytorch_is_used_and_no_gpu_package_suggested() -> None:
    report = diagnose(CPU)
    assert report.ok
    assert set(backends(report).values()) == {"torch"}
    assert {choice.why for choice in report.choices} == {"no GPU"}
    for extra in ("cuda12", "cuda13", "flash-attn", "fa3", "profile"):
        assert f"[{extra}]" not in installs(report)


@pytest.mark.parametrize("system", ["Darwin", "Windows"])
def test_other_systems_run_without_triton_and_need_no_install(system: str) -> None:
    report = diagnose(having(replace(CPU, system=system), triton=None))
    assert report.ok
    assert set(backends(report).values()) == {"torch"}
    assert component(report, "triton").state == "optional"
    assert "triton" not in installs(report)


def test_linux_without_triton_is_told_to_install_it() -> None:
    report = diagnose(having(H100, triton=None))
    assert report.ok
    assert {(c.backend, c.why) for c in report.choices} == {("torch", "triton is not installed")}
    assert component(report, "triton").install == "pip install 'triton>=3.6'"


def test_old_triton_counts_as_absent() -> None:
    report = diagnose(having(H100, triton=Package("3.5.1")))
    assert report.ok
    assert {(c.backend, c.why) for c in report.choices} == {("torch", "triton 3.5.1 is older than 3.6")}
    assert component(report, "triton").install == "pip install 'triton>=3.6'"


def test_triton_that_does_not_import_is_reported_with_its_error() -> None:
    report = diagnose(having(H100, triton=Package("3.6.0", "ImportError: libtriton.so")))
    assert report.ok
    assert set(backends(report).values()) == {"torch"}
    assert component(report, "triton").note == "ImportError: libtriton.so"
    assert "--force-reinstall" in component(report, "triton").install


@pytest.mark.parametrize("capability", [(7, 5), (8, 0), (8, 9)])
def test_a_gpu_below_sm_90_uses_pytorch(capability: tuple[int, int]) -> None:
    report = diagnose(replace(H100, gpus=(Gpu("some GPU", capability, 15 * 2**30),)))
    assert report.ok
    why = f"sm_{capability[0]}{capability[1]} is below sm_90"
    assert {(c.backend, c.why) for c in report.choices} == {("torch", why)}
    assert "below 9.0" in component(report, "GPU").note


@pytest.mark.parametrize(("capability", "tuned"), [((9, 0), True), ((10, 0), False)])
def test_the_gpu_line_tells_whether_kernels_are_tuned_for_it(
    capability: tuple[int, int], tuned: bool
) -> None:
    report = diagnose(replace(H100, gpus=(Gpu("some GPU", capability, 2**35),)))
    assert ("tuned for sm_90" not in component(report, "GPU").note) == tuned
    assert backends(report)["attention"] == "triton"


@pytest.mark.parametrize(
    ("torch", "install"),
    [
        (None, "pip install 'torch>=2.11'"),
        (Package("2.10.0+cu128"), "pip install 'torch>=2.11'"),
        (Package("2.11.0", "OSError: libcudart"), "pip install 'torch>=2.11' --force-reinstall"),
    ],
)
def test_unusable_torch_fails_and_names_the_command(torch: Package | None, install: str) -> None:
    report = diagnose(having(H100, torch=torch))
    assert not report.ok
    assert report.choices == ()
    assert component(report, "torch").state == "broken"
    assert component(report, "torch").install == install


@pytest.mark.parametrize(("version", "ok"), [("3.10.9", False), ("3.11.0", True), ("3.14.0", False)])
def test_the_python_version_decides(version: str, ok: bool) -> None:
    assert diagnose(replace(CPU, python=version)).ok == ok


def test_kernels_that_do_not_import_fail_with_the_error() -> None:
    report = diagnose(replace(CPU, kernels_error="AttributeError: nope"))
    assert not report.ok
    assert component(report, "streamchar.kernels").note == "AttributeError: nope"


@pytest.mark.parametrize(("cuda", "extra"), [("13.0", "cuda13"), ("12.8", "cuda12"), ("11.8", None)])
def test_the_cupy_extra_matches_the_cuda_version_of_torch(cuda: str, extra: str | None) -> None:
    line = component(diagnose(replace(H100, cuda=cuda)), "cupy")
    assert line.install == (f"pip install 'streamchar[{extra}]'" if extra else "")
    assert line.state == ("missing" if extra else "optional")


def test_flash_attention_3_is_suggested_on_hopper_only() -> None:
    assert "[fa3]" in installs(diagnose(H100))
    assert "[fa3]" not in installs(diagnose(replace(H100, gpus=(Gpu("A100", (8, 0), 2**35),))))


def test_a_cpu_build_of_torch_with_a_gpu_suggests_a_reinstall() -> None:
    found = having(replace(H100, cuda=None, cuda_available=False), torch=Package("2.13.0+cpu"))
    report = diagnose(found)
    assert report.ok
    assert {(c.backend, c.why) for c in report.choices} == {("torch", "torch cannot use the GPU")}
    assert component(report, "CUDA").install == "pip install --force-reinstall 'torch>=2.11'"


def test_a_gpu_that_torch_does_not_see_points_at_the_driver() -> None:
    line = component(diagnose(replace(H100, cuda_available=False)), "CUDA")
    assert line.state == "broken"
    assert "newer driver" in line.note


def test_encoders_of_pyav_are_listed() -> None:
    found = having(replace(CPU, encoders=("libx264", "aac")), av=Package("18.1.0"))
    assert component(diagnose(found), "encoders").found == "PyAV 18.1.0, libx264, aac"
    assert component(diagnose(CPU), "encoders").install == "pip install av"


def test_suggested_extras_exist_and_limits_match_pyproject() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    for base in (H100, replace(H100, cuda="12.6")):
        suggested = set(re.findall(r"streamchar\[([\w-]+)\]", installs(diagnose(base))))
        assert suggested
        assert suggested <= set(extras)
    limits = {re.split("[>;]", line)[0]: line for line in project["dependencies"]}
    assert limits["torch"] == "torch>={}.{}".format(*doctor.MIN_TORCH)
    assert limits["triton"].startswith("triton>={}.{};".format(*doctor.MIN_TRITON))
    assert project["requires-python"] == ">={}.{},<{}.{}".format(*doctor.MIN_PYTHON, *doctor.END_PYTHON)
    assert doctor.MIN_TRITON == compat.MIN_TRITON
    assert doctor.MIN_CAPABILITY == dispatch.MIN_CAPABILITY


def test_driver_output_is_parsed_and_other_lines_are_skipped() -> None:
    gpus, driver = parse_driver(
        "NVIDIA H100 80GB HBM3, 9.0, 81559, 580.65.06\nNo devices were found\nx, y, z, w\n"
    )
    assert gpus == (Gpu("NVIDIA H100 80GB HBM3", (9, 0), 81559 * 2**20),)
    assert driver == "580.65.06"
    assert parse_driver("") == ((), None)


@pytest.mark.parametrize(
    ("version", "pair"), [("2.13.0+cpu", (2, 13)), ("3.6", (3, 6)), ("13", (13, 0)), ("", (0, 0))]
)
def test_versions_compare_by_their_first_two_numbers(version: str, pair: tuple[int, int]) -> None:
    assert version_pair(version) == pair


def test_this_machine_is_described_correctly() -> None:
    found = inspect_machine()
    assert found.packages["torch"] == Package(metadata.version("torch"))
    assert found.kernels_error == ""
    assert diagnose(found).ok


def test_recorded_choices_of_a_gpu_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = [
        {"device": "A", "choice": "triton"},
        {"device": "A", "choice": "cublas"},
        {"device": "B", "choice": "cublas"},
    ]
    (tmp_path / "choices.json").write_text(json.dumps({"schema": 1, "entries": entries}))
    monkeypatch.setattr(configs, "CHOICES_PATH", tmp_path / "choices.json")
    assert machine._expert_choices("A") == ("cublas", "triton")
    assert machine._expert_choices("C") == ()


@pytest.mark.parametrize(("base", "code"), [(CPU, 0), (H100, 0), (replace(CPU, python="3.10.0"), 1)])
def test_the_command_prints_the_report_and_sets_the_exit_code(
    base: Machine, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "inspect_machine", lambda: base)
    answer = CliRunner().invoke(cli.app, ["doctor", "--json"])
    assert answer.exit_code == code
    assert json.loads(answer.stdout) == json.loads(json.dumps(diagnose(base).as_dict()))
    assert CliRunner().invoke(cli.app, ["doctor"]).exit_code == code


def test_install_commands_are_not_wrapped_on_a_narrow_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    report = diagnose(replace(H100, pip=".venv/bin/python -m pip install"))
    cli.print_report(report, Console(width=50))
    printed = capsys.readouterr().out
    assert "  .venv/bin/python -m pip install 'streamchar[cuda13]'  # cupy\n" in printed
    assert "attention" in printed
