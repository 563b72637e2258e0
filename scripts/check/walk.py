"""A list of checks, a line each: `ok` and what was found, `FAIL:` and the remedy, or `left` and why not."""

import sys
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TextIO

EXPECTED = (ValueError, OSError, ArithmeticError, ImportError)


@dataclass(frozen=True)
class Check:
    """A name, and what finds out: it returns what it found, or raises an error whose sentence names the remedy.

    A `LeftOut` error says that the check cannot be made here; that is no failure.
    """

    name: str
    find: Callable[[], str]


class LeftOut(Exception):
    """A check that cannot be made on this machine, and why."""


def walk(checks: Iterable[Check], out: TextIO | None = None) -> list[str]:
    """Make the checks in their order, and print a line for each on `out` (stderr); returns the lines that say FAIL.

    All are made, so that one walk shows all that is to be mended.
    """
    failed = []
    for check in checks:
        line = _line(check)
        print(line, file=out or sys.stderr, flush=True)
        if line.startswith("FAIL"):
            failed.append(line)
    return failed


def _line(check: Check) -> str:
    try:
        return f"ok    {check.name}: {check.find()}"
    except LeftOut as reason:
        return f"left  {check.name}: {reason}"
    except Exception as error:  # one check must not end the others
        if not isinstance(error, EXPECTED):
            traceback.print_exc()
        return f"FAIL: {check.name}: {' '.join(str(error).split()) or type(error).__name__}"
