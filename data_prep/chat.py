"""The chat format, its loss mask and its truncation (docs/protocol.md, Chat format)."""

from collections.abc import Iterator, Sequence
from typing import Any

IGNORED = -100  # the label that carries no loss
ROLES = ("system", "user", "assistant")
REPLY_HEADER = "<|assistant|>\n"

Message = dict[str, str]


def render(messages: Sequence[Message], eos: str) -> str:
    """Return the whole conversation as text, without the `<s>` that the tokenizer adds in front.

    messages: `{"role", "content"}`, roles system, user, assistant; contents are stripped
    Raises:
        ValueError: no message, or a message with another role
    """
    if not messages:
        raise ValueError("A conversation needs at least one message, got none.")
    return _concatenate(messages, eos).strip()


def encode(messages: Sequence[Message], tokenizer: Any, max_length: int | None) -> dict[str, list[int]]:
    """Return the token ids of a conversation and their labels, cut on the right. A label without loss is -100.

    max_length: tokens kept, `<s>` included; None keeps all
    returns {"input_ids": (n,), "labels": (n,)}, n <= max_length
    Raises:
        ValueError: as `render`
    """
    ids = tokenizer(render(messages, tokenizer.eos_token), verbose=False).input_ids
    labels = list(ids)
    for start, end in _masked_spans(messages, tokenizer):
        labels[start:end] = [IGNORED] * len(labels[start:end])
    return {"input_ids": ids[:max_length], "labels": labels[:max_length]}


def user_prompt(content: str, answer_prefix: str) -> str:
    """Return the evaluation prompt in chat format, without `<s>`. Training strips `content`, evaluation does not."""
    return f"<|user|>\n{content}\n{REPLY_HEADER}{answer_prefix}"


def _concatenate(messages: Sequence[Message], eos: str) -> str:
    return "".join(_piece(message, eos) for message in messages)


def _piece(message: Message, eos: str) -> str:
    role = message["role"]
    if role not in ROLES:
        raise ValueError(f"Unknown role '{role}' in a conversation; use one of {', '.join(ROLES)}.")
    end = eos if role == "assistant" else ""
    return f"<|{role}|>\n{message['content'].strip()}{end}\n"


def _masked_spans(messages: Sequence[Message], tokenizer: Any) -> Iterator[tuple[int, int]]:
    """Yield half-open spans of tokens without loss: each message that is no reply, and the header of a reply after it.

    A border is the number of tokens of the text before it, tokenized alone. The original code counts in this way.
    """

    def tokens(text: str) -> int:
        return len(tokenizer(text, verbose=False).input_ids)

    for i, message in enumerate(messages):
        if message["role"] == "assistant":
            continue
        before = _concatenate(messages[:i], tokenizer.eos_token)
        upto = _concatenate(messages[: i + 1], tokenizer.eos_token)
        if messages[i + 1 : i + 2] and messages[i + 1]["role"] == "assistant":
            upto += REPLY_HEADER
        yield (tokens(before) if i else 0), tokens(upto)  # 0: the mask of the first message covers `<s>`
