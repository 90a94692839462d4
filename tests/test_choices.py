import json
from pathlib import Path
from typing import Any

import pytest
import torch

from streamchar.kernels import KernelArgumentError
from streamchar.kernels._shared import configs
from streamchar.kernels._shared.compat import FP8
from streamchar.kernels._shared.configs import CHOICES_PATH, gemm_config, measured, pick, record_choice

GPU = "NVIDIA H100 80GB HBM3"
KEY: dict[str, Any] = {"op": "expert_up", "dtype": torch.bfloat16, "n": 14336, "k": 3072, "device_name": GPU}
ROWS = {"m_video": 2048, "m_audio": 32}


def record(path: Path, **change: Any) -> str:
    return record_choice(path, **{**KEY, **ROWS, "triton_us": 90.0, "cublas_us": 100.0, **change})


def choose(*, m_video: int, m_audio: int, path: Path = CHOICES_PATH, **product: Any) -> str:
    return pick(measured(**product, path=path), m_video, m_audio)


def test_the_shipped_table_is_valid() -> None:
    content = json.loads(CHOICES_PATH.read_text())
    assert content["schema"] == configs.CHOICES_SCHEMA
    assert choose(**KEY, **ROWS) in ("triton", "cublas")


def test_products_without_a_measurement_use_the_library(tmp_path: Path) -> None:
    path = tmp_path / "choices.json"
    record(path, device_name="another GPU")
    assert choose(**KEY, **ROWS, path=path) == "cublas"


@pytest.mark.parametrize(
    ("triton_us", "cublas_us", "choice"), [(90.0, 100.0, "triton"), (100.0, 90, "cublas"), (5, 5, "cublas")]
)
def test_the_faster_one_is_recorded_and_chosen(
    tmp_path: Path, triton_us: float, cublas_us: float, choice: str
) -> None:
    path = tmp_path / "choices.json"
    assert record(path, triton_us=triton_us, cublas_us=cublas_us) == choice
    assert choose(**KEY, **ROWS, path=path) == choice


@pytest.mark.parametrize(
    "change",
    [
        {"op": "expert_down"},
        {"dtype": torch.float16},
        {"dtype": FP8},
        {"n": 14335},
        {"k": 3071},
        {"device_name": "NVIDIA H200"},
        {"m_video": 1920},  # one tile of 128 rows fewer
        {"m_video": 2049},  # one more
        {"m_audio": 0},
        {"m_audio": 129},
    ],
    ids=str,
)
def test_a_measurement_says_nothing_about_another_product(tmp_path: Path, change: dict[str, Any]) -> None:
    path = tmp_path / "choices.json"
    record(path)
    assert choose(**{**KEY, **ROWS, **change}, path=path) == "cublas"


def test_a_measurement_serves_every_row_count_of_the_same_tiles(tmp_path: Path) -> None:
    path = tmp_path / "choices.json"
    record(path)
    assert choose(**KEY, m_video=1921, m_audio=128, path=path) == "triton"
    record(path, m_video=1930, cublas_us=80.0)
    assert choose(**KEY, m_video=1925, m_audio=32, path=path) == "cublas"
    assert choose(**KEY, m_video=2040, m_audio=32, path=path) == "triton"


def test_a_new_measurement_replaces_the_old_one_and_leaves_the_others(tmp_path: Path) -> None:
    path = tmp_path / "choices.json"
    record(path)
    record(path, op="expert_down")
    # The table has been read once; after a write it must be read again.
    assert choose(**KEY, **ROWS, path=path) == "triton"
    record(path, cublas_us=50.0)
    assert choose(**KEY, **ROWS, path=path) == "cublas"
    entries = json.loads(path.read_text())["entries"]
    assert [(entry["op"], entry["cublas_us"]) for entry in entries] == [
        ("expert_down", 100.0),
        ("expert_up", 50.0),
    ]
    assert [each.name for each in tmp_path.iterdir()] == ["choices.json"]


@pytest.mark.parametrize(
    ("change", "argument"),
    [
        ({"device_name": ""}, "device"),
        ({"op": "attention"}, "op"),
        ({"dtype": torch.int8}, "dtype"),
        ({"m_video": -1}, "m_video"),
        ({"m_video": 0, "m_audio": 0}, "m_video + m_audio"),
        ({"m_audio": 1.5}, "m_audio"),
        ({"n": 0}, "n"),
        ({"k": True}, "k"),
        ({"triton_us": 0.0}, "triton_us"),
        ({"triton_us": float("nan")}, "triton_us"),
        ({"cublas_us": float("inf")}, "cublas_us"),
    ],
    ids=str,
)
def test_an_invalid_measurement_is_refused_and_not_written(
    tmp_path: Path, change: dict[str, Any], argument: str
) -> None:
    path = tmp_path / "choices.json"
    with pytest.raises(KernelArgumentError) as error:
        record(path, **change)
    assert error.value.argument == argument
    assert not path.exists()


def test_a_table_edited_against_its_figures_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "choices.json"
    record(path)
    content = json.loads(path.read_text())
    content["entries"][0]["choice"] = "cublas"
    path.write_text(json.dumps(content))
    configs._table.cache_clear()
    with pytest.raises(KernelArgumentError, match=r"^choices\.json entries\[0\]\.choice must be 'triton'"):
        choose(**KEY, **ROWS, path=path)


@pytest.mark.parametrize("content", [[], {"schema": 2, "entries": []}, {"schema": 1}], ids=str)
def test_a_table_of_another_schema_is_refused(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "choices.json"
    path.write_text(json.dumps(content))
    with pytest.raises(KernelArgumentError, match=r"^choices\.json"):
        record(path)


def test_tiles_follow_the_waves_of_the_shape() -> None:
    up = gemm_config(torch.bfloat16, 2048, 14336, 3072)
    down = gemm_config(torch.bfloat16, 2048, 3072, 14336)
    one_frame = gemm_config(torch.bfloat16, 256, 3072, 14336)
    assert (up.block_m, up.block_n) == (128, 256)
    assert (down.block_m, down.block_n) == (128, 128)
    assert (one_frame.block_m, one_frame.block_n) == (64, 128)
    # The numbers in the documentation of gemm_config.
    assert [up.tiles(2048, 14336), up.tiles(32, 4096), down.tiles(2048, 3072)] == [896, 16, 384]
    assert down.tiles(32, 3072) == 24


def test_only_deep_fp8_products_are_promoted() -> None:
    assert not gemm_config(FP8, 2048, 14336, 3072).promote
    assert gemm_config(FP8, 2048, 3072, 14336).promote
    assert not gemm_config(torch.bfloat16, 2048, 3072, 14336).promote


def test_the_audio_expert_alone_still_has_a_tiling() -> None:
    assert gemm_config(torch.bfloat16, 0, 14336, 3072).block_m == 64
