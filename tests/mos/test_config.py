import copy
import pickle

import pytest
import torch
from peft import PeftConfig, PeftType

from mos import MosConfig
from mos.registration import add_peft_type, register


def test_builds_without_arguments_and_survives_copies():
    config = MosConfig()
    assert (config.r, config.equivalent_rank, config.shards_per_vector, config.private_rank) == (8, 2, 4, 1)
    assert config.peft_type is PeftType("MOS")
    for other in (copy.deepcopy(config), pickle.loads(pickle.dumps(config)), MosConfig(**config.to_dict())):
        assert other == config
    assert config.to_dict()["peft_type"].value == "MOS"


def test_rank_none_survives_the_file(tmp_path):
    config = MosConfig(r=None, private_rank=0, random_scaling=True, scale_std=0.5)
    config.save_pretrained(tmp_path)
    assert PeftConfig.from_pretrained(tmp_path) == config


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"r": 0}, "r=0 must be an integer of at least 1"),
        ({"equivalent_rank": 0}, "equivalent_rank=0 must be an integer of at least 1"),
        ({"shards_per_vector": 0}, "shards_per_vector=0 must be an integer of at least 1"),
        ({"private_rank": -1}, r"private_rank=-1 must be in \[0, equivalent_rank=2\]"),
        ({"private_rank": 3}, r"private_rank=3 must be in \[0, equivalent_rank=2\]"),
        ({"r": 1, "equivalent_rank": 3, "private_rank": 2}, "r=1 must be at least private_rank=2"),
        ({"r": 8, "private_rank": 2}, "private_rank=2 equals equivalent_rank.*r=8 must be 2"),
        ({"r": None}, "r=None shares the whole pool.*private_rank=0 instead of 1"),
        ({"scale_std": -1.0}, "scale_std=-1.0 must not be negative"),
    ],
)
def test_impossible_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        MosConfig(**settings)


def test_registering_twice_changes_nothing_and_another_class_is_refused():
    from mos import MosModel
    from mos.factors import mos_factors

    register("mos", MosConfig, MosModel, mos_factors)
    assert add_peft_type("MOS") is PeftType("MOS")
    assert [member.value for member in PeftType].count("MOS") == 1

    class Other(MosConfig):
        pass

    with pytest.raises(ValueError, match="The PEFT method name 'mos' is taken by"):
        register("mos", Other, MosModel, mos_factors)


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("mos_r4", {"r": 4, "equivalent_rank": 2}),
        ("mos_r32", {"r": 32, "equivalent_rank": 8, "private_rank": 1, "shards_per_vector": 4}),
        ("mos_minus_sp_r16", {"private_rank": 0, "shards_per_vector": 4, "pair_dissociation": True}),
        ("mos_minus_vs_r16", {"private_rank": 1, "shards_per_vector": 1, "pair_dissociation": True}),
        ("mos_minus_pd_r16", {"private_rank": 1, "shards_per_vector": 4, "pair_dissociation": False}),
        ("pure_sharing", {"r": None, "random_scaling": False, "private_rank": 0, "pair_dissociation": False}),
        ("random_scaling", {"r": None, "random_scaling": True, "scale_mean": 0.0, "scale_std": 1.0}),
        ("subset_selection", {"r": 32, "shards_per_vector": 1, "private_rank": 0, "pair_dissociation": False}),
    ],
)
def test_rows_of_the_paper_are_settings(pytestconfig, method, expected):
    hydra, utils = pytest.importorskip("hydra"), pytest.importorskip("hydra.utils")  # `make dev` goes without
    with hydra.initialize_config_dir(str(pytestconfig.rootpath / "configs"), version_base=None):
        method_config = hydra.compose(
            f"method/{method}", overrides=["+seed=0", "+model.architecture.num_hidden_layers=32"]
        )
    config = utils.instantiate(method_config.method.config, _convert_="all")
    assert isinstance(config, MosConfig)
    assert {name: getattr(config, name) for name in expected} == expected
    assert torch.tensor(config.alpha) == 16
