"""What eval.py runs: an evaluation of a training run, of any saved SAEs, or of a model alone."""

import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any, final

from omegaconf import DictConfig

from sae_kit.config import differences, from_node
from sae_kit.data.docs import DocsConfig
from sae_kit.data.planted import PlantedConfig
from sae_kit.data.tokens import TokensConfig
from sae_kit.evals.base import Compared, Evaluation, PlantedSubject, Subject
from sae_kit.files import write_atomic
from sae_kit.formats.base import load_sae, load_saes
from sae_kit.jobs.run_folder import plain, read_config
from sae_kit.models.expectations import Expectations
from sae_kit.models.hooks import Site
from sae_kit.models.pretrained import ModelConfig
from sae_kit.result import Result
from sae_kit.sae.base import SAE
from sae_kit.viz.browser.build import build

log = logging.getLogger(__name__)

DPI = 200  # sharp in print at the figures' own size
NO_TERMINAL = (120, 0)  # characters of a line where output goes to a file or a pipe


@final
@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """The whole config of an evaluation: conf/eval.yaml."""

    eval: Evaluation
    model: ModelConfig | None = None
    """None: what the SAEs were trained on."""
    data: TokensConfig | None = None
    """None: the text of the training run; without one, the docstrings of the installed packages."""
    run: str | tuple[str, ...] | None = None
    """A training run's folder; several, for an evaluation that compares."""
    saes: str | tuple[str, ...] | None = None
    """Saved SAEs, or one: a folder, a file, a place on the hub, a release (docs/loading.md); a list
    of such, for an evaluation that compares."""
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
        places = self.places
        if () in (self.run, self.saes) or len(set(places)) < len(places):
            name = "run" if self.run is not None else "saes"
            raise ValueError(f"{name}: {list(places)} is empty or has one twice; give each once")
        if len(places) > 1 and not self.eval.compares:
            known: Mapping[str, type[Evaluation]] = Evaluation.variants()
            words = [word for word, evaluation in known.items() if evaluation.compares]
            raise ValueError(
                f"run: {len(places)} sets of SAEs, and {self.eval.word} is of one; give one, or "
                f"an evaluation that compares: eval={' or '.join(words)}"
            )

    @property
    def places(self) -> tuple[str, ...]:
        """Where SAEs are: those that run or saes lists."""
        given = self.run if self.run is not None else self.saes
        return (given,) if isinstance(given, str) else given or ()


def evaluate(cfg: DictConfig, folder: Path) -> Result:
    """Run the evaluation (or read the one to be drawn again) and leave everything in `folder`.

    Raises:
        ValueError: the config does not fit together, or the subject does not fit the evaluation.
    """
    config = from_node(Evaluate, plain(cfg))
    if config.replot is not None:
        result = Result.load(Path(config.replot))
        evaluation = _made_by(result, config.replot)
    else:
        evaluation = type(config.eval)
        result = config.eval.run(_subject(config))
        result.save(folder)
        width = shutil.get_terminal_size(fallback=NO_TERMINAL).columns
        log.info("\n%s", result.table(width))
    for name, figure in evaluation.plot(result).items():
        for kind in evaluation.figure_formats:
            figure.savefig(folder / f"{name}.{kind}", dpi=DPI)
    for name, text in evaluation.files(result).items():
        write_atomic(folder / name, text)
    if evaluation.browsable:
        build([result], folder / "browser")
        log.info("\nto look at every latent, open %s", folder / "browser" / "index.html")
    log.info("\nresult, table and figures: %s", folder)
    return result


def _made_by(result: Result, place: str) -> type[Evaluation]:
    """The evaluation that made the result in `place`.

    Raises:
        ValueError: none did; training, too, leaves results.
    """
    known: Mapping[str, type[Evaluation]] = Evaluation.variants()
    if result.name not in known:
        raise ValueError(
            f"replot: {place} holds a result of {result.name!r}, which is no evaluation; give a "
            f"folder that eval.py left, of one of: {', '.join(known)}"
        )
    return known[result.name]


def _subject(config: Evaluate) -> Subject | PlantedSubject:
    """What the evaluation is of.

    Raises:
        ValueError: nothing was given, or something that this evaluation does not take.
    """
    if config.eval.subject_type is PlantedSubject:
        return _planted_subject(config)
    trained = _runs(config.places) if config.run is not None else {}
    sets = {label: _saes(config, place) for label, place in _labels(config.places).items()}
    first = next(iter(sets.values()), {})
    language_model = _model(config, trained, first).build()
    device = language_model.model.device
    data = config.data
    if data is None:
        data = from_node(TokensConfig, trained["data"]) if trained else _text_for(first)
    on_device = tuple(
        Compared(label=label, saes={site: sae.to(device) for site, sae in saes.items()})
        for label, saes in sets.items()
    )
    return Subject(
        language_model=language_model,
        saes=on_device[0].saes if len(on_device) == 1 else {},
        compared=on_device if len(on_device) > 1 else (),
        tokens=data,
        seed=config.seed,
    )


def _runs(folders: Sequence[str]) -> dict[str, Any]:
    """The config of the first of these runs.

    Raises:
        ValueError: one of them trained no SAEs, or on another language model than the first.
    """
    configs = {folder: read_config(Path(folder)) for folder in folders}
    for folder, trained in configs.items():
        if trained["task"] != "saes":
            raise ValueError(
                f"run: {folder} trained no SAEs of a language model; give a run of train.py's "
                "main job (for planted rows: eval=recovery)"
            )
    first = next(iter(configs.values()))
    for folder, trained in configs.items():
        own, other = ({**one["model"], "device": None} for one in (first, trained))
        if changed := differences(own, other):
            raise ValueError(
                f"run: {folder} was trained on another model than {folders[0]} "
                f"({'; '.join(changed)}); give runs on one model"
            )
    return first


def _saes(config: Evaluate, place: str) -> Mapping[Site, SAE]:
    """The SAEs of a run, or those in another place."""
    if config.site is not None:
        return {config.site: load_sae(place, format=config.format, site=config.site)}
    return load_saes(place, config.layers, format=config.format)


def _labels(places: Sequence[str]) -> dict[str, str]:
    """A short name -> its place: the path without what all of them begin and end with."""
    parts = [place.rstrip("/").split("/") for place in places]
    n_first = _n_shared(parts)
    n_last = _n_shared([one[n_first:][::-1] for one in parts])
    own = ("/".join(one[n_first : len(one) - n_last]) for one in parts)
    return {label or place: place for label, place in zip(own, places, strict=True)}


def _n_shared(lists: Sequence[Sequence[str]]) -> int:
    """How many entries all lists begin with."""
    side_by_side = zip(*lists, strict=False)  # up to the shortest
    return sum(1 for _ in takewhile(lambda entries: len(set(entries)) == 1, side_by_side))


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
    if not config.places:
        raise ValueError("run: none given; give run or saes of a run of --config-name=planted")
    (where,) = config.places
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
