"""The installed package: editable, from a wheel, and without optional dependencies."""

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
from PIL import Image

import streamchar
import streamchar.kernels

ROOT = Path(__file__).parents[1]


def run(*command: object, cwd: Path, **extra_env: str) -> str:
    """Run a command without this test run's environment variables and return what it printed."""
    kept = {
        name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "TRITON_INTERPRET")
    }
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**kept, "HF_HUB_OFFLINE": "1", **extra_env},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build an sdist from a copy of the tree, and a wheel from the sdist."""
    source = tmp_path_factory.mktemp("source") / "streamchar"
    skipped = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, source, ignore=skipped)
    run(sys.executable, "-m", "build", "--no-isolation", "--skip-dependency-check", cwd=source)
    return source / "dist"


@pytest.fixture(scope="module")
def installed(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel in a fresh environment that uses the torch of this one."""
    home = tmp_path_factory.mktemp("clean") / "venv"
    venv.create(home, symlinks=os.name != "nt", with_pip=False)
    (wheel,) = dist.glob("*.whl")
    paths = sysconfig.get_paths("venv", {"base": str(home), "platbase": str(home)})
    run(
        *(sys.executable, "-m", "pip", "--python", home, "--disable-pip-version-check"),
        *("install", "--quiet", "--no-deps", "--no-index", wheel),
        cwd=home,
    )
    # Paths named in a .pth file are searched, but .pth files in them, such as the one of this package's
    # editable install, are not processed.
    borrowed = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    Path(paths["purelib"], "borrowed.pth").write_text("\n".join(sorted(borrowed)) + "\n")
    return Path(paths["scripts"])


def in_clean(installed: Path, code: str, cwd: Path) -> str:
    return run(installed / "python", "-c", code, cwd=cwd).strip()


def test_wheel_imports_the_kernels_from_its_own_environment(installed: Path, tmp_path: Path) -> None:
    code = "import streamchar.kernels as k; print(k.__file__)"
    assert Path(in_clean(installed, code, tmp_path)).is_relative_to(installed.parent)


def test_wheel_installs_nothing_called_kernels(installed: Path, tmp_path: Path) -> None:
    code = "import importlib.util as u; print(u.find_spec('kernels'))"
    assert in_clean(installed, code, tmp_path) == "None"


def test_wheel_installs_a_console_script(installed: Path, tmp_path: Path) -> None:
    report = json.loads(run(installed / "streamchar", "doctor", "--json", cwd=tmp_path))
    assert report["ok"] is True
    assert len(report["choices"]) == 6


def test_wheel_contains_only_sources_data_and_licence(dist: Path) -> None:
    (wheel,) = dist.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        metadata = {name.partition(".dist-info/")[2] for name in archive.namelist()}
    expected = {
        f"{package}/{path.relative_to(ROOT / folder).as_posix()}"
        for folder, package in (("streamchar", "streamchar"), ("kernels", "streamchar/kernels"))
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".json", ".typed")
    }
    texts = [path for folder in ("data", "eval") for path in (ROOT / "streamchar" / folder).rglob("*.txt")]
    weights = [path for path in (ROOT / "streamchar" / "weights").rglob("*") if path.is_file()]
    expected |= {path.relative_to(ROOT).as_posix() for path in (*texts, *weights)}
    assert names == expected
    assert {"streamchar/py.typed", "streamchar/kernels/py.typed"} <= names
    assert any(name.startswith("streamchar/kernels/") and name.endswith(".json") for name in names)
    assert "licenses/LICENSE" in metadata


def test_shipped_weights_stay_within_their_size_limits() -> None:
    sizes = {
        path: path.stat().st_size for path in (ROOT / "streamchar" / "weights").rglob("*") if path.is_file()
    }
    assert 0 < sum(sizes.values()) <= 24 * 2**20
    # Larger single files do not pass every channel.
    assert max(sizes.values()) <= 16 * 2**20


def test_sdist_contains_what_make_needs(dist: Path) -> None:
    (sdist,) = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {"Makefile", "constraints.txt", "LICENSE", "README.md", "pyproject.toml", "setup.py"}
    assert wanted | {"kernels/__init__.py", "tests/conftest.py", "tests/test_package.py"} <= names


def test_the_checkout_is_what_runs_here() -> None:
    """An editable install maps streamchar.kernels to the top-level folder kernels/."""
    assert Path(streamchar.__file__).parent == ROOT / "streamchar"
    assert Path(streamchar.kernels.__file__).parent == ROOT / "kernels"


def test_the_version_is_stated_once() -> None:
    assert importlib.metadata.version("streamchar") == streamchar.__version__


def test_importing_the_package_is_light(tmp_path: Path) -> None:
    heavy = "{'torch', 'triton', 'numpy', 'transformers', 'rich'}"
    code = f"import streamchar, sys; print(sorted({heavy} & set(sys.modules)))"
    assert run(sys.executable, "-c", code, cwd=tmp_path).strip() == "[]"


def test_importing_the_kernels_loads_no_optional_package(tmp_path: Path) -> None:
    optional = "{'transformers', 'cupy', 'flash_attn', 'fa3_fwd_interface', 'nvtx', 'av', 'safetensors'}"
    code = f"import streamchar.kernels, sys; print(sorted({optional} & set(sys.modules)))"
    assert run(sys.executable, "-c", code, cwd=tmp_path).strip() == "[]"


WITHOUT_TRITON = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "triton":
            raise ModuleNotFoundError("No module named 'triton'", name="triton")

sys.meta_path.insert(0, Blocked())

import importlib, pkgutil
import torch
import streamchar.kernels as kernels

modules = [each.name for each in pkgutil.walk_packages(kernels.__path__, "streamchar.kernels.")]
assert len(modules) > 7
for module in modules:
    importlib.import_module(module)

x = torch.randn(1, 5, 8)
rows, index = torch.randn(1, 2, 8), torch.zeros(1, 5, dtype=torch.int32)
for backend in ("auto", "torch"):
    y = kernels.norm_modulate(x, rows, rows, index, backend=backend)
    wanted = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * (1 + rows[:, :1]) + rows[:, :1]
    torch.testing.assert_close(y, wanted)
try:
    kernels.norm_modulate(x, rows, rows, index, backend="triton")
except kernels.BackendUnavailableError as error:
    print(error)
"""


def test_without_triton_pytorch_is_used_and_triton_is_refused(tmp_path: Path) -> None:
    message = run(sys.executable, "-c", WITHOUT_TRITON, cwd=tmp_path)
    assert "backend='triton' needs the triton package" in message


OLD_TRITON = WITHOUT_TRITON[WITHOUT_TRITON.index("import importlib") :]


def test_an_old_triton_counts_as_absent(tmp_path: Path) -> None:
    code = f"import triton\ntriton.__version__ = '3.5.1'\n{OLD_TRITON}"
    pytest.importorskip("triton")
    assert "backend='triton' needs the triton package" in run(sys.executable, "-c", code, cwd=tmp_path)


FROM_THE_ROOT = """
import importlib.util, pathlib
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM
from transformers.utils import is_kernels_available

# From the repository root, kernels/ is importable under the name that transformers looks for.
assert pathlib.Path(importlib.util.find_spec("kernels").origin).samefile("kernels/__init__.py")
assert not is_kernels_available()
config = Qwen2Config(
    vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
    num_key_value_heads=1, max_position_embeddings=16,
)
logits = Qwen2ForCausalLM(config)(torch.arange(8)[None]).logits
assert logits.shape == (1, 8, 32) and logits.isfinite().all()

# Imported under either name it works, and neither copy's operators replace the other's.
import kernels
import streamchar.kernels
from kernels._shared.operator import NAMESPACE as bare
from streamchar.kernels._shared.operator import NAMESPACE as ours
names = torch._C._dispatch_get_all_op_names()
assert ours != bare
assert all(any(name.startswith(f"{each}::") for name in names) for each in (ours, bare))
assert not hasattr(kernels, "get_kernel") and not hasattr(kernels, "__version__")
print("fine")
"""


def test_transformers_does_not_mistake_the_kernels_folder() -> None:
    pytest.importorskip("transformers")
    assert run(sys.executable, "-c", FROM_THE_ROOT, cwd=ROOT).strip() == "fine"


EXAMPLES = [
    pytest.param(example, id=f"{path.name}-{number}")
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
    for number, example in enumerate(re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL))
]


@pytest.mark.parametrize("example", EXAMPLES)
def test_the_examples_of_the_documentation_run(example: str, tmp_path: Path) -> None:
    Image.new("RGB", (120, 90), "peru").save(tmp_path / "face.png")
    run(sys.executable, "-c", example, cwd=tmp_path)


def test_the_documentation_has_examples_of_engine_and_kernels() -> None:
    examples = "\n".join(str(example.values[0]) for example in EXAMPLES)
    assert len(EXAMPLES) >= 2
    assert "StreamCharEngine" in examples
    assert "streamchar.kernels" in examples


def find_python(version: str) -> str | None:
    """Find an interpreter on the path or in pyenv, whose shims fail for versions that are not selected."""
    kept = sorted(Path(os.environ.get("PYENV_ROOT", "")).glob(f"versions/{version}.*/bin/python{version}"))
    for candidate in (shutil.which(f"python{version}"), *map(str, kept)):
        if candidate and subprocess.run([candidate, "-c", ""], capture_output=True).returncode == 0:
            return candidate
    return None


@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13"])
def test_sources_compile_on_every_supported_python(version: str, tmp_path: Path) -> None:
    if (python := find_python(version)) is None:
        pytest.skip(f"no Python {version} here")
    folders = [ROOT / folder for folder in ("streamchar", "kernels", "bench", "tests")]
    run(
        python,
        "-W",
        "error",
        "-m",
        "compileall",
        "-q",
        "-f",
        *folders,
        cwd=tmp_path,
        PYTHONPYCACHEPREFIX=str(tmp_path),
    )
