"""A pytest plugin that breaks the method on purpose; the environment variable DEFECT says how."""

import os

import torch

import data_prep.chat
from mos.layer import MosLayer
from mos.model import MosModel


def b_not_zero():
    """B pools start as a trained adapter's would."""
    create = MosLayer._create_pools

    def broken(self, adapter, config, layout):
        create(self, adapter, config, layout)
        torch.nn.init.normal_(self.mos_B[adapter], std=0.1)

    MosLayer._create_pools = broken


def indices_reshuffled():
    """Loading an adapter pairs its vectors anew."""
    remap = MosModel._remap_adapter_state_dict_for_load.__func__

    def broken(cls, *args, **kwargs):
        state = remap(cls, *args, **kwargs)
        return {k: torch.stack([v[0], v[1].flip(0)]) if ".mos_index." in k else v for k, v in state.items()}

    MosModel._remap_adapter_state_dict_for_load = classmethod(broken)


def mask_one_too_long():
    """The first token of every reply carries no loss."""
    spans = data_prep.chat._masked_spans
    data_prep.chat._masked_spans = lambda *args: [(start, end + 1) for start, end in spans(*args)]


def mask_one_too_short():
    """The last token of every reply's header carries loss."""
    spans = data_prep.chat._masked_spans
    data_prep.chat._masked_spans = lambda *args: [(start, end - 1) for start, end in spans(*args)]


def pytest_configure():
    globals()[os.environ["DEFECT"]]()
