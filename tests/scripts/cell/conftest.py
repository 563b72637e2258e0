"""A finished run, trained once."""

import shutil

import pytest

from scripts.cell import runs, training
from scripts.config import compose


@pytest.fixture(scope="session")
def trained_once(tiny_cell, tmp_path_factory):
    return training.train(compose([*tiny_cell, f"runs_dir={tmp_path_factory.mktemp('trained-once')}"]))


@pytest.fixture
def undisturbed(trained_once, tiny):
    """The run of `tiny()`, as the test would have trained it: a copy in the test's own folder."""
    return shutil.copytree(trained_once, runs.run_dir(tiny()))
