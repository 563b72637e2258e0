import json
import subprocess
import sys
from pathlib import Path

from omegaconf import OmegaConf

from scripts import prepare_data
from scripts.cell import base_model

ROOT = Path(__file__).resolve().parents[2]


def test_the_report_is_printed_as_json(tmp_path, byte_tokenizer, monkeypatch, capsys):
    monkeypatch.setattr(base_model, "load_tokenizer", lambda model, cache_dir: byte_tokenizer)
    cfg = OmegaConf.create(
        {
            "model": {},
            "dataset": OmegaConf.load(ROOT / "configs/dataset/super_ni.yaml"),
            "trainer": {"max_length": 512, "validation_size": 10},
            "data": str(ROOT / "tests/fixtures"),
            "cache_dir": str(tmp_path),
        }
    )
    prepare_data.main(cfg)
    report = json.loads(capsys.readouterr().out)
    assert (report["dataset"], report["lines"], report["examples"], report["broken"]) == ("super_ni", 68, 68, 0)
    assert report["train"] + report["validation"] + report["dropped"] == report["examples"]
    assert (tmp_path / "data" / f"super_ni-{report['key']}" / "report.json").is_file()


def test_an_unknown_set_is_one_line_and_a_failure():
    command = [sys.executable, "-m", "scripts.prepare_data", "dataset=cotx"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    assert "Unknown dataset 'cotx'; choose one of code_alpaca, cot, flan_v2, super_ni." in done.stderr
    assert "Traceback" not in done.stderr
