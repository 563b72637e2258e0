"""Runs a module in this process, which kills itself at its n-th import or its n-th record: no clock decides when.

python tests/scripts/killed.py record 17 scripts.evaluate runs=[...]
"""

import itertools
import os
import runpy
import signal
import sys
from pathlib import Path


def die_at(number: int):
    """A function that kills this process, as `kill -9` does, when it is called for the n-th time."""
    calls = itertools.count(1)

    def called(*_: object) -> None:
        if next(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    return called


if __name__ == "__main__":
    kind, number, module, *arguments = sys.argv[1:]
    sys.path.insert(0, str(Path.cwd()))
    die = die_at(int(number))
    if kind == "import":
        sys.addaudithook(lambda event, _: die() if event == "import" else None)
    else:
        from eval.predictions import Store

        add = Store.add

        def add_and_die(self, record):
            add(self, record)
            die()

        Store.add = add_and_die
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
