"""The examples of CONTRIBUTING.md work as they are printed."""

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

from data_prep.files import Tally
from data_prep.readers import code_alpaca

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")

ADDED = """
from pathlib import Path

from omegaconf import OmegaConf
from data_prep.sources import find_files
from eval import benchmarks
from scripts.config import compose
from scripts.table import grid

cfg = compose(["table=table2", "method=mos_r64"])
grid.check_table(cfg)
(row,) = [row for row in cfg.table.rows if "mos_r64" in row.methods]
benchmark = OmegaConf.to_container(cfg.benchmark.arc_easy, resolve=True)
raw = benchmarks.load(benchmark, find_files(cfg.benchmark.arc_easy.source, Path("tests/fixtures/eval/arc_challenge")))
print(len(raw), cfg.method.config.r, cfg.method.config.equivalent_rank, row.against, benchmark["module"])
"""


def block(language, start):
    """The one fenced block of a language whose text has `start` in its first line."""
    found = [textwrap.dedent(text) for text in re.findall(rf"^ *```{language}\n(.*?)^ *```", TEXT, flags=re.M | re.S)]
    (text,) = [text for text in found if start in text.splitlines()[0]]
    return text


def test_the_row_and_the_benchmark_are_taken(tmp_path):
    configs = tmp_path / "configs"
    shutil.copytree(ROOT / "configs", configs)
    (configs / "method/mos_r64.yaml").write_text(block("yaml", "MoS at rank 64"), encoding="utf-8")
    (configs / "benchmark/arc_easy.yaml").write_text(block("yaml", "@package benchmark.arc_easy"), encoding="utf-8")
    table = configs / "table/table2.yaml"
    first, rest = re.split(r"(?<=\n)(?=  - )", table.read_text(encoding="utf-8"), maxsplit=1)
    table.write_text(f"{first}  {block('yaml', 'label: MoS').strip()}\n{rest}", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", ADDED],
        cwd=ROOT,
        env=os.environ | {"MOS_CONFIGS": str(configs)},
        capture_output=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["4", "64", "8", "lora_r8", "arc"]


def test_the_reader_reads(tmp_path):
    names = dict(vars(code_alpaca))
    exec(block("python", "def read("), names)
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([{"instruction": "Why?", "response": "So."}, {"instruction": 1}]), encoding="utf-8")
    tally = Tally()
    (row,) = names["read"]({"rows": [path]}, tally)
    assert [message["content"] for message in row["messages"]] == ["Why?", "So."]
    assert len(tally.broken) == 1
