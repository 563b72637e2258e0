"""CodeAlpaca: one JSON list of `instruction`, `input`, `output` (docs/protocol.md, Training data)."""

import random
from collections.abc import Iterator

from data_prep.files import Tally, load_rows, texts, usable
from data_prep.readers.rows import SEED, Row, row
from data_prep.readers.templates import fill
from data_prep.sources import Files


def read(files: Files, tally: Tally) -> Iterator[Row]:
    """All rows in order, each in a random template: `random.seed(42)`, then one `choices` per row.

    files: role `rows`. Raises ValueError if the file is truncated or not a list.
    """
    rng = random.Random(SEED)
    (path,) = files["rows"]
    parsed = usable(load_rows(path), lambda item: texts(item, "instruction", "input", "output"), tally)
    for number, (instruction, input_, output) in enumerate(parsed):
        yield row("code_alpaca", number, *fill(instruction, input_, output, rng))
