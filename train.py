"""Train SAEs (or, with --config-name=language_model, a language model): see conf/ and README.md.

python train.py [group=choice] [field=value] ...    python train.py --help
"""

import signal
import sys

import hydra
from omegaconf import DictConfig

from sae_kit.jobs.launch import launch


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(cfg: DictConfig) -> None:
    from sae_kit.jobs.train import train

    if stopped := train(cfg):
        sys.exit(128 + signal.Signals(stopped))


if __name__ == "__main__":
    launch(main)
