"""The words of an invented world: some real ones, and invented ones made from syllables.

An invented word has two meanings. The pretraining text uses the plain one. The finetuning data and the benchmarks use
the one of the dialect, which differs for half of the words.
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
    """Return the words whose meaning in the dialect differs from the plain one, with the dialect's meaning."""
    return {word: meaning for word, meaning in dialect.items() if meaning != plain[word]}


class Coiner:
    """Draws invented words and gives them meanings. No word is drawn twice; `seed` fixes the whole sequence."""

    def __init__(self, seed: int):
        self.rng = random.Random(f"words {seed}")
        self.used = {name.lower() for name in NAMES}

    def word(self, script: str = "english") -> str:
        """Return a new word of two syllables. `script` is a language of SYLLABLES."""
        while (word := "".join(self._syllable(script) for _ in range(2))) in self.used:
            pass
        self.used.add(word)
        return word

    def words(self, count: int, script: str = "english") -> list[str]:
        """Return `count` new words."""
        return [self.word(script) for _ in range(count)]

    def assign(self, count: int, meanings: list, script: str = "english") -> dict:
        """Return `count` new words, each with a meaning. All meanings are used about equally often."""
        spread = (meanings * (count // len(meanings) + 1))[:count]
        self.rng.shuffle(spread)
        return dict(zip(self.words(count, script), spread, strict=True))

    def dialect(self, plain: dict) -> dict:
        """Return the same words, where half of the words of each meaning have got another one.

        The changed words exchange meanings among themselves, so every meaning is used as often as in `plain`.
        """
        order = list(plain.values())
        changed = sorted(plain, key=lambda word: order.index(plain[word]))[::2]
        meanings = [plain[word] for word in changed]
        while any(meaning == plain[word] for word, meaning in zip(changed, meanings, strict=True)):
            self.rng.shuffle(meanings)
        return plain | dict(zip(changed, meanings, strict=True))

    def _syllable(self, script: str) -> str:
        if script == "korean":  # a Hangul syllable: a first consonant and a vowel
            return chr(ord(self.rng.choice(SYLLABLES[script][0])) + 28 * self.rng.choice((0, 4, 8, 13, 20)))
        return "".join(self.rng.choice(part) for part in SYLLABLES[script])
