"""Every key of the config is ordinary or makes another experiment, and no two experiments share a folder."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf

from scripts.cell import runs
from scripts.config import choices, compose
from scripts.table.experiment import LONGEST, ORDINARY, changes, is_ordinary, variant

# Another value for every ordinary key.
OTHER = {
    "profile": "profile=paper", "table": "table=table1", "benchmark": "benchmark=[gsm8k,bbh,mmlu,tydiqa,humaneval]",
    "methods": "methods=[lora_r8]", "datasets": "datasets=[cot]",
    "seeds": "seeds=[5]", "candidates": "candidates=1", "limit": "limit=3",
    "data": "data=generated", "runs": "runs=[x]", "dry": "dry=true", "gpus": "gpus=[h200]", "search": "search=mos",
    "capacity": "capacity=full", "open_instruct": "open_instruct=x", "metric_scripts": "metric_scripts=x",
    "gpus_per_run": "gpus_per_run=1", "preflight": "preflight=none", "workers": "workers=3", "launcher": "launcher=ray",
    "hydra": "hydra.job.name=x", "wandb": "wandb.project=x", "runs_dir": "runs_dir=x", "cache_dir": "cache_dir=x",
    "results_dir": "results_dir=x", "trainer.logging_steps": "trainer.logging_steps=7",
    "trainer.eval_steps": "trainer.eval_steps=7", "trainer.save_steps": "trainer.save_steps=7",
    "evaluation.when": "evaluation.when=cell", "engine.batch_size": "+engine.batch_size=7",
    "engine.max_num_seqs": "engine.max_num_seqs=7", "engine.max_loras": "engine.max_loras=7",
    "engine.gpu_memory_utilization": "engine.gpu_memory_utilization=0.5",
    "engine.cpu_kv_cache_gib": "engine.cpu_kv_cache_gib=7", "engine.cpu_threads": "engine.cpu_threads=7",
}  # fmt: skip
# These change what is shown, not how a cell comes about: profile and table name the file, and the notes tell the rest.
SHOWN = {"profile", "table", "benchmark", "limit", "data"}
# The keys of the root config that are no ordinary ones, and the sections in which any key makes another experiment.
EXPERIMENT = {
    "models",
    "local_model",
    "seed",
    "model",
    "method",
    "dataset",
    "trainer",
    "evaluation",
    "benchmark",
    "engine",
}
EXPERIMENT |= {"table", "rates", "not_in_average", "no_verdicts"}


def leaves(node: Any, prefix: str = "") -> Iterator[str]:
    """The dotted keys of all values of a config."""
    if not isinstance(node, Mapping) or not node:
        yield prefix
        return
    for key, child in node.items():
        yield from leaves(child, f"{prefix}.{key}" if prefix else str(key))


@pytest.fixture(scope="module", params=choices("profile"))
def keys(request: pytest.FixtureRequest) -> list[str]:
    return list(leaves(OmegaConf.to_container(compose([f"profile={request.param}"]), resolve=False)))


def test_every_key_is_ordinary_for_a_reason_or_in_a_section_that_is_the_experiment(keys: list[str]) -> None:
    assert len(keys) > 150
    unsorted = [key for key in keys if not is_ordinary(key) and key.partition(".")[0] not in EXPERIMENT]
    assert not unsorted


def test_every_other_key_has_a_folder_of_its_own(keys: list[str]) -> None:
    others = [key for key in keys if not is_ordinary(key) or key.startswith("model.")]
    folders = {key: variant([f"{key}=1"]) for key in others}
    assert all(folders.values())
    assert len({folder.casefold() for folder in folders.values()}) == len(others)


def test_every_ordinary_key_has_a_reason_and_another_value() -> None:
    assert OTHER.keys() == ORDINARY.keys()
    assert all(ORDINARY.values())
    assert {key for key, override in OTHER.items() if not is_ordinary(override)} == set()


def made_of(cfg: DictConfig) -> dict[str, Any]:
    """What the keys of a run and of its evaluation are made of."""
    engine = {key: cfg.engine[key] for key in ("name", "dtype", "max_model_len")}
    evaluation = {key: value for key, value in cfg.evaluation.items() if key != "when"}
    benchmark: Any = OmegaConf.to_container(cfg.benchmark, resolve=True)
    return {"run": runs.identity(cfg), "engine": engine, "evaluation": evaluation, "benchmark": benchmark}


@pytest.fixture(scope="module")
def cell(conversations: Path) -> list[str]:
    return ["profile=smol", "method=mos_r8", f"dataset.source.messages={conversations}"]


@pytest.mark.parametrize("key", sorted(ORDINARY.keys() - SHOWN))
def test_an_ordinary_override_leaves_run_and_evaluation_as_they_are(key: str, cell: list[str], tmp_path: Path) -> None:
    override = OTHER[key].replace("_dir=x", f"_dir={tmp_path}")
    assert made_of(compose([*cell, override])) == made_of(compose(cell))


@pytest.mark.parametrize("override", ["table=table1", "limit=3", "data=generated"])
def test_what_is_shown_leaves_the_run_as_it_is(override: str, cell: list[str]) -> None:
    assert made_of(compose([*cell, override]))["run"] == made_of(compose(cell))["run"]


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        (["profile=smol", "limit=3", "wandb.project=x", "model=llama2_7b"], ""),
        (["hydra/launcher=ray", "~hydra.job", "+hydra.x=1"], ""),
        (["trainer.max_steps=9", "method.r=8"], "method.r=8+trainer.max_steps=9"),
        (["engine=hf"], "engine=hf"),
        (["models.7b=smollm2_135m"], "models.7b=smollm2_135m"),
        (["method.r=8", "method.r=16"], "method.r=16"),  # the last one counts
        (["+trainer.x=[1,2]"], "+trainer.x=_1_2_-"),
        (["trainer@model=default"], "trainer_model=default-"),
        (["benchmark@trainer=mmlu"], "benchmark_trainer=mmlu-"),
        (["~dataset.reader"], "_dataset.reader-"),
        (["local_model=/models/mine"], "local_model=_models_mine-"),
    ],
)
def test_a_folder_is_readable_where_it_can_be(overrides: list[str], name: str) -> None:
    found = variant(overrides)
    assert found == name or (name.endswith("-") and found.removeprefix(name) != found and len(found) == len(name) + 8)


KEYS = st.sampled_from(["method.r", "method", "trainer.scheduler", "models", "models.7b", "local_model", "+trainer.x"])
TEXTS = st.text(st.characters(exclude_categories=("Cs",)), max_size=12) | st.text("ab/+=_-.é", max_size=300)
OVERRIDES = st.lists(st.builds("{}={}".format, KEYS, TEXTS), min_size=1, max_size=4)


@given(OVERRIDES, OVERRIDES)
def test_two_experiments_never_share_a_folder(first: list[str], second: list[str]) -> None:
    one, other = variant(first), variant(second)
    assert (one.casefold() == other.casefold()) == (changes(first) == changes(second))


@given(OVERRIDES)
def test_a_folder_can_be_made_anywhere(overrides: list[str]) -> None:
    name = variant(overrides)
    assert name == name.encode("ascii", "replace").decode()
    assert "/" not in name
    assert name not in (".", "..")
    assert len(name) <= LONGEST + 9


@pytest.mark.parametrize(
    "pair", [(["a=1", "b=2"], ["a=1+b=2"]), (["x=A"], ["x=a"]), (["x=é"], ["x=è"]), (["x=a/b"], ["x=a_b"])]
)
def test_overrides_that_look_alike_are_kept_apart(pair: tuple[list[str], list[str]]) -> None:
    assert len({variant(overrides).casefold() for overrides in pair}) == 2


@pytest.mark.parametrize("overrides", [["models={7b:a}", "models.7b=b"], ["models.7b=b", "models={7b:a}"]])
def test_the_order_counts_where_one_override_changes_a_part_of_another(overrides: list[str]) -> None:
    assert changes(overrides) == overrides
