"""Put a language model and its SAEs to the test: see conf/eval/ and README.md.

python eval.py eval=core run=outputs/train/<run>      python eval.py --help
"""

from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from sae_kit.jobs.launch import launch


@hydra.main(version_base="1.3", config_path="conf", config_name="eval")
def main(cfg: DictConfig) -> None:
    from sae_kit.jobs.evaluate import evaluate
    from sae_kit.jobs.run_folder import leaving_no_empty_folder

    with leaving_no_empty_folder():
        evaluate(cfg, Path(HydraConfig.get().runtime.output_dir))


if __name__ == "__main__":
    launch(main)
