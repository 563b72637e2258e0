"""Expected errors are one line on stderr and exit code 1; bugs keep their traceback."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.errors import InstantiationException

from scripts import command as errors
from scripts.config import choices

ROOT = Path(__file__).parents[2]


def run(*overrides, script="scripts.train"):
    return subprocess.run([sys.executable, "-m", script, *overrides], cwd=ROOT, capture_output=True, text=True)


def program(tmp_path, body):
    """An entry point whose task does `body`."""
    path = tmp_path / "program.py"
    path.write_text(
        encoding="utf-8",
        data=f"import sys\nsys.path.insert(0, {str(ROOT)!r})\nfrom scripts.command import entry_point\n\n\n"
        f"@entry_point\ndef main(cfg):\n    {body}\n\n\nif __name__ == '__main__':\n    main()\n",
    )
    return path


def run_program(tmp_path, body, *overrides):
    path = program(tmp_path, body)
    return subprocess.run([sys.executable, path, *overrides], cwd=tmp_path, capture_output=True, text=True)


def test_an_unknown_method_lists_the_known_ones():
    done = run("method=nonsense")
    assert done.returncode == 1
    assert done.stderr == f"error: Unknown method 'nonsense'; choose one of {', '.join(choices('method'))}.\n"


@pytest.mark.parametrize(
    ("override", "named"),
    [("method.nonsense=3", "method.nonsense"), ("method.r=[1", "method.r=[1"), ("bogus=1", "bogus")],
)
def test_an_override_that_does_not_fit_is_one_line(override, named):
    done = run(override)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert named in done.stderr


def test_an_expected_error_is_one_line_and_a_bug_a_traceback(tmp_path):
    expected = run_program(tmp_path, "raise ValueError('seed=7 is\\n  too odd')")
    assert (expected.returncode, expected.stderr) == (1, "error: seed=7 is too odd\n")
    bug = run_program(tmp_path, "raise AttributeError('oops')")
    assert bug.returncode == 1
    assert "Traceback" in bug.stderr
    assert "in main" in bug.stderr


def test_a_failed_cell_of_a_sweep_is_named_and_the_others_go_on(tmp_path):
    done = run_program(tmp_path, "print('seed', 1 // cfg.seed)", "-m", "seed=0,1")
    assert done.returncode == 1
    assert "error: seed=0: integer division or modulo by zero" in done.stderr
    assert "seed 1" in done.stdout
    assert "Traceback" not in done.stderr


def test_a_wrapped_error_is_told_by_its_cause():
    cause = ValueError("r=0 must be positive")
    wrapped = InstantiationException("Error in call to target 'peft.LoraConfig'")
    wrapped.__cause__ = cause
    assert errors.sentence(wrapped) == "r=0 must be positive"
    assert errors.sentence(KeyboardInterrupt()) == "KeyboardInterrupt"


LIGHT = [
    "evaluate",
    "tables",
    "train",
    "plan",
    "search",
    "preflight",
    "bench_eval",
    "params",
    "prepare_data",
    "pretrain",
]


@pytest.mark.parametrize("name", LIGHT)
def test_a_wrong_setting_is_told_before_torch_is_imported(name):
    """Importing torch and transformers takes seconds, and bitsandbytes prints a line of its own."""
    program = (
        "import runpy, sys; sys.argv[1:] = ['limit=a']\n"
        f"try: runpy.run_module('scripts.{name}', run_name='__main__')\n"
        "except SystemExit as ended: print(ended.code, {'torch', 'transformers', 'vllm'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "error: limit=a is refused: input should be a valid integer. E.g. limit=40. set()\n"
    assert done.stderr == ""


ASCII = {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def test_a_command_prints_in_any_locale(tmp_path):
    path = program(tmp_path, "print('31.25 ± 1.77 ▲ paper†', cfg.data); print('día', file=sys.stderr)")
    done = subprocess.run([sys.executable, path], cwd=tmp_path, env=os.environ | ASCII, capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"31.25 ? 1.77 ? paper? None\n", b"d?a\n")


def test_an_error_is_one_sentence_in_any_locale(tmp_path):
    path = program(tmp_path, "raise ValueError('no día')")
    done = subprocess.run([sys.executable, path], cwd=tmp_path, env=os.environ | ASCII, capture_output=True)
    assert (done.returncode, done.stderr) == (1, b"error: no d?a\n")


def test_a_page_is_written_in_any_locale(tmp_path):
    environment = os.environ | ASCII | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "scripts.report", "profile=smol"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert "†" in (tmp_path / "report" / "smol.html").read_text(encoding="utf-8")
