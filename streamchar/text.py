"""What text may be spoken, and the form it is brought to before it becomes tokens."""

import unicodedata

#: Characters that may wait to be spoken; at 15 characters a second this is almost two hours of speech.
MAX_CHARACTERS = 100_000

_SPACES = frozenset("\t\n\r\u2028\u2029")
_PICTOGRAPHS = range(0x1F000, 0x20000)
_VARIATION_SELECTORS = range(0xFE00, 0xFE10)
_JOINERS = "\u200c\u200d"


class TextError(ValueError):
    """Text that cannot be spoken.

    Attributes:
        remedy: what to do about it.
    """

    def __init__(self, limit: str, value: str, remedy: str) -> None:
        self.remedy = remedy
        super().__init__(f"text must {limit}, got {value}; {remedy}")


def clean_text(text: str, script: str | None = None, previous: str = " ") -> str:
    """Return a piece of text in the form that is tokenised.

    Line breaks, tabs and every Unicode space become a space; emoji, other pictographs and invisible
    formatting characters become nothing, for they have no sound; the rest is brought to Unicode form NFC.

    Args:
        text: any piece, empty or blank included.
        script: Unicode name of the only script that letters may belong to; None for any.
        previous: the character before the piece; a joiner after a letter shapes it and stays.

    Raises:
        TextError: more than :data:`MAX_CHARACTERS` characters, a lone surrogate, a control character, a
            private or unassigned code point, or a letter of another script; the message says which and where.
    """
    if len(text) > MAX_CHARACTERS:
        raise TextError(
            f"have at most {MAX_CHARACTERS} characters", str(len(text)), "send it in pieces as it is spoken"
        )
    kept: list[str] = []
    for index, character in enumerate(text):
        previous = _sounding(character, index, previous)
        if script is not None:
            _require_script(character, index, script)
        kept.append(previous)
    return unicodedata.normalize("NFC", "".join(kept))


def check_text(text: str, script: str | None = None) -> str:
    """Return a whole text in the form that is tokenised, without outer spaces.

    Args:
        text: what is to be spoken.
        script: Unicode name of the only script that letters may belong to; None for any.

    Raises:
        TextError: as :func:`clean_text`, or there is no letter and no digit in it.
    """
    cleaned = clean_text(text, script).strip()
    if not any(character.isalnum() for character in cleaned):
        shown = repr(text if len(text) <= 40 else text[:40] + "...")
        raise TextError("have something to speak", shown, "give at least one letter or digit")
    return cleaned


def _sounding(character: str, index: int, previous: str) -> str:
    """Return what stays of a character: itself, a space, or nothing."""
    code, category = ord(character), unicodedata.category(character)
    where = f"U+{code:04X} at index {index}"
    if character in _SPACES or category == "Zs":
        return " "
    if category == "Cc":
        raise TextError("have no control characters but tab and line breaks", where, "remove it")
    if category == "Cs":
        raise TextError("be valid Unicode", f"the lone surrogate {where}", "decode the source as UTF-8")
    if character in _JOINERS and previous and unicodedata.category(previous)[0] in "LM":
        return character  # it shapes letters; between pictographs it only glues them
    if category in ("Cf", "Me") or code in _VARIATION_SELECTORS:
        return ""
    if code in _PICTOGRAPHS or (category == "So" and code > 0xFF):
        return ""
    if category in ("Co", "Cn"):
        raise TextError("have characters with a meaning", f"the unassigned {where}", "remove it")
    return character


def _require_script(character: str, index: int, script: str) -> None:
    # Modifier letters, such as the turned comma of Hawaiian, belong to no script; Latin-1 is Latin.
    if ord(character) < 0x100 or unicodedata.category(character) not in ("Lu", "Ll", "Lt", "Lo"):
        return
    name = unicodedata.name(character, "")
    if ord(character) not in _PICTOGRAPHS and script not in name.split():
        raise TextError(
            f"be in {script.capitalize()} script, the only one this voice speaks",
            f"{name} at index {index}",
            "transliterate it, or open a preset whose tokenizer covers it",
        )
