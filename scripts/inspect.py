"""Read what a run answered: its failures on a benchmark, or where it differs from another run on the same items.

python -m scripts.inspect run=runs/smol/... benchmark=NAME [against=runs/smol/...] [count=20] [--html page.html]
"""

import argparse
import sys
from pathlib import Path

from eval import benchmarks
from scripts.cell.answers import compared, evaluation, failed, show, write_page
from scripts.command import EXPECTED, print_in_any_locale, sentence

KEYS = ("run", "benchmark", "against", "count", "html")


def main(arguments: list[str]) -> None:
    print_in_any_locale()
    parser = argparse.ArgumentParser(prog="python -m scripts.inspect", description=__doc__.partition("\n")[0])
    parser.add_argument("settings", nargs="*", metavar="key=value", help=f"keys: {', '.join(KEYS)}")
    parser.add_argument("--html", metavar="FILE", help="write a page instead of printing")
    options = parser.parse_args(arguments)
    given = _settings(options.settings) | ({"html": options.html} if options.html else {})
    folder = evaluation(Path(given["run"]), given["benchmark"])
    title, answers = f"failures of {folder}", failed(folder)
    if "against" in given:
        other = evaluation(Path(given["against"]), given["benchmark"])
        title, answers = f"disagreements of {folder} and {other}", compared(folder, other)
    if "html" in given:
        write_page(Path(given["html"]), title, answers)
    else:
        show(title, answers, int(given.get("count", 20)))


def _settings(pairs: list[str]) -> dict[str, str]:
    given = dict(pair.partition("=")[::2] for pair in pairs)
    for key in given:
        if key not in KEYS:
            raise ValueError(f"Unknown setting '{key}'; there are {', '.join(KEYS)}.")
    for key in ("run", "benchmark"):
        if not given.get(key):
            raise ValueError(f"'{key}=' is missing, e.g. run=runs/smol/... benchmark={benchmarks.names()[0]}.")
    benchmarks.check_name(given["benchmark"])
    return given


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except EXPECTED as error:
        sys.exit(f"error: {sentence(error)}")
