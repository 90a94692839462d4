"""Word lists, and the inflected forms of English words: plural, third person, past, participle, -ing."""

from collections.abc import Iterator
from functools import cache
from importlib.resources import files

#: Word classes with a plural, and word classes that are conjugated.
NOUNS = frozenset({"kin", "person", "animal", "food", "thing", "room", "place", "abstract", "body"})
VERBS = frozenset({"act", "eat", "go", "say"})

_VOWELS = "aeiou"
_SIBILANTS = ("s", "x", "z", "ch", "sh")
_PLURAL_OES = frozenset({"potato", "tomato", "hero", "volcano", "mango", "buffalo"})


def sections(name: str) -> dict[str, list[str]]:
    """Read a text file of this package and return its lines by [heading], without comments and blank lines.

    Lines before the first heading are under "".
    """
    found: dict[str, list[str]] = {}
    current = found.setdefault("", [])
    for line in (files(__package__) / name).read_text(encoding="utf-8").splitlines():
        line = line.strip()
        if line.startswith("["):
            current = found.setdefault(line.strip("[]"), [])
        elif line and not line.startswith("#"):
            current.append(line)
    return found


def plural(noun: str) -> str:
    """Return the regular plural of ``noun``."""
    if noun.endswith("y") and noun[-2] not in _VOWELS:
        return noun[:-1] + "ies"
    if noun.endswith(_SIBILANTS) or noun in _PLURAL_OES:
        return noun + ("zes" if noun == "quiz" else "es")
    return noun + "s"


def third_person(verb: str) -> str:
    """Return the third person singular of ``verb``."""
    return verb + "es" if verb.endswith("o") else plural(verb)


def past(verb: str, doubled: bool) -> str:
    """Return the regular past of ``verb``; ``doubled`` doubles the last letter."""
    if verb.endswith("e"):
        return verb + "d"
    if verb.endswith("y") and verb[-2] not in _VOWELS:
        return verb[:-1] + "ied"
    return verb + (verb[-1] if doubled else "") + "ed"


def gerund(verb: str, doubled: bool) -> str:
    """Return the -ing form of ``verb``; ``doubled`` doubles the last letter."""
    if verb.endswith("ie"):
        return verb[:-2] + "ying"
    if verb.endswith("e") and not verb.endswith(("ee", "oe", "ye")):
        return verb[:-1] + "ing"
    return verb + (verb[-1] if doubled else "") + "ing"


# Irregular verbs whose last letter doubles before -ing, which their entries do not say.
_DOUBLED = frozenset({"cut", "shut", "hit", "run", "sit", "swim", "spin", "dig", "forget"})


def forms(kind: str, entry: str) -> dict[str, str]:
    """Return the forms of an entry of the word list, by name.

    Args:
        kind: class of the word.
        entry: for nouns ``base`` or ``base/plural``; for verbs ``base``, ``base*`` if the last letter
            doubles, or ``base/past/participle``; for other words ``base``.

    Returns:
        The base form under ``""``; for nouns also the plural under ``s``; for verbs also ``s``, ``ed``,
        ``en`` and ``ing``.
    """
    base, *given = entry.rstrip("*").split("/")
    if kind in NOUNS:
        return {"": base, "s": given[0] if given else plural(base)}
    if kind in VERBS:
        doubled = entry.endswith("*") or base in _DOUBLED
        simple, participle = given if given else [past(base, doubled)] * 2
        return {
            "": base,
            "s": third_person(base),
            "ed": simple,
            "en": participle,
            "ing": gerund(base, doubled),
        }
    return {"": base}


@cache
def lexicon() -> dict[str, tuple[dict[str, str], ...]]:
    """Return the forms of all words by class, in the order of the file, without repeated words."""
    return {
        kind: tuple(forms(kind, entry) for entry in dict.fromkeys(" ".join(lines).split()))
        for kind, lines in sections("words.txt").items()
        if kind
    }


@cache
def held_out_bases() -> tuple[str, ...]:
    """Return the base forms of the held-out words, in the order of their file."""
    return tuple(dict.fromkeys(" ".join(sections("held_out.txt")[""]).split()))


def forms_of(bases: frozenset[str]) -> Iterator[str]:
    """Yield all forms, in all classes, of the words with these base forms."""
    for entries in lexicon().values():
        for entry in entries:
            if entry[""] in bases:
                yield from entry.values()
