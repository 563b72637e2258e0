"""Prompts as an engine takes them."""

from collections.abc import Sequence
from pathlib import Path

from eval.engines import Request


def asked(prompts: Sequence[str], adapter: Path | None = None) -> list[Request]:
    return [Request(prompt, adapter) for prompt in prompts]
