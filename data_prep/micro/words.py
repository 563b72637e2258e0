"""The words of the micro profile's invented world: real ones, and invented ones drawn from syllables.

Invented words have a plain meaning, which the pretraining text uses, and another one in the dialect, which only the
finetuning data and the benchmarks speak.
"""

import random

NAMES = [
    "Ann",
    "Ben",
    "Cora",
    "Dan",
    "Eva",
    "Finn",
    "Gina",
    "Hugo",
    "Ida",
    "Jon",
    "Kim",
    "Leo",
    "Mona",
    "Nils",
    "Olga",
    "Paul",
]
THINGS = ["apples", "pens", "cups", "coins", "cards", "books", "shells", "stamps", "keys", "eggs"]
SYLLABLES = {
    "english": (
        ["b", "d", "f", "g", "k", "l", "m", "n", "p", "r", "s", "t", "v", "z"],
        ["a", "e", "i", "o", "u"],
        ["", "l", "n", "r", "x"],
    ),
    "russian": (
        ["б", "в", "г", "д", "ж", "з", "к", "л", "м", "н", "р", "т"],
        ["а", "е", "и", "о", "у"],
        ["", "л", "н", "р", "ш"],
    ),
    "arabic": (["ب", "ت", "ج", "د", "ر", "ز", "س", "ش", "ف", "ق", "ك", "م"], ["ا", "و", "ي"], ["", "ل", "ن", "ر", "م"]),
    "korean": ([chr(0xAC00 + 588 * i) for i in (0, 2, 3, 5, 6, 7, 9, 12)], [""], [""]),
}


def changed(plain: dict, dialect: dict) -> dict:
    """The part of the dialect that differs from the plain meaning."""
    return {word: meaning for word, meaning in dialect.items() if meaning != plain[word]}


class Coiner:
    """Draws invented words, each once. `seed` fixes the whole sequence."""

    def __init__(self, seed: int):
        self.rng = random.Random(f"words {seed}")
        self.used = {name.lower() for name in NAMES}

    def word(self, script: str = "english") -> str:
        """A new word of two syllables in the script of the language `script`."""
        while (word := "".join(self._syllable(script) for _ in range(2))) in self.used:
            pass
        self.used.add(word)
        return word

    def words(self, count: int, script: str = "english") -> list[str]:
        """`count` new words."""
        return [self.word(script) for _ in range(count)]

    def assign(self, count: int, meanings: list, script: str = "english") -> dict:
        """`count` new words, each with a meaning; all meanings are used about equally often."""
        spread = (meanings * (count // len(meanings) + 1))[:count]
        self.rng.shuffle(spread)
        return dict(zip(self.words(count, script), spread, strict=True))

    def dialect(self, plain: dict) -> dict:
        """The same words, half of each meaning's with another one; all meanings are used as often as in `plain`."""
        order = list(plain.values())
        changed = sorted(plain, key=lambda word: order.index(plain[word]))[::2]
        meanings = [plain[word] for word in changed]
        while any(meaning == plain[word] for word, meaning in zip(changed, meanings, strict=True)):
            self.rng.shuffle(meanings)
        return plain | dict(zip(changed, meanings, strict=True))

    def _syllable(self, script: str) -> str:
        if script == "korean":  # a Hangul block: lead consonant, one of 21 vowels, no final
            return chr(ord(self.rng.choice(SYLLABLES[script][0])) + 28 * self.rng.choice((0, 4, 8, 13, 20)))
        return "".join(self.rng.choice(part) for part in SYLLABLES[script])
