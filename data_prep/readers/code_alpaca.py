"""CodeAlpaca: one JSON list of `instruction`, `input`, `output` (docs/protocol.md, Training data)."""

import random
from collections.abc import Iterator

from data_prep.files import Tally, load_rows, texts, usable
from data_prep.readers.conversation import SEED, Conversation, conversation
from data_prep.readers.templates import fill
from data_prep.sources import Files, single


def read(files: Files, tally: Tally) -> Iterator[Conversation]:
    """Yield all rows in order, each in a random template, drawn as the original does: one `choices` per row.

    files: role `rows`
    Raises ValueError: the file is truncated, or is not a list.
    """
    rng = random.Random(SEED)
    rows = load_rows(single(files, "rows"))
    parsed = usable(rows, lambda row: texts(row, "instruction", "input", "output"), tally)
    for number, (instruction, input_, output) in enumerate(parsed):
        yield conversation("code_alpaca", number, *fill(instruction, input_, output, rng))
