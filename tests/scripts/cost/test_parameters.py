"""The counts that the paper prints, to the last digit."""

import json
import sys

import pytest

from scripts import params
from scripts.cell.parameters import trainable_parameters
from scripts.config import choices, compose

LLAMA2_7B = {
    "lora_r2": 4_997_120,
    "lora_r8": 19_988_480,
    "lora_r16": 39_976_960,
    "lora_r64": 159_907_840,
    "pure_sharing": 4_997_120,
    "random_scaling": 4_997_120,
    "subset_selection": 4_997_120,
    "vera_r256": 1_417_216,
    "tied_lora_r280": 4_989_696,
    "prolora_r4": 4_997_120,
    "prolora_r8": 4_997_120,
    "mos_r4": 4_997_120,
    "mos_r8": 4_997_120,
    "mos_r16": 19_988_480,
    "mos_r32": 19_988_480,
    "mos_minus_sp_r16": 19_988_480,
    "mos_minus_sp_r32": 19_988_480,
    "mos_minus_vs_r16": 19_988_480,
    "mos_minus_vs_r32": 19_988_480,
    "mos_minus_pd_r16": 19_988_480,
    "mos_minus_pd_r32": 19_988_480,
}


def count(*overrides):
    return trainable_parameters(compose(overrides))


def test_command_prints_the_count_of_every_method_as_json(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["params", "model=llama2_7b"])
    params.main()
    rows = json.loads(capsys.readouterr().out)
    assert [row["method"] for row in rows] == [m for m in choices("method") if not m.startswith("vanilla")]
    printed = {row["method"]: row["trainable_parameters"] for row in rows}
    assert {method: printed[method] for method in LLAMA2_7B} == LLAMA2_7B


@pytest.mark.parametrize("method", ["lora_r2", "prolora_r4", "prolora_r8", "mos_r4", "mos_r8"])
def test_llama2_13b(method):
    assert count("model=llama2_13b", f"method={method}") == 7_823_360


@pytest.mark.parametrize("settings", [(2, 4, 1, 0), (64, 1, 64, 0), (8, 2, 16, 1)])
def test_mos_has_the_budget_of_lora_whatever_its_rank_shards_and_private_rank(settings):
    e, r, shards, p = settings[0], max(settings[1], settings[3]), settings[2], settings[3]
    budget = [f"method.equivalent_rank={e}", f"method.r={r}", f"method.shards_per_vector={shards}"]
    mos = count("model=llama2_7b", "method=mos", *budget, f"method.private_rank={p}")
    assert mos == count("model=llama2_7b", "method=lora", f"method.r={e}")


def test_a_rank_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="r=512 needs"):
        count("model=smollm2_135m", "method=mos", "method.r=512")


def test_a_folder_has_a_count_for_every_method_or_the_reason_why_it_does_not_fit(monkeypatch, capsys, tiny_checkpoint):
    monkeypatch.setattr(sys, "argv", ["params", "model=local", f"model.source.path={tiny_checkpoint}"])
    params.main()
    rows = {row.pop("method"): row for row in json.loads(capsys.readouterr().out)}
    lora = 2 * (2 * (64 + 64) + 2 * (64 + 32) + 3 * (64 + 128))  # two blocks, rank 1
    assert rows["lora_r2"] == {"trainable_parameters": 2 * lora}
    assert rows["pure_sharing"] == {"trainable_parameters": 2 * lora}
    assert "r=8 needs 28 different public shards" in rows["mos_r8"]["does_not_fit"]


def test_a_folder_that_is_none_is_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["params", "model=local", f"model.source.path={tmp_path}"])
    with pytest.raises(SystemExit, match=f"error: model.source.path={tmp_path} holds no config.json"):
        params.main()
