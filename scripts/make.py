"""Runs a command of this folder with the variables of `make` as its overrides.

    MAKE_DATA='my data' MAKE_SEEDS=0,1 python -m scripts.make tables table=table2

is `python -m scripts.tables table=table2 'data="my data"' seeds=[0,1]`. The Makefile hands its variables over in the
environment under these names, so that no shell and no grammar reads what stands in them.
"""

import os
import runpy
import sys

from scripts.command import EXPECTED, print_in_any_locale, sentence
from scripts.variables import overrides


def main() -> None:
    print_in_any_locale()
    name, *fixed = sys.argv[1:]
    try:
        sys.argv[1:] = [*fixed, *overrides(os.environ)]
    except EXPECTED as error:
        sys.exit(f"error: {sentence(error)}")
    sys.argv[0] = name
    runpy.run_module(f"scripts.{name}", run_name="__main__")


if __name__ == "__main__":
    main()
