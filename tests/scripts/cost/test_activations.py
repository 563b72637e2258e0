"""The formula of a block's activations against torch's saved-tensor hooks, family by family."""

import pytest

from scripts.cell.shapes import meta_model
from scripts.cost.architecture import Adapter, Architecture
from scripts.cost.formulas import block_activations
from tests.scripts.cost.saved_tensors import block_bytes
from tests.scripts.families import FAMILIES, model

BATCH, LENGTH = 2, 16


def formula(family, rank, targets):
    architecture = Architecture.of(meta_model(model(family)))
    layers = tuple(linear for linear in architecture.linears if targets == "all-linear" or linear.name in targets)
    return block_activations(architecture, Adapter(0, rank, layers), BATCH * LENGTH)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_keeps_what_the_formula_says(family, tmp_path):
    step = {"rank": 4, "targets": "all-linear", "batch": BATCH, "length": LENGTH}
    assert formula(family, 4, "all-linear") == pytest.approx(block_bytes(family, **step, folder=tmp_path), rel=0.02)


@pytest.mark.parametrize("targets", [["q_proj", "k_proj", "v_proj"], ["down_proj"], ["o_proj", "gate_proj"]])
@pytest.mark.parametrize("rank", [1, 64])
def test_fewer_layers_and_another_rank_keep_what_the_formula_says(targets, rank, tmp_path):
    step = {"rank": rank, "targets": targets, "batch": BATCH, "length": LENGTH}
    assert formula("Llama", rank, targets) == pytest.approx(block_bytes("Llama", **step, folder=tmp_path), rel=0.02)
