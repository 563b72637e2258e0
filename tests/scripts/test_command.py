"""Expected errors are one line on stderr and exit code 1; bugs keep their traceback."""

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
        f"import sys\nsys.path.insert(0, {str(ROOT)!r})\nfrom scripts.command import entry_point\n\n\n"
        f"@entry_point\ndef main(cfg):\n    {body}\n\n\nif __name__ == '__main__':\n    main()\n"
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
