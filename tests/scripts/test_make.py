"""Variables of `make` as overrides: any folder, and one sentence for each that is of a wrong type or range."""

import sys
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from scripts import make
from scripts import variables as handed
from scripts.config import compose
from scripts.settings import check

# What a folder can be called. Hydra's reader ends at a NUL, which no name of a file has.
FOLDERS = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), min_size=1, max_size=30)


ODD = [
    "a,b", "it's \\' odd\\", "\\\\", "cash$HOME", "${oc.env:HOME}", "\\${seed}", "'quoted'", '"', "null", " spaces ",
    "new\nline", "día", "a#b", "k=v", "p(1)", "{x}", "[x]", "~x",
]  # fmt: skip


@given(FOLDERS | st.text("\\${}'\"", min_size=1))
def test_any_text_comes_out_of_hydras_grammar_as_it_was(folder: str) -> None:
    value = OverridesParser.create().parse_override(f"data={handed.quoted(folder)}").value()
    assert OmegaConf.create({"data": str(value)}).data == folder


@pytest.mark.parametrize("folder", ODD)
def test_an_odd_text_comes_out_of_hydra_as_it_was(folder: str) -> None:
    assert compose([f"data={handed.quoted(folder)}"]).data == folder


@pytest.mark.parametrize("profile", ["printed", "published", "a/b", "..", ""])
def test_a_profile_must_name_a_folder_of_its_own_for_results(profile: str) -> None:
    cfg = compose(["profile=smol"])
    cfg.profile = profile
    with pytest.raises(ValueError, match=f"profile={profile} is refused: "):
        check(cfg)


def command(name: str, *fixed: str, monkeypatch: pytest.MonkeyPatch, **variables: str) -> str | int | None:
    """Run `python -m scripts.make name fixed...` in this process; returns what it exits with."""
    for variable, text in {"PROFILE": "smol", **variables}.items():
        monkeypatch.setenv(f"MAKE_{variable}", text)
    monkeypatch.setattr(sys, "argv", ["make", name, *fixed])
    with pytest.raises(SystemExit) as ended:
        make.main()
    return ended.value.code


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({"LIMIT": "abc"}, "limit=abc is refused: input should be a valid integer. E.g. limit=40."),
        ({"LIMIT": "1.5"}, "limit=1.5 is refused: input should be a valid integer"),
        ({"LIMIT": "1e3"}, "limit=1000.0 is refused: input should be a valid integer"),
        ({"LIMIT": "0"}, "limit=0 is refused: input should be greater than 0"),
        ({"DATA": "2024"}, "data=2024 is no folder; give the folder that holds train/ and eval/ (docs/data.md)."),
        ({"DATA": "true"}, "data=true is no folder"),
        ({"SEEDS": "a"}, "seeds=a is refused: input should be a valid integer. E.g. seeds=[0,1]."),
        ({"SEEDS": "0 1"}, "seeds=0 1 is refused: input should be a valid integer"),
        ({"SEEDS": "0,0"}, "seeds=[0, 0] is refused: 0 is given twice"),
        ({"SEEDS": "-1"}, "seeds=-1 is refused: input should be greater than or equal to 0"),
        ({"SEEDS": "0,"}, "The override 'seeds=[0,]' cannot be read"),
        ({"CANDIDATES": "-1"}, "candidates=-1 is refused: input should be greater than 0"),
        ({"METHODS": "mos_r8,mos_r8"}, "methods=['mos_r8', 'mos_r8'] is refused: mos_r8 is given twice"),
        ({"METHODS": "mos_r9"}, "No table has it: Unknown method 'mos_r9'. Did you mean 'mos_r"),
        ({"METHODS": "]"}, "The override 'methods=[]]' cannot be read"),
        ({"LAUNCHER": "slrum"}, "Unknown launcher 'slrum'. Did you mean 'slurm'?"),
        ({"OVERRIDES": "workers=-1"}, "workers=-1 is refused: input should be greater than 0"),
        ({"OVERRIDES": "gpus_per_run=2"}, "gpus_per_run=2 is refused: input should be 0 or 1"),
        ({"OVERRIDES": "'unclosed"}, "OVERRIDES='unclosed cannot be read: No closing quotation."),
        ({"DRY": "2"}, "DRY=2 is refused: use DRY=1, or DRY=0 for what happens without it."),
        ({"DRY": "true"}, "DRY=true is refused"),
        ({"PROFILE": "papre"}, "Unknown profile 'papre'; choose one of "),
    ],
    ids=str,
)
def test_a_wrong_setting_is_one_sentence_before_anything_runs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variables: dict[str, str], sentence: str
) -> None:
    places = [f"runs_dir={tmp_path / 'runs'}", f"results_dir={tmp_path / 'results'}"]
    ended = str(command("tables", "table=table2", *places, monkeypatch=monkeypatch, **variables))
    assert ended.startswith(f"error: {sentence}")
    assert "\n" not in ended
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("seed", ["a", "0.5", "01", "true", "-1", "null", "[0]"])
def test_a_seed_that_is_no_number_is_refused(monkeypatch: pytest.MonkeyPatch, seed: str) -> None:
    ended = str(command("train", "method=lora", f"seed={seed}", monkeypatch=monkeypatch))
    assert ended.startswith("error: seed=")
    assert " is refused: input should be " in ended
    assert "\n" not in ended


def test_dry_0_does_not_mean_dry() -> None:
    assert handed.overrides({"MAKE_PROFILE": "smol", "MAKE_DRY": "0"}) == ["profile=smol", "dry=false"]
    assert handed.overrides({"MAKE_PROFILE": "smol", "MAKE_SKIP_PREFLIGHT": "0"}) == ["profile=smol"]
