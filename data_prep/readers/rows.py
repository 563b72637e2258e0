"""The row that every reader yields."""

from typing import Any

Row = dict[str, Any]

SEED = 42  # of every set: only that of SuperNI is as published, whose run had one seed for all sets in turn


def row(dataset: str, number: int | str, prompt: str, completion: str) -> Row:
    messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]
    return {"dataset": dataset, "id": f"{dataset}_{number}", "messages": messages}
