"""Jobs run in this process, on something tiny."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import hydra
import pytest
from conftest import random_gpt2
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

from sae_kit.data.synthetic import synthetic_text
from sae_kit.models.gpt2 import GPT2Config
from sae_kit.models.pretrained import save_model
from sae_kit.models.tokenizer import train_bpe

CONF = Path(__file__).parents[2] / "conf"

Composed = Callable[..., contextlib.AbstractContextManager[DictConfig]]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keeps tokenised text out of the user's cache folder."""
    monkeypatch.setenv("SAE_KIT_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model in `model` and English in `text.txt`."""
    folder = tmp_path_factory.mktemp("tiny")
    texts = synthetic_text(0, 600)
    (folder / "text.txt").write_text("\n".join(texts), encoding="utf-8")
    tokenizer = train_bpe(texts, 300)
    sizes = {"n_layer": 2, "n_head": 2, "d_model": 32, "d_mlp": 48, "n_ctx": 32}
    model = random_gpt2(GPT2Config(**sizes, n_vocab=tokenizer.vocab_size))
    save_model(model, tokenizer, folder / "model")
    return folder


@pytest.fixture(scope="session")
def composed() -> Composed:
    """`with composed(folder, *overrides, name="train") as cfg`: as inside of `@hydra.main`."""

    @contextlib.contextmanager
    def compose(folder: Path, *overrides: str, name: str = "train") -> Iterator[DictConfig]:
        folder.mkdir(parents=True, exist_ok=True)
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = hydra.compose(name, overrides=list(overrides), return_hydra_config=True)
            with open_dict(cfg):
                cfg.hydra.runtime.output_dir = str(folder)
                cfg.hydra.run.dir = str(folder)
                cfg.hydra.job.id = cfg.hydra.job.num = 0
            HydraConfig.instance().set_config(cfg)
            task = OmegaConf.masked_copy(cfg, [key for key in cfg if key != "hydra"])
            try:
                yield task
            finally:
                HydraConfig.instance().cfg = None

    return compose


@pytest.fixture(scope="session")
def tiny_saes(tiny_folder: Path) -> list[str]:
    """Arguments of an SAE run in 10 steps."""
    return [
        "model=local",
        f"model.name={tiny_folder / 'model'}",
        "model.device=cpu",
        "data=text",
        f"data.paths=[{tiny_folder / 'text.txt'}]",
        "data.context_size=32",
        "activations.buffer_rows=256",
        "activations.contexts_per_pass=4",
        "sae.d_sae=64",
        "sae.k=4",
        "trainer.n_tokens=320",
        "trainer.batch_rows=32",
        "trainer.log_every=5",
        "trainer.checkpoint_every=4",
    ]


@pytest.fixture(scope="session")
def tiny_language_model(tiny_folder: Path) -> list[str]:
    """Arguments of a language model run in 10 steps."""
    return [
        "device=cpu",
        "data.docs_share=0",
        "data.text_share=1",
        "data.synthetic_share=0",
        f"data.text_paths=[{tiny_folder / 'text.txt'}]",
        "data.context_size=16",
        "architecture.n_layer=1",
        "architecture.n_head=2",
        "architecture.d_model=16",
        "architecture.d_mlp=32",
        "architecture.n_ctx=16",
        "architecture.n_vocab=300",
        "lm.n_tokens=640",
        "lm.batch_contexts=4",
        "lm.n_eval_contexts=4",
        "lm.eval_every=5",
        "lm.log_every=5",
        "lm.checkpoint_every=4",
    ]
