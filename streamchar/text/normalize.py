"""Validate and normalise text before it is tokenised."""

import unicodedata

from ..errors import StreamCharError

#: Most characters that may be waiting to be spoken: almost two hours of speech at 15 characters per second.
MAX_CHARACTERS = 100_000

_SPACES = frozenset("\t\n\r\u2028\u2029")
_PICTOGRAPHS = range(0x1F000, 0x20000)
_VARIATION_SELECTORS = range(0xFE00, 0xFE10)
_JOINERS = "\u200c\u200d"


class TextError(StreamCharError, ValueError):
    """Text that cannot be spoken.

    Attributes:
        remedy: how to make the text acceptable.
    """

    def __init__(self, limit: str, value: str, remedy: str) -> None:
        self.remedy = remedy
        super().__init__(f"text must {limit}, got {value}; {remedy}")


def clean_text(text: str, script: str | None = None, previous: str = " ") -> str:
    """Normalise a piece of text for the tokenizer.

    Line breaks, tabs and all Unicode spaces become a space. Emoji, other pictographs and invisible formatting
    characters have no sound and are removed. The rest is brought to Unicode normalisation form NFC.

    Args:
        text: any piece of text; it may be empty or blank.
        script: Unicode name of the only script that letters may belong to, such as ``"LATIN"``; None allows
            all scripts.
        previous: the character before the piece. A joiner is kept after a letter, because it shapes it.

    Raises:
        TextError: the text has more than :data:`MAX_CHARACTERS` characters, a lone surrogate, a control
            character, a private or unassigned code point, or a letter of another script. The message names
            the character and its index.
    """
    if len(text) > MAX_CHARACTERS:
        raise TextError(
            f"have at most {MAX_CHARACTERS} characters",
            str(len(text)),
            "send it in pieces while it is spoken",
        )
    kept: list[str] = []
    for index, character in enumerate(text):
        previous = _clean_character(character, index, previous)
        if script is not None:
            _require_script(character, index, script)
        kept.append(previous)
    return unicodedata.normalize("NFC", "".join(kept))


def check_text(text: str, script: str | None = None) -> str:
    """Normalise a whole text for the tokenizer and strip outer spaces.

    Args:
        text: the text to speak.
        script: Unicode name of the only script that letters may belong to; None allows all scripts.

    Raises:
        TextError: :func:`clean_text` refuses the text, or it contains neither a letter nor a digit.
    """
    cleaned = clean_text(text, script).strip()
    if not any(character.isalnum() for character in cleaned):
        shown = repr(text if len(text) <= 40 else text[:40] + "...")
        raise TextError("have something to speak", shown, "give at least one letter or digit")
    return cleaned


def _clean_character(character: str, index: int, previous: str) -> str:
    """Return the character itself, a space, or an empty string."""
    code, category = ord(character), unicodedata.category(character)
    where = f"U+{code:04X} at index {index}"
    if character in _SPACES or category == "Zs":
        return " "
    if category == "Cc":
        raise TextError("have no control characters except tabs and line breaks", where, "remove it")
    if category == "Cs":
        raise TextError("be valid Unicode", f"the lone surrogate {where}", "decode the source as UTF-8")
    if character in _JOINERS and previous and unicodedata.category(previous)[0] in "LM":
        return character  # joiners shape letters; between pictographs they only combine emoji
    if category in ("Cf", "Me") or code in _VARIATION_SELECTORS:
        return ""
    if code in _PICTOGRAPHS or (category == "So" and code > 0xFF):
        return ""
    if category in ("Co", "Cn"):
        raise TextError("have only assigned characters", f"the private or unassigned {where}", "remove it")
    return character


def _require_script(character: str, index: int, script: str) -> None:
    # Modifier letters, such as the Hawaiian turned comma, belong to no script. Latin-1 counts as Latin.
    if ord(character) < 0x100 or unicodedata.category(character) not in ("Lu", "Ll", "Lt", "Lo"):
        return
    name = unicodedata.name(character, "")
    if ord(character) not in _PICTOGRAPHS and script not in name.split():
        raise TextError(
            f"be in {script.capitalize()} script, the only one this voice speaks",
            f"{name} at index {index}",
            "transliterate it, or open a preset whose tokenizer covers it",
        )
