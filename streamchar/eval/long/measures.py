"""The measures of long streams, with their labels and formats."""

from collections.abc import Mapping
from dataclasses import dataclass

from ..metrics.voice import HIGHER


@dataclass(frozen=True)
class Measure:
    """How a measure is written.

    Attributes:
        label: label for tables and plots, with its unit.
        form: format specification of a value, such as ".2f".
        scale: factor that a value is multiplied by before formatting.
    """

    label: str
    form: str
    scale: float = 1.0

    @property
    def unsigned(self) -> str:
        """The format specification without a forced sign."""
        return self.form.lstrip("+")

    @property
    def decimals(self) -> int:
        """Digits after the point."""
        return int(self.form[-2])

    def text(self, value: float, form: str | None = None) -> str:
        """Return a value, scaled and formatted."""
        return format(value * self.scale, self.form if form is None else form)


#: All measures by the names that the files of streams use.
MEASURES: Mapping[str, Measure] = {
    "word errors": Measure("word error rate, %", ".1f", 100),
    "unheard": Measure("words not recognised, %", ".1f", 100),
    "skipped": Measure("words skipped, %", ".1f", 100),
    "repeated": Measure("words repeated, %", ".1f", 100),
    "place, seconds": Measure("pointer error, s", ".2f"),
    "place, words": Measure("pointer error, words", ".2f"),
    "pointer late by": Measure("pointer delay, s", "+.2f"),
    "lips late by": Measure("lip offset, frames", "+.1f"),
    "lip correlation": Measure("lip correlation", ".2f"),
    "identity": Measure("frames nearest to own identity, %", ".1f", 100),
    "likeness": Measure("similarity to the reference picture", ".4f"),
    "colour": Measure("face colour error, of 255", ".2f"),
    "sharpness": Measure("face sharpness / reference's", ".2f"),
    "movement": Measure("movement across chunk edges / within chunks", ".2f"),
    "voice": Measure("similarity of the voice", ".3f"),
    "another voice": Measure(f"similarity of the voice made {HIGHER:.0%} higher", ".3f"),
    "rtf": Measure("real-time factor", ".2f"),
    "memory": Measure("memory, MB", ".0f"),
}
