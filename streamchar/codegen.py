"""Keep ``python -m streamchar.codegen`` working; the gate is :mod:`streamchar.tools.codegen`."""

import typer

from .tools.codegen import main

if __name__ == "__main__":
    typer.run(main)
