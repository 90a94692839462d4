"""Map the top-level ``kernels/`` folder to ``streamchar.kernels``.

The distribution name ``kernels`` belongs to another project that ``transformers`` and ``diffusers``
look for, so the folder is never installed under its own name. Everything else is in pyproject.toml.
"""

from setuptools import find_packages, setup

families = [f"streamchar.kernels.{name}" for name in find_packages("kernels")]
setup(
    packages=[*find_packages(include=["streamchar", "streamchar.*"]), "streamchar.kernels", *families],
    package_dir={"streamchar": "streamchar", "streamchar.kernels": "kernels"},
)
