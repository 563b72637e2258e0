"""Tables in Markdown, for all pages that the commands write."""

from collections.abc import Iterable, Sequence


def pipe_table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """The table, without a line end after the last row. A cell is written as it is: `|` in it is not escaped."""
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in (head, ["---"] * len(head), *rows))
