"""What the configs name exists, and every method builds its PEFT config."""

import shutil

import omegaconf._utils
import pytest
import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.errors import MissingConfigException
from hydra.utils import instantiate
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf
from peft import PeftConfig

from scripts import config
from scripts.config import choices, compose

METHODS, PROFILES, MODELS = (choices(group) for group in ("method", "profile", "model"))


def check_method(cfg, name):
    """The method is complete, named after its file, and its PEFT config has the rank that the table prints."""
    OmegaConf.to_container(cfg.method, resolve=True, throw_on_missing=True)
    assert cfg.method.name == name
    assert cfg.method.label
    config = instantiate(cfg.method.config, _convert_="all")
    assert (config is None) == name.startswith("vanilla")
    if config is not None:
        assert isinstance(config, PeftConfig)
        assert config.r == cfg.method.r
        assert config.task_type == "CAUSAL_LM"


@pytest.mark.parametrize("method", METHODS)
def test_method(method):
    check_method(compose([f"method={method}"]), method)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("profile", PROFILES)
def test_profile_and_model(profile, model):
    cfg = compose([f"profile={profile}", f"model={model}"])
    OmegaConf.to_container(cfg, resolve=True)  # a local model leaves its path to the user
    assert (cfg.profile, cfg.model.name) == (profile, model)
    assert set(cfg.models.values()) <= set(MODELS)


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("profile", PROFILES)
def test_every_method_with_every_profile_and_model(profile, model, tiny_checkpoint):
    """Subset selection asks for the number of blocks, which a local model has in its folder."""
    folder = [f"model.source.path={tiny_checkpoint}"] if model == "local" else []
    for method in METHODS:
        check_method(compose([f"profile={profile}", f"model={model}", *folder, f"method={method}"]), method)


@pytest.mark.parametrize("table", choices("table"))
def test_rows_name_methods_with_their_labels_and_ranks(table):
    cfg = compose([f"table={table}"])
    for row in cfg.table.rows:
        methods = [compose([f"method={method}"]).method for method in row.methods]
        assert {method.label for method in methods} == {row.label}
        if row.rank is not None and row.label not in ("Pure Sharing", "+ Random Scaling", "+ Subset Selection"):
            assert row.rank == "/".join(str(method.r) for method in methods)


def test_unknown_method_lists_the_known_ones():
    with pytest.raises(MissingConfigException) as error:
        compose(["method=moss"])
    assert set(METHODS) <= set(error.value.options)


def test_a_composed_config_is_the_callers_own():
    compose(["method=mos"]).method.r = 77
    assert compose(["method=mos"]).method.r != 77


SETTINGS = [
    [],
    ["profile=paper", "model=llama2_7b", "method=mos_r8", "trainer.max_steps=12", "seeds=[0,1]"],
    ["+benchmark.bbh.own=3", "++trainer.max_steps=4", "++trainer.own={a: 1}", "~workers", "runs_dir=/a b/c"],
    ["method=mos_r8", "method.r=4", "~method.name", "trainer={max_steps: 2}", "table=table1", "table.columns=[gsm8k]"],
    ["hydra.sweep.dir=x", "hydra/launcher=joblib", "dataset=code_alpaca", "~benchmark.tydiqa"],
    ["trainer.max_steps=1,2"],
    ["method=mos_r8,lora_r2"],
    ["method=mos_r7"],
    ["method=mos_r7", "trainer.max_step=3"],
    ["trainer.max_step=3"],
    ["+trainer.max_steps=3"],
    ["++method=mos_r8"],
    ["~trainer.max_step"],
    ["trainer@x=y"],
    ["trainer.max_steps=[1"],
    ["+table=table1"],
    ["method=[mos_r8]"],
    ["seed@a=3"],
    ["trainer.max_steps=twelve"],
]


@pytest.mark.parametrize("overrides", SETTINGS)
def test_a_config_and_a_refusal_are_those_of_hydra(overrides):
    def outcome(made_by):
        try:
            return made_by()
        except Exception as error:
            return type(error), str(error)

    def by_hydra():
        with initialize_config_dir(str(config.CONFIGS), version_base="1.3"):
            return hydra_compose("config", config.completed(overrides))

    ours, theirs = outcome(lambda: compose(overrides)), outcome(by_hydra)
    assert ours == theirs
    if isinstance(theirs, DictConfig):
        assert OmegaConf.is_struct(ours)
        assert list(ours) == list(theirs)


def test_a_changed_file_is_read_again(tmp_path, monkeypatch):
    shutil.copytree(config.CONFIGS, tmp_path / "configs")
    monkeypatch.setattr(config, "CONFIGS", tmp_path / "configs")
    before = compose(["method=mos"]).method.label
    file = tmp_path / "configs" / "method" / "mos.yaml"
    file.write_text(file.read_text(encoding="utf-8").replace(f"label: {before}", "label: Other"), encoding="utf-8")
    assert (before, compose(["method=mos"]).method.label) == ("MoS", "Other")


@pytest.mark.parametrize(
    "path", sorted(config.CONFIGS.rglob("*.yaml")), ids=lambda path: f"{path.parent.name}/{path.stem}"
)
def test_the_fast_loader_reads_a_config_as_omegaconf_s_own(path):
    text = path.read_text(encoding="utf-8")
    own = config.FastLoader.__bases__[1]
    assert own.__name__ == "OmegaConfLoader"
    assert yaml.load(text, config.FastLoader) == yaml.load(text, own)
    assert omegaconf._utils.get_yaml_loader() is config.FastLoader


SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()


@given(st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_the_fast_loader_reads_what_is_written_as_omegaconf_s_own(value):
    text = yaml.dump({"value": value}, allow_unicode=True)
    found = []
    for loader in (config.FastLoader, config.FastLoader.__bases__[1]):
        try:
            found.append(yaml.load(text, loader))
        except yaml.YAMLError:  # signs that YAML cannot hold
            found.append(yaml.YAMLError)
    assert found[0] == found[1]


@pytest.mark.parametrize(
    "text", ["a: 1\na: 2", "a: [1", "a: 2024-01-01", "a: 1e-3", "a: .5e+3", "a: 1_000", "a: 0o17", "a: yes", "a: '\\x'"]
)
def test_the_fast_loader_takes_and_refuses_the_same(text):
    found = []
    for loader in (config.FastLoader, config.FastLoader.__bases__[1]):
        try:
            found.append(yaml.load(text, loader))
        except yaml.YAMLError as error:
            found.append(type(error))
    assert found[0] == found[1]
