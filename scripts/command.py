"""Expected errors become one line on stderr and exit code 1; anything else is a bug and keeps its traceback."""

import functools
import io
import logging
import os
import sys
from collections.abc import Callable

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from scripts import settings
from scripts.config import CONFIGS, choices, completed, given

EXPECTED = (ValueError, OSError, ArithmeticError, ImportError, HydraException, OmegaConfBaseException, YAMLError)


class CellFailed(Exception):
    """A cell of a sweep failed, and its error has been printed; the other cells go on."""


def entry_point(task: Callable[[DictConfig], object]) -> Callable[[], None]:
    """`task` as a command line: composed by Hydra from `configs/`, its expected errors printed as one line.

    In a sweep (`-m`) a failed cell does not stop the others. `HYDRA_FULL_ERROR=1` shows every traceback.
    """
    composed = hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="config")
    if os.environ.get("HYDRA_FULL_ERROR") == "1":
        return lambda: _run(composed(task))
    command = composed(_reported(task))

    def run() -> None:
        os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises what it would print, so that it is printed here
        try:
            _run(command)
        except CellFailed:
            sys.exit(1)
        except EXPECTED as error:
            sys.exit(f"error: {sentence(error)}")
        finally:
            del os.environ["HYDRA_FULL_ERROR"]  # a command started later, by this process, must print its sentence too

    return run


def print_in_any_locale() -> None:
    """Let stdout and stderr show `?` for a sign that the locale lacks (`±` in ASCII), where they would fail."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a test or a notebook may have put something else there
            stream.reconfigure(errors="replace")


def sentence(error: BaseException) -> str:
    """The text of `error` on one line; an unknown name of a config group lists the known ones."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, name = error.missing_cfg_file.rpartition("/")
        return f"Unknown {group} '{name}'; choose one of {', '.join(choices(group))}."
    if isinstance(error, InstantiationException) and error.__cause__:
        return sentence(error.__cause__)
    if isinstance(error, OverrideParseException):
        return f"The override '{error.override}' cannot be read: {error.message.partition(chr(10))[0]}."
    return " ".join(str(error).split()) or type(error).__name__


def _run(command: Callable[[], None]) -> None:
    print_in_any_locale()
    logging.getLogger("bitsandbytes.backends").setLevel(logging.ERROR)  # they warn of a kernel that we do not use
    sys.argv[1:] = completed(sys.argv[1:])
    command()


def _reported(task: Callable[[DictConfig], object]) -> Callable[[DictConfig], None]:
    @functools.wraps(task)
    def reported(cfg: DictConfig) -> None:
        try:
            settings.check(cfg)
            task(cfg)
        except EXPECTED as error:
            if HydraConfig.get().mode == RunMode.RUN:
                sys.exit(f"error: {sentence(error)}")
            print(f"error: {' '.join(given())}: {sentence(error)}", file=sys.stderr)
            raise CellFailed from None

    return reported
