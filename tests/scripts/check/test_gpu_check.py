"""The checks of a first GPU, with stand-ins for torch.cuda, nvidia-smi and a library that is broken."""

import os
import shutil
import subprocess
import sys
import textwrap
import weakref
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import bitsandbytes.functional
import pandas as pd
import pytest
import torch
import yaml

from scripts import gpu_check
from scripts.check import extrapolated, gpu, processes, rates, resumed, steps
from scripts.check.walk import LeftOut
from scripts.cost.gpu import Gpu

ROOT = Path(__file__).resolve().parents[3]
GIB = 2**30


@pytest.fixture
def nvidia_smi(tmp_path, monkeypatch):
    """`nvidia_smi(text)`: a stand-in that prints `text`, and first on the path."""

    def make(text):
        (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\ncat <<'E'\n{text}\nE\n", encoding="utf-8")
        (tmp_path / "nvidia-smi").chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    return make


@pytest.fixture
def cuda(monkeypatch):
    """`cuda(free)`: a GPU of 40 GiB with so many of them free."""
    a100 = SimpleNamespace(name="NVIDIA A100-SXM4-40GB", total_memory=40 * GIB)

    def there(free):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (free * GIB, 40 * GIB))
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: a100)

    return there


def test_a_driver_that_is_too_old_is_named(nvidia_smi, monkeypatch):
    nvidia_smi("535.183.01")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with pytest.raises(ValueError, match=r"driver is 535\.183\.01, .* needs 580"):
        gpu.driver_and_torch()


def test_foreign_processes_that_hold_memory_are_named(cuda, nvidia_smi):
    nvidia_smi(f"{os.getpid()}, python\n4711, /usr/bin/python3, of another")
    cuda(20)
    with pytest.raises(ValueError, match=r"are free; end process 4711 \(/usr/bin/python3, of another\)"):
        gpu.free_memory()
    cuda(39.5)
    assert gpu.free_memory() == "39.5 of 40.0 GiB free"


def test_memory_that_nobody_seems_to_hold_is_reported(cuda, nvidia_smi):
    nvidia_smi("")
    cuda(20)
    with pytest.raises(ValueError, match="another container"):
        gpu.free_memory()


def test_four_bits_cost_what_nf4_costs():
    assert gpu.nf4_round_trip() in [f"relative error 0.0{n} on cpu" for n in range(90, 100)]


@pytest.mark.parametrize("factor", [0.8, 1.2, float("nan")])
def test_an_nf4_error_out_of_range_is_refused(monkeypatch, factor):
    right = bitsandbytes.functional.dequantize_4bit
    monkeypatch.setattr(bitsandbytes.functional, "dequantize_4bit", lambda *a: right(*a) * factor)
    with pytest.raises(ValueError, match="instead of about"):
        gpu.nf4_round_trip()


def test_an_optimizer_that_forgets_its_moments_is_found(monkeypatch):
    class Forgetful(torch.optim.AdamW):
        def load_state_dict(self, state):
            pass

    assert gpu.optimizer_resumed() == "torch's AdamW, difference 0e+00"
    monkeypatch.setattr(gpu, "optimizer", lambda: ("it", lambda parameters: Forgetful(parameters, lr=0.1)))
    with pytest.raises(ValueError, match="it goes on differently after a resume"):
        gpu.optimizer_resumed()


@pytest.mark.parametrize("step", steps.steps(), ids=lambda step: step.name)
def test_each_step_runs_here_and_says_that_nothing_was_measured(step):
    measured = []
    with pytest.raises(LeftOut, match="no GPU to measure"):
        replace(step, batch=1, length=8).report(measured)
    assert measured == []


def wide(method, seconds, memory):
    """A step as if it had been measured at full size; memory: times the plan's."""
    chosen = next(step for step in steps.steps() if step.method == method and step.checkpointing)
    chosen = replace(chosen, batch=steps.BATCH, length=steps.LENGTH, seconds=seconds)
    return replace(chosen, memory=memory * steps.plan(steps.WIDE, chosen)[0])


def test_memory_above_the_plan_fails_and_below_it_is_said():
    assert steps.against_plan(wide("LoRA 8", 1.0, 0.9)) == ", 0.90 times the plan's"
    with pytest.raises(ValueError, match="do not trust `make plan` on memory"):
        steps.against_plan(wide("LoRA 8", 1.0, 1.4))


def test_a_gpu_that_is_too_small_for_a_step_is_said(monkeypatch):
    def full(step):
        raise torch.OutOfMemoryError("tried to allocate")

    monkeypatch.setattr(steps, "_seconds", full)
    with pytest.raises(ValueError, match="more memory than is free"):
        steps.timed(next(steps.steps()))


class Model:
    """What a step holds while it is measured."""


@pytest.mark.parametrize("error", [None, torch.OutOfMemoryError("tried to allocate"), ValueError("the loss is nan")])
def test_a_step_gives_its_memory_back_whatever_happens(cuda, monkeypatch, error):
    """Else the engine of a later check finds too little: it takes nine tenths of the GPU."""
    models, left = [], []

    def seconds(step):
        model = Model()
        models.append(weakref.ref(model))
        if error:
            raise error
        return 1.0

    cuda(40)
    monkeypatch.setattr(steps, "_seconds", seconds)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 0)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: left.append(models[0]()))
    with pytest.raises(ValueError) if error else nullcontext():
        steps.timed(next(steps.steps()))
    assert left == [None]


def test_a_run_that_fails_before_its_first_checkpoint_says_why(tmp_path, monkeypatch):
    monkeypatch.setattr(resumed, "_command", lambda folder: program(tmp_path, "raise ValueError('no kernel image')"))
    with pytest.raises(ValueError, match="the first start wrote no checkpoint: ValueError: no kernel image"):
        resumed.killed_and_resumed()


def test_a_program_that_fails_is_named_with_all_its_arguments(tmp_path):
    command = [*program(tmp_path, "raise SystemExit(3)"), "an argument", "b=1"]
    with pytest.raises(ValueError, match=r"it failed: 3 \(python .*program.py 'an argument' b=1 shows all\)"):
        processes.finished(command, 60)


def test_two_blocks_are_scaled_to_llama2(cuda):
    cuda(40)
    step = wide("LoRA 8", 0.5, 1.0)
    seconds, memory = extrapolated.scaled(step, steps.LLAMA2_7B)
    assert 11 < memory < 12  # 11.3 GiB by the plan
    assert seconds / 0.5 == pytest.approx(steps.plan(steps.LLAMA2_7B, step)[1] / steps.plan(steps.WIDE, step)[1])
    assert extrapolated.extrapolated([step]).startswith(
        f"LLaMA2-7B LoRA 8 {seconds:.2f} s, {memory:.1f} GiB; LLaMA2-13B"
    )
    with pytest.raises(ValueError, match=r"LLaMA2-13B with LoRA 8 needs more than the 40\.0 GiB"):
        extrapolated.extrapolated([wide("LoRA 8", 0.5, 2.3)])
    with pytest.raises(LeftOut):
        extrapolated.extrapolated([])


def test_timings_become_an_efficiency_a_file_and_gpu_days(cuda, tmp_path, monkeypatch):
    """At the plan's own 35% the file gives the days of the A100 in configs/gpu."""
    cuda(40)
    monkeypatch.setattr(rates, "TABLES", ("table1",))  # of the three it has the fewest cells
    before = rates.gpu_days("a100_40g")
    configs = tmp_path / "configs"
    shutil.copytree(ROOT / "configs", configs)
    for module in ("scripts.check.rates", "scripts.cost.gpu", "scripts.config"):
        monkeypatch.setattr(sys.modules[module], "CONFIGS", configs)
    step = wide("LoRA 8", 1.0, 1.0)
    step = replace(step, seconds=steps.plan(steps.WIDE, step)[1] / (0.35 * 312e12))
    assert rates.write_rates([step, step]) == "nvidia_a100_sxm4_40gb"
    written = yaml.safe_load((configs / "gpu" / "nvidia_a100_sxm4_40gb.yaml").read_text())
    assert written["efficiency"] == {"training": 0.35}
    assert (written["tflops"], written["memory_gib"], written["measured"]) == (312, 40.0, ["training"])
    assert [path.name for path in (configs / "gpu").iterdir() if path.name.startswith(".")] == []
    assert Gpu.of("nvidia_a100_sxm4_40gb").measured == ("training",)
    assert rates.gpu_days("nvidia_a100_sxm4_40gb") == pytest.approx(before, rel=0.01)


def test_a_cell_of_two_tables_is_counted_once(monkeypatch):
    days = {"table1": [("lora_r2", 24.0), ("pure_sharing", 48.0)], "table2": [("lora_r2", 24.0)], "table3": []}

    def cells(gpu, table):
        rows = [(name, "cot", 0, hours, 0.0) for name, hours in days[table]]
        columns = ["method", "dataset", "seed", "A100-40G training h", "A100-40G evaluation h"]
        return pd.DataFrame(rows, columns=columns).assign(model="llama2_7b")

    monkeypatch.setattr(rates, "_cells", cells)
    assert rates.gpu_days("a100_40g") == 3.0


@pytest.mark.parametrize(
    ("name", "tflops"), [("NVIDIA A100-SXM4-40GB", 312), ("NVIDIA H100 80GB HBM3", 989), ("Tesla T4", None)]
)
def test_the_peak_is_that_of_a_known_gpu_of_the_same_model(name, tflops):
    assert rates.known_tflops(name) == tflops


def program(tmp_path, text):
    (tmp_path / "program.py").write_text(textwrap.dedent(text), encoding="utf-8")
    return [sys.executable, str(tmp_path / "program.py")]


def test_a_program_s_last_line_is_its_answer(tmp_path):
    assert processes.finished(program(tmp_path, "print('loading')\nprint('done')\nprint()"), 60) == "done"


def test_a_program_that_fails_or_hangs_is_said_to(tmp_path):
    with pytest.raises(ValueError, match="it failed: ValueError: no engine"):
        processes.finished(program(tmp_path, "raise ValueError('no engine')"), 60)
    with pytest.raises(ValueError, match="has not ended after 1 s"):
        processes.finished(program(tmp_path, "import time; time.sleep(60)"), 1)


def test_an_orphan_that_an_engine_leaves_is_found_and_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "GRACE", 0.2)
    orphan = "import subprocess; print(subprocess.Popen(['sleep', '300']).pid)"
    with pytest.raises(ValueError, match=r"it left process \d+ \(sleep\) running") as error:
        processes.finished(program(tmp_path, orphan), 60)
    pid = int(str(error.value).split("process ")[1].split()[0])
    state = Path(f"/proc/{pid}/stat")
    assert not state.exists() or state.read_text().split()[2] == "Z"


def test_what_is_not_installed_is_left_out(monkeypatch):
    monkeypatch.setattr(gpu, "find_spec", lambda name: None)
    for check in (gpu.nf4_round_trip, gpu.run_resumed, gpu.engine_answers):
        with pytest.raises(LeftOut, match="not installed"):
            check()


def test_the_last_line_says_what_is_known(monkeypatch):
    assert gpu_check.cost([]).startswith("No training step was measured")
    monkeypatch.setattr(gpu_check, "find_spec", lambda name: None)
    assert gpu_check.cost([object()]).startswith("hydra-core is not installed")


def test_it_imports_where_only_torch_transformers_and_peft_are():
    code = """
        import importlib.util
        import sys

        MISSING = ("hydra", "omegaconf", "bitsandbytes", "vllm", "datasets", "pandas", "wandb", "pydantic")

        class Missing:
            def find_spec(self, name, *_):
                if name.split(".")[0] in MISSING:
                    raise ModuleNotFoundError(name)

        found = importlib.util.find_spec
        importlib.util.find_spec = lambda name, *rest: None if name.split(".")[0] in MISSING else found(name, *rest)
        sys.meta_path.insert(0, Missing())
        import scripts.gpu_check, scripts.measure.machine
        from scripts.check import steps
        print(steps.plan(steps.WIDE, next(steps.steps())))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT, capture_output=True, encoding="utf-8"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("(")
