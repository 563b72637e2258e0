"""A ready jsonl of conversations, one `{"dataset", "id", "messages"}` a line, the format that open-instruct writes."""

from collections.abc import Iterator
from typing import Any

from data_prep.chat import ROLES
from data_prep.files import BrokenRow, Tally, decode, needed, numbered_lines, texts, usable
from data_prep.readers.conversation import Conversation
from data_prep.sources import Files, single


def read(files: Files, tally: Tally) -> Iterator[Conversation]:
    """Yield all conversations in order, each of one message or more.

    files: role `messages`
    Raises ValueError if the file is truncated.
    """
    yield from usable(numbered_lines(single(files, "messages")), lambda line: _conversation(decode(line)), tally)


def _conversation(row: Any) -> Conversation:
    messages = [_message(message) for message in needed(row, "messages", list)]
    if not messages:
        raise BrokenRow("field 'messages' is empty")
    dataset, id_ = texts({"dataset": "messages", "id": ""} | row, "dataset", "id")
    return {"dataset": dataset, "id": id_, "messages": messages}


def _message(message: Any) -> dict[str, str]:
    role, content = texts(message, "role", "content")
    if role not in ROLES:
        raise BrokenRow(f"role '{role}' is not one of {', '.join(ROLES)}")
    return {"role": role, "content": content}
