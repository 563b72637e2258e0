"""Train one cell, or with `-m` a sweep of them.

    python -m scripts.train profile=smol method=mos dataset=cot seed=0 method.r=8
    python -m scripts.train -m profile=smol method=mos,lora seed=0,1 hydra/launcher=joblib hydra.launcher.n_jobs=2

Run again after a kill, the same command carries on from the last checkpoint; a finished run is left as it is.
"""

from omegaconf import DictConfig

from scripts.command import entry_point


@entry_point
def main(cfg: DictConfig) -> None:
    from scripts.cell.training import train  # torch: only once the config is known to be right

    train(cfg)


if __name__ == "__main__":
    main()
