"""Runs commands one after the other in this process, each on configs that were edited for it: see test_misuse.py.

Reads cases as JSON from stdin: {"command": [NAME, OVERRIDE, ...], "files": {PATH: TEXT or [OLD, NEW]}}, where PATH is
below MOS_CONFIGS. Writes as JSON what each ended with: the argument of `sys.exit`, or a traceback.
"""

import contextlib
import io
import json
import os
import runpy
import sys
import traceback
from pathlib import Path

from scripts.table import launch, produce

CONFIGS = Path(os.environ["MOS_CONFIGS"])


def trains(*args, **kwargs):
    sys.exit("It would have trained.")


def edit(path, change):
    text = change
    if isinstance(change, list):
        before = path.read_text(encoding="utf-8")
        assert change[0] in before, (path, change)
        text = before.replace(*change, 1)
    path.write_text(text, encoding="utf-8")


def outcome(name, *overrides):
    sys.argv = [name, *overrides]
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            runpy.run_module(f"scripts.{name}", run_name="__main__")
    except SystemExit as ended:
        return ended.code
    except BaseException:
        return traceback.format_exc()
    return 0


def attempt(case):
    kept = {path: path.read_text(encoding="utf-8") for path in CONFIGS.rglob("*.yaml")}
    for name, change in case["files"].items():
        edit(CONFIGS / name, change)
    try:
        return outcome(*case["command"])
    finally:
        for path in set(CONFIGS.rglob("*.yaml")) - set(kept):
            path.unlink()
        for path, text in kept.items():
            path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    launch.launch = produce.launch = trains
    print(json.dumps([attempt(case) for case in json.load(sys.stdin)]))
