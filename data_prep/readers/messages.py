"""A ready jsonl of conversations, one `{"dataset", "id", "messages"}` a line, as open-instruct writes them."""

from collections.abc import Iterator
from typing import Any

from data_prep.chat import ROLES
from data_prep.files import BrokenRow, Tally, decode, needed, numbered_lines, texts, usable
from data_prep.readers.rows import Row
from data_prep.sources import Files


def read(files: Files, tally: Tally) -> Iterator[Row]:
    """All conversations in order, of any number of messages. files: role `messages`. Raises ValueError if truncated."""
    (path,) = files["messages"]
    yield from usable(numbered_lines(path), lambda line: _conversation(decode(line)), tally)


def _conversation(item: Any) -> Row:
    messages = [_message(message) for message in needed(item, "messages", list)]
    if not messages:
        raise BrokenRow("field 'messages' is empty")
    dataset, id_ = texts({"dataset": "messages", "id": ""} | item, "dataset", "id")
    return {"dataset": dataset, "id": id_, "messages": messages}


def _message(message: Any) -> dict[str, str]:
    role, content = texts(message, "role", "content")
    if role not in ROLES:
        raise BrokenRow(f"role '{role}' is not one of {', '.join(ROLES)}")
    return {"role": role, "content": content}
