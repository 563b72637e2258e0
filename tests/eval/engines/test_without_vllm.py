import sys
from pathlib import Path

import pytest

from eval.engines.vllm import VllmEngine


def test_a_machine_without_vllm_is_told_the_ways_on(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ImportError, match="engine=hf, or install it"):
        VllmEngine(Path("nowhere"))
