"""Train SAEs (or, with --config-name=language_model, a language model): see conf/ and README.md.

python train.py [group=choice] [field=value] ...    python train.py --help
"""

import sys

import hydra
from omegaconf import DictConfig

from sae_kit.jobs.launch import launch


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(cfg: DictConfig) -> float | None:
    """Returns what a sweeper minimises."""
    from sae_kit.jobs.train import train

    outcome = train(cfg)
    if outcome.stopped:
        sys.exit(128 + outcome.stopped)
    return outcome.score


if __name__ == "__main__":
    launch(main)
