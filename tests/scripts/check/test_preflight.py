"""The preflight: what each check finds and refuses; on a tiny model also all of it, and nothing stays behind."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from eval import sandbox
from scripts.cell import base_model
from scripts.check import preflight
from scripts.check.walk import Check, LeftOut, walk
from scripts.config import compose
from scripts.variables import overrides as of_make

ROOT = Path(__file__).resolve().parents[3]
FIXTURES = ROOT / "tests" / "fixtures"
TINY = ["method=lora_r2", "methods=[vanilla_chat,lora_r2]"]
GIB = 2**30


@pytest.fixture
def table(tmp_path):
    """`table(*overrides)`: the config of Table 3, and the overrides that its cells share."""

    def composed(*extra):
        folders = [f"{name}_dir={tmp_path / name}" for name in ("runs", "cache", "results")]
        overrides = ["profile=smol", "table=table3", "methods=[lora_r2,mos_r8]", f"data={FIXTURES}", *folders, *extra]
        return compose(overrides), overrides

    return composed


@pytest.fixture
def gpu(monkeypatch):
    """`gpu(free)`: a GPU with so many GiB free."""

    def there(free):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (free * GIB, 80 * GIB))

    return there


def test_a_walk_makes_all_checks_and_returns_what_failed(capsys):
    def fail(error):
        raise error

    checks = [
        Check("one", lambda: "found"),
        Check("two", lambda: fail(ValueError("not\nright; mend it"))),
        Check("three", lambda: fail(LeftOut("there is none"))),
        Check("four", lambda: fail(KeyError("a bug"))),
        Check("five", lambda: "found, too"),
    ]
    failed = walk(checks)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith(("ok", "left", "FAIL"))]
    assert lines == [
        "ok    one: found",
        "FAIL: two: not right; mend it",
        "left  three: there is none",
        "FAIL: four: 'a bug'",
        "ok    five: found, too",
    ]
    assert failed == [lines[1], lines[3]]


def test_a_missing_source_is_named(table, tmp_path):
    shutil.copytree(FIXTURES, tmp_path / "data")
    shutil.rmtree(tmp_path / "data" / "train" / "cot")
    with pytest.raises(FileNotFoundError, match="train/cot"):
        preflight.rehearsed(*table(f"data={tmp_path / 'data'}"))


def test_a_method_that_does_not_fit_is_named(table, tiny_checkpoint):
    cfg, overrides = table("model=local", f"++model.source.path={tiny_checkpoint}")
    with pytest.raises(ValueError, match="r=8 needs"):
        preflight.methods_fit(cfg, overrides)


def test_a_gpu_is_wanted_where_the_profile_asks_for_one(table):
    cfg, _ = table("gpus_per_run=1")
    with pytest.raises(ValueError, match="gpus_per_run=0"):
        preflight.gpu_found(cfg)
    assert preflight.gpu_found(table()[0]).startswith("cpu")


def test_memory_is_checked_against_the_plan(table, gpu):
    cfg, overrides = table("profile=paper", "model=llama2_7b", "methods=[lora_r8,mos_r8]")
    with pytest.raises(LeftOut, match="no GPU"):
        preflight.memory_fits(cfg, overrides)
    gpu(39)
    assert preflight.memory_fits(cfg, overrides).startswith("at most 1")  # of GiB
    gpu(9)
    with pytest.raises(ValueError, match=r"GiB to train besides 1\.0 for CUDA, and 9\.0 GiB are free"):
        preflight.memory_fits(cfg, overrides)


def test_rows_that_train_nothing_need_no_memory(table, gpu):
    gpu(9)
    with pytest.raises(LeftOut, match="no method of this table trains"):
        preflight.memory_fits(*table("profile=paper", "model=llama2_7b", "methods=[vanilla_chat]"))


def test_a_disk_that_is_too_small_is_named(table, monkeypatch):
    cfg, overrides = table("profile=paper", "model=llama2_7b")
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=2**40))
    assert "GiB still to be written" in preflight.disk_fits(cfg, overrides)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=GIB))
    with pytest.raises(OSError, match="has 1 GiB free, but"):
        preflight.disk_fits(cfg, overrides)


def test_memory_and_disk_read_no_data(table, monkeypatch):
    monkeypatch.setattr("data_prep.prepare.prepare", None)
    cfg, overrides = table()
    assert preflight.disk_fits(cfg, overrides)


def test_a_sandbox_is_wanted_where_programs_run(table, monkeypatch):
    none = sandbox.Protection("none", "nothing shuts programs in")
    monkeypatch.setattr(sandbox, "protection", lambda: none)
    with pytest.raises(LeftOut, match="no benchmark"):
        preflight.sandbox_found(table()[0])
    with pytest.raises(PermissionError, match=r"set benchmark\.humaneval\.allow_unprotected=true"):
        preflight.sandbox_found(table("table=table2")[0])
    allowed, _ = table("table=table2", "benchmark.humaneval.allow_unprotected=true")  # the key that it names
    assert preflight.sandbox_found(allowed) == none.text


def test_a_gated_model_without_a_token_names_the_token(table, monkeypatch):
    import httpx
    from huggingface_hub.errors import GatedRepoError

    def refuse(*_, **__):
        raise GatedRepoError("401", response=httpx.Response(401, request=httpx.Request("GET", "https://hub")))

    monkeypatch.setattr(base_model.huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(PermissionError, match="set HF_TOKEN"):
        preflight.base_model_found(table("profile=paper", "model=llama2_7b")[0])


def test_the_scratch_folder_is_empty_and_goes_even_after_a_kill(tmp_path):
    (tmp_path / ".preflight" / "of a killed one").mkdir(parents=True)
    with preflight.scratch(tmp_path) as folder:
        assert list(folder.iterdir()) == []
        (folder / "adapter").write_text("")
    with pytest.raises(KeyboardInterrupt), preflight.scratch(tmp_path) as folder:
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == [".preflight.lock"]


def test_a_process_that_is_killed_is_said_to_be():
    with pytest.raises(ChildProcessError, match="want of memory"):
        preflight.alone(os._exit, 9)
    with pytest.raises(ValueError, match="invalid literal"):
        preflight.alone(int, "word")


@pytest.mark.parametrize(("setting", "walked"), [("none", 0), ("data", 0), ("engine", 1)])
def test_the_setting_decides_how_much_a_table_tries(table, monkeypatch, setting, walked):
    done = []
    monkeypatch.setattr(preflight, "rehearse", lambda *_: done.append("rehearsed"))
    monkeypatch.setattr(preflight, "methods_fit", lambda *_: done.append("fit"))
    monkeypatch.setattr(preflight, "walk", lambda checks: done.append([check.name for check in checks]))
    preflight.prepare(*table(f"preflight={setting}"))
    assert done[:2] == ([] if setting == "none" else ["rehearsed", "fit"])
    assert done[2:] == [["GPU", "GPU memory", "disk", "sandbox", "base model", "adapters and engine"]][:walked]


def test_a_failed_check_ends_a_table_before_it_trains(table, monkeypatch):
    monkeypatch.setattr(preflight, "rehearse", lambda *_: None)
    monkeypatch.setattr(preflight, "walk", lambda checks: ["FAIL: disk: full"])
    with pytest.raises(SystemExit, match="1 checks failed: FAIL: disk: full"):
        preflight.prepare(*table())


def test_skip_preflight_leaves_it_out():
    assert "preflight=none" in of_make({"MAKE_SKIP_PREFLIGHT": "1", "MAKE_PROFILE": "paper"})


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint, tmp_path_factory):
    """The tiny model with room for the prompts of the fixtures."""
    folder = tmp_path_factory.mktemp("long")
    model = AutoModelForCausalLM.from_pretrained(tiny_checkpoint, max_position_embeddings=4096)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_checkpoint).save_pretrained(folder)
    return folder


@pytest.fixture
def command(checkpoint, tmp_path):
    """The command line of a preflight of Table 2 on the tiny model."""
    folders = [f"{name}_dir={tmp_path / name}" for name in ("runs", "cache", "results")]
    settings = [
        "profile=smol",
        "models={7b: local}",
        f"++model.source.path={checkpoint}",
        "engine=hf",
        f"data={FIXTURES}",
    ]
    methods = "methods=[vanilla_chat,lora_r2,vera_r256,tied_lora_r280,mos_minus_sp_r16]"
    return [sys.executable, "-m", "scripts.preflight", *settings, *folders, "table=table2", methods]


def of(marker):
    """The ids of the processes that were started with this marker in their environment."""
    found = []
    for environ in Path("/proc").glob("[0-9]*/environ"):
        try:
            if marker.encode() in environ.read_bytes():
                found.append(int(environ.parent.name))
        except OSError:
            continue
    return found


@pytest.mark.slow
def test_all_of_it_on_a_tiny_model_trains_nothing_and_leaves_nothing(command, tmp_path):
    done = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith(("ok ", "left ", "FAIL"))]
    assert [line.split(":")[0].split(maxsplit=1)[1] for line in lines] == [
        "settings, data and renderer", "methods", "GPU", "GPU memory", "disk", "sandbox", "base model",
        "adapters and engine",
    ]  # fmt: skip
    assert lines[-1] == "ok    adapters and engine: 50 answers scored, of 5 methods with hf"
    assert not (tmp_path / "runs").exists() and not (tmp_path / "results").exists()
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == [
        ".preflight.lock", "fingerprints.json", "models",
    ]  # fmt: skip
    again = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8")
    assert again.returncode == 0
    assert "Quantizing" not in again.stderr


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_ended_at_any_moment_it_leaves_no_process(command, tmp_path, how):
    marker = f"MOS_TEST_MARKER={tmp_path}"
    name, _, value = marker.partition("=")
    adapters = tmp_path / "cache" / ".preflight" / "adapters"
    for moment in (tmp_path / "cache", adapters, adapters / "lora_r2", adapters / "mos_minus_sp_r16"):
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | {name: value},
            stderr=subprocess.DEVNULL,
            preexec_fn=lambda: signal.signal(
                signal.SIGINT, signal.SIG_DFL
            ),  # which a test run in the background ignores
        )
        while not moment.exists() and process.poll() is None:
            time.sleep(0.01)
        assert process.poll() is None
        process.send_signal(how)
        process.wait(60)
        end = time.monotonic() + 30
        while (left := of(marker)) and time.monotonic() < end:
            time.sleep(0.1)
        assert not left
        if how != signal.SIGINT:  # a killed program cannot tidy up; its successor does
            shutil.rmtree(tmp_path / "cache" / ".preflight", ignore_errors=True)
        assert not (tmp_path / "cache" / ".preflight").exists()
