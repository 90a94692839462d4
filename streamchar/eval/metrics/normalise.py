"""Normalise texts and transcripts before comparing them, so that differences in spelling are not errors.

Recognisers write American English, and choose between digits and words, abbreviations and full forms.
"""

import re

# Parts of words: British to American spelling.
_SPELLINGS = {
    **{
        f"{stem}our": f"{stem}or"
        for stem in [
            "col",
            "neighb",
            "fav",
            "rum",
            "harb",
            "arm",
            "flav",
            "hon",
            "hum",
            "vap",
            "vig",
            "lab",
            "behavi",
        ]
    },
    "travell": "travel",
    "jeweller": "jeweler",
    "jewelery": "jewelry",
    "theatre": "theater",
    "centre": "center",
    "tyre": "tire",
    "grey": "gray",
    "cheque": "check",
    "catalogue": "catalog",
    "practis": "practic",
    "apologis": "apologiz",
    "recognis": "recogniz",
    "realis": "realiz",
    "woollen": "woolen",
    "labell": "label",
    "doughnut": "donut",
    "omelette": "omelet",
    "cosy": "cozy",
}
_WORDS = {
    "mr": "mister",
    "mrs": "missus",
    "dr": "doctor",
    "ok": "okay",
    "moustache": "mustache",
    "'twas": "twas",
}
_UNITS = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
]
_TENS = ["zero", "ten", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_ORDINALS = {
    "one": "first",
    "two": "second",
    "three": "third",
    "five": "fifth",
    "eight": "eighth",
    "nine": "ninth",
    "twelve": "twelfth",
}
_TOKEN = re.compile(r"\d+(?:st|nd|rd|th)\b|\d+|[a-z]+(?:'[a-z]+)*|'[a-z]+|[%$&]")
_SIGNS = {"%": "percent", "$": "dollars", "&": "and"}


def number_words(number: int) -> str:
    """Return a number from 0 to 999 999 999 in words, without "and".

    Raises:
        ValueError: the number is out of range.
    """
    if not 0 <= number < 10**9:
        raise ValueError(f"number must be between 0 and 999999999, got {number}")
    for unit, name in ((10**6, "million"), (1000, "thousand"), (100, "hundred")):
        if number >= unit:
            head, tail = divmod(number, unit)
            return f"{number_words(head)} {name}" + (f" {number_words(tail)}" if tail else "")
    if number < 20:
        return _UNITS[number]
    return _TENS[number // 10] + (f" {_UNITS[number % 10]}" if number % 10 else "")


def normalise(text: str) -> str:
    """Return ``text`` as lower-case words with single spaces, without punctuation, digits or abbreviations.

    Numbers are written in words without "and". British spellings become American.
    """
    text = text.lower().replace("\u2019", "'").replace("\u2018", "'")
    text = re.sub(
        r"\d{1,3}(?:,\d{3}){1,2}(?!\d)", lambda found: number_words(int(found[0].replace(",", ""))), text
    )
    text = re.sub(r"\$(\d+)", r"\1 $", text)
    words = " ".join(_in_words(token) for token in _TOKEN.findall(text))
    return re.sub(r"\b(hundred|thousand|million) and\b", r"\1", words)


def _in_words(token: str) -> str:
    if token[0].isdigit():
        ordinal = not token.isdigit()
        digits = token[:-2] if ordinal else token
        if len(digits) > 9:
            return " ".join(_UNITS[int(digit)] for digit in digits)
        words = _year(int(digits)) if len(digits) == 4 else number_words(int(digits))
        return _ordinal(words) if ordinal else words
    if token in _SIGNS:
        return _SIGNS[token]
    token = _WORDS.get(token, token)
    for british, american in _SPELLINGS.items():
        token = token.replace(british, american)
    return token


def _year(number: int) -> str:
    """Return four digits without a comma in words, as a year if they are likely to be one."""
    head, tail = divmod(number, 100)
    if not 11 <= head < 20:
        return number_words(number)
    return f"{number_words(head)} {number_words(tail) if tail else 'hundred'}"


def _ordinal(words: str) -> str:
    *head, last = words.split()
    if last in _ORDINALS:
        last = _ORDINALS[last]
    else:
        last = last[:-1] + "ieth" if last.endswith("y") else last + "th"
    return " ".join([*head, last])
