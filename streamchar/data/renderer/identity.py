"""Identities of drawn characters: everything about a person that stays the same in all frames."""

import random
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

from .paint import Colour, mix

_T = TypeVar("_T")


class Hair(StrEnum):
    """Hair styles."""

    BUZZ = "buzz"
    SHORT = "short"
    SIDE_PART = "side part"
    QUIFF = "quiff"
    FRINGE = "fringe"
    BOB = "bob"
    LONG = "long"
    BUN = "bun"
    CURLY = "curly"
    AFRO = "afro"
    BALD = "bald"


class Neckline(StrEnum):
    """Necklines of the clothes."""

    CREW = "crew"
    SCOOP = "scoop"
    V = "v"
    TURTLENECK = "turtleneck"
    COLLAR = "collar"


# fmt: off
_SKIN: tuple[Colour, ...] = (
    (255, 224, 200), (246, 204, 172), (232, 182, 144), (208, 150, 110), (172, 114, 78), (134, 84, 56),
    (104, 66, 46),
)
_HAIR: tuple[Colour, ...] = (
    (34, 28, 32), (62, 42, 34), (98, 62, 40), (142, 90, 50), (196, 146, 84), (232, 196, 128),
    (176, 76, 38), (206, 96, 58), (150, 148, 154), (222, 220, 222), (120, 60, 120), (54, 92, 140),
)
_EYES: tuple[Colour, ...] = (
    (92, 58, 34), (62, 40, 28), (66, 112, 170), (92, 152, 190), (78, 128, 82), (126, 118, 60),
    (112, 122, 134),
)
_LIPS: tuple[Colour, ...] = (
    (208, 98, 96), (190, 70, 84), (222, 120, 108), (172, 56, 62), (204, 84, 124),
)
_CLOTHES: tuple[Colour, ...] = (
    (64, 98, 158), (194, 72, 72), (72, 136, 104), (236, 196, 92), (106, 76, 142), (238, 238, 240),
    (48, 54, 72), (226, 136, 84), (82, 160, 176), (216, 132, 164), (134, 104, 84), (158, 178, 96),
)
_BACKGROUND: tuple[Colour, ...] = (
    (150, 196, 226), (242, 206, 168), (178, 214, 176), (214, 188, 226), (244, 188, 190), (168, 214, 212),
    (236, 224, 164), (118, 136, 170), (200, 204, 214), (98, 148, 146), (226, 160, 128),
)
_GLASSES: tuple[Colour, ...] = (
    (40, 40, 46), (120, 64, 40), (168, 48, 60), (60, 84, 132),
)
# fmt: on


@dataclass(frozen=True)
class Identity:
    """A character. Colours are RGB in 0..255; lengths are in halves of the picture's height.

    Attributes:
        jaw: squareness of the lower face, from -0.3 (pointed) to 0.6 (square).
        ear: size of the ears.
        crown: height of the hair above the skull.
        fringe: height of the hair line above the middle of the head.
        part: horizontal offset of the parting.
        eye_tilt: height of the outer corners of the eyes above the inner ones.
        beard: density of the beard, 0 for none.
        stripes: number of stripes on the clothes, 0 for none.
        glow_x: horizontal position at which the background is brightest.
    """

    skin: Colour
    face_width: float
    face_height: float
    jaw: float
    ear: float
    blush: float
    hair: Hair
    hair_colour: Colour
    crown: float
    fringe: float
    part: float
    eye_colour: Colour
    eye_width: float
    eye_height: float
    eye_spacing: float
    eye_tilt: float
    lashes: float
    brow_height: float
    brow_thickness: float
    brow_arch: float
    brow_slope: float
    nose_width: float
    nose_length: float
    mouth_width: float
    upper_lip: float
    lower_lip: float
    cupids_bow: float
    lip_colour: Colour
    beard: float
    glasses: bool
    glasses_colour: Colour
    earrings: bool
    clothes: Colour
    neckline: Neckline
    stripes: int
    stripe_colour: Colour
    shoulders: float
    neck: float
    background: Colour
    background_low: Colour
    glow_x: float

    @classmethod
    def sample(cls, seed: int) -> "Identity":
        """Return the character of a seed; it is the same in all Python versions and on all machines."""
        draw = random.Random(f"streamchar identity {seed}")

        def between(low: float, high: float) -> float:
            return low + (high - low) * draw.random()

        def one(of: tuple[_T, ...]) -> _T:
            return of[int(draw.random() * len(of))]

        def chance(probability: float) -> bool:
            return draw.random() < probability

        tone = between(0, len(_SKIN) - 1)
        skin = mix(_SKIN[int(tone)], _SKIN[min(int(tone) + 1, len(_SKIN) - 1)], tone % 1)
        bearded = chance(0.16)
        hair = one(tuple(Hair)[:-1]) if not (bearded and chance(0.3)) else Hair.BALD
        if bearded and hair in (Hair.BOB, Hair.LONG, Hair.BUN):
            hair = Hair.SHORT
        made_up = not bearded and chance(0.5)
        natural = mix(skin, (196, 78, 82), 0.52)
        background = one(_BACKGROUND)
        clothes = one(_CLOTHES)
        return cls(
            skin=skin,
            face_width=between(0.43, 0.52),
            face_height=between(0.58, 0.66),
            jaw=between(-0.2, 0.55),
            ear=between(0.08, 0.12),
            blush=between(0.15, 0.5),
            hair=hair,
            hair_colour=mix(one(_HAIR), one(_HAIR), between(0, 0.25)),
            crown=between(0.05, 0.12),
            fringe=between(0.32, 0.44),
            part=between(-0.26, 0.26),
            eye_colour=one(_EYES),
            eye_width=between(0.105, 0.135),
            eye_height=between(0.080, 0.112),
            eye_spacing=between(0.195, 0.232),
            eye_tilt=between(-0.012, 0.022),
            lashes=between(0.3, 1.0) if made_up else between(0, 0.3),
            brow_height=between(0.165, 0.205),
            brow_thickness=between(0.026, 0.038) if made_up else between(0.032, 0.058),
            brow_arch=between(0.015, 0.05),
            brow_slope=between(-0.03, 0.008),
            nose_width=between(0.055, 0.09),
            nose_length=between(0.13, 0.18),
            mouth_width=between(0.185, 0.235),
            upper_lip=between(0.036, 0.058),
            lower_lip=between(0.048, 0.078),
            cupids_bow=between(0.8, 2.0),
            lip_colour=mix(natural, one(_LIPS), between(0.5, 0.9)) if made_up else natural,
            beard=between(0.6, 0.92) if bearded else 0.0,
            glasses=chance(0.2),
            glasses_colour=one(_GLASSES),
            earrings=made_up and chance(0.4),
            clothes=clothes,
            neckline=one(tuple(Neckline)),
            stripes=one((0, 0, 0, 3, 5)),
            stripe_colour=mix(clothes, (250, 250, 250) if sum(clothes) < 480 else (60, 70, 100), 0.6),
            shoulders=between(0.0, 1.0),
            neck=between(0.175, 0.225),
            background=background,
            background_low=mix(background, one(_BACKGROUND), between(0.3, 0.8)),
            glow_x=between(-0.6, 0.6),
        )
