"""conf/ and the dataclasses say the same, both ways: keys, defaults, members, experiments."""

import dataclasses
from pathlib import Path
from typing import Any

import hydra
import pytest
from omegaconf import OmegaConf

import sae_kit
from sae_kit.config import MISSING, Family, from_node, to_dict
from sae_kit.data.activations import ActivationsConfig
from sae_kit.data.planted import PlantedConfig
from sae_kit.data.tokens import TokensConfig
from sae_kit.evals.base import Evaluation
from sae_kit.jobs.cache_activations import CacheActivations
from sae_kit.jobs.evaluate import Evaluate
from sae_kit.jobs.train_addition import TrainAddition
from sae_kit.jobs.train_language_model import TrainLanguageModel
from sae_kit.jobs.train_planted import TrainPlanted
from sae_kit.jobs.train_saes import TrainSAEs
from sae_kit.log import LoggerConfig
from sae_kit.models.gpt2 import GPT2Config
from sae_kit.models.modular_addition import AdditionConfig
from sae_kit.models.pretrained import ModelConfig
from sae_kit.sae import SAEConfig
from sae_kit.train.language_model import LanguageModelConfig
from sae_kit.train.modular_addition import AdditionTraining
from sae_kit.train.no_ln import RemovalConfig
from sae_kit.train.objective import Objective
from sae_kit.train.trainer import TrainerConfig

CONF = Path(sae_kit.__file__).parents[1] / "conf"

GROUPS: dict[str, type] = {
    "model": ModelConfig,
    "data": TokensConfig,
    "activations": ActivationsConfig,
    "sae": SAEConfig,
    "objective": Objective,
    "trainer": TrainerConfig,
    "logger": LoggerConfig,
    "eval": Evaluation,
    "lm": LanguageModelConfig,
    "architecture": GPT2Config,
    "planted": PlantedConfig,
    "addition": AdditionTraining,
    "removal": RemovalConfig,
}

PRIMARY = {
    "train": TrainSAEs,
    "language_model": TrainLanguageModel,
    "cache": CacheActivations,
    "planted": TrainPlanted,
    "addition": TrainAddition,
    "eval": Evaluate,
}

OTHER_VALUES = {"addition/p23", "architecture/demo", "removal/demo"}
"""Files whose values differ from the defaults, which is what they are for; the keys agree."""

NOT_CONFIG = {"experiment", "sweep"}

FILES = sorted(
    path.relative_to(CONF).with_suffix("").as_posix()
    for path in CONF.glob("*/*.yaml")
    if path.parent.name not in NOT_CONFIG
)
EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
LM_EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment" / "lm").glob("*.yaml"))
EVAL_EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment" / "eval").glob("*.yaml"))


def read(file: str) -> dict[str, Any]:
    values = OmegaConf.to_container(OmegaConf.load(CONF / f"{file}.yaml"))
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def described(file: str) -> tuple[type, dict[str, Any]]:
    """The dataclass that a file configures, and the file's values without the family's tag."""
    cls, values = GROUPS[file.split("/")[0]], read(file)
    if issubclass(cls, Family):
        cls = cls.variants()[values.pop(cls.tag)]
    return cls, values


def defaults(cls: type) -> dict[str, Any]:
    """The fields that have a default, with it."""
    found = {}
    for field in dataclasses.fields(cls):
        if field.default is not dataclasses.MISSING:
            found[field.name] = field.default
        elif field.default_factory is not dataclasses.MISSING:
            found[field.name] = field.default_factory()
    return found


def as_yaml(value: Any) -> Any:
    if isinstance(value, AdditionConfig):
        return to_dict(value)
    return list(value) if isinstance(value, tuple) else value


@pytest.mark.parametrize("file", FILES)
def test_file_has_every_field_and_no_other(file):
    cls, values = described(file)
    assert set(values) == {field.name for field in dataclasses.fields(cls)}


@pytest.mark.parametrize("file", [file for file in FILES if file not in OTHER_VALUES])
def test_file_has_the_defaults(file):
    cls, values = described(file)
    expected = {name: as_yaml(value) for name, value in defaults(cls).items()}
    assert {name: values[name] for name in expected} == expected


@pytest.mark.parametrize("file", FILES)
def test_file_is_a_config(file):
    """What must be given is ???, and nothing else is."""
    values = read(file)
    cls, own = described(file)
    missing = {name for name, value in own.items() if value == MISSING}
    assert missing <= {f.name for f in dataclasses.fields(cls)} - set(defaults(cls))
    if missing:
        with pytest.raises(ValueError, match="missing"):
            from_node(GROUPS[file.split("/")[0]], values)
    else:
        config = from_node(GROUPS[file.split("/")[0]], values)
        assert from_node(type(config), to_dict(config)) == config


def test_every_group_and_choice_is_known():
    folders = {path.name for path in CONF.iterdir() if path.is_dir()}
    assert folders - NOT_CONFIG == set(GROUPS)
    assert {path.stem for path in CONF.glob("*.yaml")} == set(PRIMARY)


FAMILIES = {group: cls for group, cls in GROUPS.items() if issubclass(cls, Family)}


@pytest.mark.parametrize("group", FAMILIES)
def test_every_registered_member_has_its_file(group):
    family = FAMILIES[group]
    words = {read(file)[family.tag] for file in FILES if file.split("/")[0] == group}
    assert words == set(family.variants())


def test_every_family_has_its_group():
    assert {c for c in Family.__subclasses__() if c.__module__.startswith("sae_kit")} == set(
        FAMILIES.values()
    )


def compose(name: str, *overrides: str) -> dict[str, Any]:
    """The whole config without what only Hydra and the start itself read."""
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = hydra.compose(name, overrides=list(overrides))
    values = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(values, dict)
    values.pop("resume", None)
    return {str(key): value for key, value in values.items()}


@pytest.mark.parametrize(("name", "cls"), PRIMARY.items(), ids=list(PRIMARY))
def test_primary_config_has_every_field_and_is_one(name, cls):
    extra = ["data.text_paths=[a.txt]"] if name == "language_model" else []
    values = compose(name, *extra)
    fields = {field.name for field in dataclasses.fields(cls)}
    # A group that is null in the defaults list puts no key into the config.
    assert set(values) >= fields - {name for name, value in defaults(cls).items() if value is None}
    assert isinstance(from_node(cls, values), cls)
    for name, value in defaults(cls).items():
        assert values.get(name) == as_yaml(value), name


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_experiment_is_a_config_of_known_keys(experiment):
    """Overrides only: a key that the plain config lacks would be an unknown field."""
    config = from_node(TrainSAEs, compose("train", f"experiment={experiment}"))
    assert config != from_node(TrainSAEs, compose("train"))


def test_the_control_of_a_removal_differs_in_nothing_else():
    values = [compose("language_model", f"experiment=lm/{name}") for name in ("no_ln", "with_ln")]
    assert values[0].pop("removal") is not None
    assert values[1].pop("removal", None) is None
    assert values[0] == values[1]


@pytest.mark.parametrize("experiment", LM_EXPERIMENTS)
def test_language_model_experiment_is_a_config_of_known_keys(experiment):
    values = compose("language_model", f"experiment=lm/{experiment}", "data.text_paths=[books]")
    config = from_node(TrainLanguageModel, values)
    assert (config.removal is None) == (experiment == "with_ln")
    if config.removal is None:
        return
    n_tokens_per_step = config.lm.batch_contexts * config.data.context_size
    last = config.removal.events(config.architecture.n_layer)[-1]
    assert last.step < config.lm.n_tokens // n_tokens_per_step


@pytest.mark.parametrize("experiment", EVAL_EXPERIMENTS)
def test_evaluation_experiment_is_a_config_of_known_keys(experiment):
    """Of the evaluation that its name begins with, with other settings than the demo's."""
    config = from_node(Evaluate, compose("eval", f"experiment=eval/{experiment}"))
    assert experiment.startswith(config.eval.word)
    assert config.eval != type(config.eval)()


@pytest.mark.parametrize("file", [file for file in FILES if file.split("/")[0] == "sae"])
def test_architecture_fits_the_other_defaults(file):
    from_node(TrainSAEs, compose("train", f"sae={file.split('/')[1]}"))
