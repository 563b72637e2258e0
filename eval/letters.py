"""Multiple choice answered without generating: the next token's logits of the letters in front of the choices."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def listed(letters: Sequence[str], choices: Sequence[str]) -> str:
    """A line `A. choice` per choice. Raises ValueError if there are more choices than letters."""
    if len(choices) > len(letters):
        raise ValueError(
            f"A question has {len(choices)} choices, but its benchmark's yaml has {len(letters)} letters; add some."
        )
    return "".join(f"{letter}. {choice}\n" for letter, choice in zip(letters, choices, strict=False))


def letter_ids(tokenizer: Any, letters: Sequence[str]) -> dict[str, int]:
    """The token that is scored for each letter: the last one of ` A`, ` B`, ... (docs/protocol.md, Letters).

    Raises ValueError if the tokenizer gives two letters the same token.
    """
    ids = {letter: tokenizer.encode(f" {letter}", add_special_tokens=False)[-1] for letter in letters}
    if len(set(ids.values())) < len(ids):
        raise ValueError(f"The tokenizer ends two of the letters {', '.join(letters)} in the same token: {ids}.")
    return ids


def best(logits: Mapping[str, float], choices: int | None = None) -> str:
    """The letter with the largest softmax in float32 among the first `choices`; the first of equals.

    logits: per letter, in order; empty if the prompt did not fit, and the answer is then empty too
    """
    letters = list(logits)[:choices]
    if not letters:
        return ""
    values = np.array([logits[letter] for letter in letters], dtype=np.float32)  # (choices,)
    with np.errstate(invalid="ignore"):  # a model that has diverged gives nan, and still some letter
        probabilities = np.exp(values - values.max())  # not normalised: the order is that of the softmax
    return letters[int(probabilities.argmax())]
