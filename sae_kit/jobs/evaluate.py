"""What eval.py runs: an evaluation of a training run, of any saved SAEs, or of a model alone."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from omegaconf import DictConfig

from sae_kit.config import from_node
from sae_kit.data.docs import DocsConfig
from sae_kit.data.planted import PlantedConfig
from sae_kit.data.tokens import TokensConfig
from sae_kit.evals.base import Evaluation, PlantedSubject, Subject
from sae_kit.formats.base import load_sae, load_saes
from sae_kit.jobs.run_folder import plain, read_config
from sae_kit.models.expectations import Expectations
from sae_kit.models.hooks import Site
from sae_kit.models.pretrained import ModelConfig
from sae_kit.result import Result
from sae_kit.sae.base import SAE

log = logging.getLogger(__name__)

DPI = 200  # sharp in print at the figures' own size


@final
@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """The whole config of an evaluation: conf/eval.yaml."""

    eval: Evaluation
    model: ModelConfig | None = None
    """None: what the SAEs were trained on."""
    data: TokensConfig | None = None
    """None: the text of the training run; without one, the docstrings of the installed packages."""
    run: str | None = None
    """A training run's folder."""
    saes: str | None = None
    """Saved SAEs, or one: a folder, a file, a place on the hub, a release (docs/loading.md)."""
    format: str = "auto"
    """The format of `saes`; auto recognises it."""
    site: str | None = None
    """The site of the one SAE that `saes` is, if its file does not say."""
    layers: tuple[int, ...] | None = None
    """Block numbers whose SAEs are evaluated; None: all."""
    seed: int = 0
    replot: str | None = None
    """A saved result whose figures are drawn again; nothing else happens then."""

    def __post_init__(self) -> None:
        if self.run is not None and self.saes is not None:
            raise ValueError("saes: give either run or saes, not both")
        if self.site is not None and self.saes is None:
            raise ValueError(f"site: {self.site!r} is that of one SAE; give saes")


def evaluate(cfg: DictConfig, folder: Path) -> Result:
    """Run the evaluation (or read the one to be drawn again) and leave everything in `folder`.

    Raises:
        ValueError: the config does not fit together, or the subject does not fit the evaluation.
    """
    config = from_node(Evaluate, plain(cfg))
    if config.replot is not None:
        result = Result.load(Path(config.replot))
        evaluation: type[Evaluation] = Evaluation.variants()[result.name]
    else:
        evaluation = type(config.eval)
        result = config.eval.run(_subject(config))
        result.save(folder)
        log.info("\n%s", result.table())
    for name, figure in evaluation.plot(result).items():
        figure.savefig(folder / f"{name}.png", dpi=DPI)
    log.info("\nresult, table and figures: %s", folder)
    return result


def _subject(config: Evaluate) -> Subject | PlantedSubject:
    """What the evaluation is of.

    Raises:
        ValueError: nothing was given, or something that this evaluation does not take.
    """
    if config.eval.subject_type is PlantedSubject:
        return _planted_subject(config)
    saes: Mapping[Site, SAE] = {}
    trained: Mapping[str, Any] = {}
    if config.run is not None:
        trained = read_config(Path(config.run))
        if trained["task"] != "saes":
            raise ValueError(
                f"run: {config.run} trained no SAEs of a language model; give a run of train.py's "
                "main job (for planted rows: eval=recovery)"
            )
    if config.saes is not None and config.site is not None:
        saes = {config.site: load_sae(config.saes, format=config.format, site=config.site)}
    elif (where := config.run or config.saes) is not None:
        saes = load_saes(where, config.layers, format=config.format)
    language_model = _model(config, trained, saes).build()
    device = language_model.model.device
    data = config.data
    if data is None:
        data = from_node(TokensConfig, trained["data"]) if trained else _text_for(saes)
    return Subject(
        language_model=language_model,
        saes={site: sae.to(device) for site, sae in saes.items()},
        tokens=data,
        seed=config.seed,
    )


def _text_for(saes: Mapping[Site, SAE]) -> TokensConfig:
    """Docstrings in contexts as the SAEs were trained on, as far as their files say."""
    given: dict[str, Any] = {}
    for sae in saes.values():
        expected = Expectations.of(sae.metadata)
        if expected.context_size is not None:
            given["context_size"] = min(
                expected.context_size, given.get("context_size", DocsConfig().context_size)
            )
        if expected.prepend_bos is not None:
            given["prepend_bos"] = expected.prepend_bos
    return DocsConfig(**given)


def _planted_subject(config: Evaluate) -> PlantedSubject:
    """The SAE of a planted run, with the dictionary that its file says it was trained on."""
    if (where := config.run or config.saes) is None:
        raise ValueError("run: none given; give run or saes of a run of --config-name=planted")
    saes = load_saes(where)
    planted = {site: sae.metadata.get("training", {}).get("planted") for site, sae in saes.items()}
    if None in planted.values() or not planted:
        raise ValueError(
            f"run: the SAEs in {where} were not trained on planted rows; give a run of "
            "--config-name=planted"
        )
    return PlantedSubject(
        planted=from_node(PlantedConfig, next(iter(planted.values())), where="planted"),
        saes=saes,
        seed=config.seed,
    )


def _model(config: Evaluate, trained: Mapping[str, Any], saes: Mapping[Site, SAE]) -> ModelConfig:
    """The model asked for, or else the one the SAEs were trained on."""
    if config.model is not None:
        return config.model
    if trained:
        return from_node(ModelConfig, trained["model"], where="model")
    for sae in saes.values():
        expected = Expectations.of(sae.metadata)
        if expected.model_name is not None:
            return ModelConfig(
                name=expected.model_name, centre_writing_weights=bool(expected.centred)
            )
    raise ValueError("model: none given, and nothing says which; add model=demo (or gpt2, local)")
