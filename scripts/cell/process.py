"""Processes that this one starts: none of them outlives it, however it ends."""

import ctypes
import os
import signal
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

PR_SET_PDEATHSIG = 1  # of prctl(2)


def die_with_parent(parent: int) -> None:
    """Ask Linux to kill this process when its parent ends, also by `kill -9`; elsewhere nothing is done.

    Called first in a new process. Exits if the parent has ended before.
    parent: its process id, taken in the parent, since an orphan has another one by the time that it could ask
    """
    if not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def start_worker(parent: int, threads: int) -> None:
    """The start of a worker process: it ends with the process `parent`, and computes with `threads` threads.

    Called before torch is imported, which reads the variable then. A variable that is already set wins.
    """
    die_with_parent(parent)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))


def worker_pool(
    workers: int, start: Callable[..., None] = die_with_parent, *arguments: object, **options: Any
) -> ProcessPoolExecutor:
    """Processes that end with this one.

    start: called first in each, with the id of this process and the arguments;  options: of `ProcessPoolExecutor`
    """
    return ProcessPoolExecutor(workers, get_context("spawn"), start, (os.getpid(), *arguments), **options)
