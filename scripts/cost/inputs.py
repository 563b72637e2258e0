"""What the tables of a plan are computed from, gathered once."""

from collections.abc import Sequence
from dataclasses import dataclass

from omegaconf import DictConfig

from scripts.config import compose
from scripts.cost import formulas
from scripts.cost.architecture import Adapter, Architecture
from scripts.cost.gpu import Gpu
from scripts.cost.parameters import adapter
from scripts.cost.workload import Workload, mean_length, plan_tokenizer, workload
from scripts.table import grid


@dataclass(frozen=True)
class Inputs:
    """The cells of a table, and by name the methods, training sets and benchmarks that they use."""

    cfg: DictConfig
    gpus: list[Gpu]
    cells: list[grid.Cell]
    model: Architecture
    methods: dict[str, DictConfig]  # composed
    adapters: dict[str, Adapter]  # of the methods that train something
    lengths: dict[str, float]  # mean tokens of an example, by training set
    workloads: dict[str, Workload]  # by benchmark

    def memory(self, method: str) -> formulas.Memory:
        """What a training step of the longest micro-batch takes."""
        cfg = self.methods[method]
        return training_memory(cfg, self.model, self.adapters[method], cfg.trainer.gradient_checkpointing)


def gather(cfg: DictConfig, overrides: Sequence[str]) -> Inputs:
    """Everything a plan needs, counted on the meta device and on the data that is there.

    overrides: as for `grid.cells`. Raises ValueError for a GPU, a model or a method that cannot be.
    """
    from scripts.cell.shapes import meta_model  # torch: only once every config is known to be right

    gpus = Gpu.all(cfg.gpus)
    cells = grid.cells(cfg, overrides)
    methods = {cell.method: compose([*overrides, f"method={cell.method}"]) for cell in cells}
    adapters = {name: adapter(own) for name, own in methods.items()}
    tokenizer = plan_tokenizer(cfg)
    datasets = dict.fromkeys(cell.dataset for cell in cells if cell.dataset)
    benchmarks = dict.fromkeys(name for cell in cells for name in cell.benchmarks)
    return Inputs(
        cfg=cfg,
        gpus=gpus,
        cells=cells,
        model=Architecture.of(meta_model(cfg.model)),
        methods=methods,
        adapters={name: each for name, each in adapters.items() if each is not None},
        lengths={n: mean_length(cfg, compose([*overrides, f"dataset={n}"]).dataset, tokenizer) for n in datasets},
        workloads={name: workload(cfg, name, tokenizer) for name in benchmarks},
    )


def training_memory(
    cfg: DictConfig, model: Architecture, added: Adapter, checkpointing: bool, tokens: int | None = None
) -> formulas.Memory:
    """What a training step takes with the settings of `cfg.trainer`.

    tokens: of the micro-batch; None is the longest one
    """
    trainer = cfg.trainer
    return formulas.training_memory(
        model,
        added,
        batch=1 if tokens else trainer.micro_batch_size,
        length=tokens or trainer.max_length,
        dequantized=trainer.dequantize_once,
        checkpointing=checkpointing,
        double_quantization=trainer.quantization.double_quantization,
    )
