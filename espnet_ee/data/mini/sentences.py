"""What the mini corpus says: a small vocabulary of regularly spelled words and a template grammar."""

from __future__ import annotations

from espnet_ee.data.mini.draws import Random
from espnet_ee.errors import UserError

LETTERS_TO_PHONES: dict[str, tuple[str, ...]] = {
    "CH": ("CH",), "SH": ("SH",), "TH": ("TH",), "NG": ("NG",), "NK": ("NG", "K"), "CK": ("K",), "QU": ("K", "W"),
    "EE": ("EE",), "OO": ("OO",), "AI": ("AI",), "OA": ("OA",), "AR": ("AR",),
    "LL": ("L",), "SS": ("S",), "FF": ("F",),
    "A": ("A",), "E": ("E",), "I": ("I",), "O": ("O",), "U": ("U",),
    "B": ("B",), "C": ("K",), "D": ("D",), "F": ("F",), "G": ("G",), "H": ("H",), "J": ("J",), "K": ("K",),
    "L": ("L",), "M": ("M",), "N": ("N",), "P": ("P",), "R": ("R",), "S": ("S",), "T": ("T",), "V": ("V",),
    "W": ("W",), "X": ("K", "S"), "Y": ("Y",), "Z": ("Z",),
}  # fmt: skip
"""Letter-to-sound rules; of two that fit, the longer one is taken."""

WORDS: dict[str, tuple[str, ...]] = {
    "determiner": ("THE", "THIS", "THAT", "HIS"),
    "adjective": (
        "RED", "BIG", "FAT", "WET", "HOT", "SAD", "THIN", "THICK", "LONG", "GREEN", "SOFT", "RICH", "COOL", "DEEP",
        "FLAT", "FAST", "LAST", "BEST", "DARK", "DAMP", "SMART", "QUICK", "STRONG", "PINK",
    ),
    "noun": (
        "CAT", "DOG", "PIG", "HEN", "FOX", "BAT", "RAT", "BUG", "ANT", "FISH", "SHIP", "SHEEP", "SHOP", "BOAT", "BOOK",
        "MOON", "ROOM", "FOOD", "BED", "BOX", "CUP", "HAT", "MAP", "PEN", "POT", "BAG", "BUS", "VAN", "TENT", "LAMP",
        "DESK", "FROG", "DRUM", "KING", "RING", "ROAD", "COAT", "RAIN", "TRAIN", "ROCK", "DUCK", "CLOCK", "TRUCK",
        "CHAIN", "SEED", "TEETH", "FARM", "CAR", "PARK", "ZOO", "YARD", "JAR", "QUEEN", "BANK",
    ),
    "verb": (
        "HIT", "CUT", "GOT", "HID", "LED", "FED", "MET", "DUG", "FELT", "KEPT", "SENT", "HELD", "LOST", "TOOK", "SHOOK",
        "PULL", "KICK", "PICK", "PACK", "CHECK", "WASH", "WISH", "HUNT", "HELP", "KEEP", "NEED", "FEEL", "PAINT",
        "LOAD", "SELL", "MISS", "THANK",
    ),
    "preposition": ("IN", "ON", "AT", "WITH", "FROM", "PAST", "OFF", "UPON"),
    "number": ("SIX", "TEN"),
    "conjunction": ("AND", "BUT"),
    "adverb": ("SOON", "THEN", "AGAIN", "NOT"),
}  # fmt: skip

TEMPLATES: tuple[str, ...] = (
    "determiner noun verb noun",
    "determiner adjective noun verb noun",
    "determiner noun verb determiner noun",
    "verb number noun preposition noun",
    "adverb determiner noun verb adjective noun",
    "number adjective noun verb noun",
    "determiner noun verb noun preposition determiner noun",
    "determiner adjective noun verb determiner adjective noun",
    "verb determiner noun",
    "noun conjunction noun verb number noun",
    "adverb verb adjective noun",
    "determiner adjective noun preposition determiner noun verb noun",
    "verb noun conjunction verb adjective noun",
)


def make_sentence(random: Random) -> str:
    """Draws a sentence of three to eight words."""
    return " ".join(random.choice(WORDS[kind]) for kind in random.choice(TEMPLATES).split())


def pronounce(word: str) -> list[str]:
    """The phones of a word.

    >>> pronounce("SHIP")
    ['SH', 'I', 'P']

    Raises:
        UserError: a letter has no rule.
    """
    phones: list[str] = []
    position = 0
    while position < len(word):
        letters = word[position : position + 2]
        if letters not in LETTERS_TO_PHONES:
            letters = word[position]
        if letters not in LETTERS_TO_PHONES:
            raise UserError(f"{word!r}: no rule for {word[position]!r}; use the letters A to Z")
        phones.extend(LETTERS_TO_PHONES[letters])
        position += len(letters)
    return phones
