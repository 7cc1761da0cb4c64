"""What every registered evaluation must do. A new one is tested by being registered."""

import copy
import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import toy_planted
import toy_subject
from matplotlib.figure import Figure

from sae_kit.config import from_node, to_dict
from sae_kit.evals.base import Evaluation, PlantedSubject, Subject
from sae_kit.result import Result

# Small values of fields whose defaults take long.
SMALL = {
    "n_tokens": 1024,
    "n_splice_tokens": 512,
    "n_prompts": 20,
    "induction_length": 10,
    "docs": False,
    "n_rows": 2048,
    "n_contexts": 8,
    "n_test_contexts": 4,
    "n_edge_contexts": 4,
    "n_sources": 2,
    "kept": (1, 8),
    "n_pool_prompts": 40,
    "context_size": 16,
    "lengths": (0.1, 1.0),
    "n_steps": 12,
    "n_pairs": 6,
    "prompt_size": 6,
    "n_alphas": 5,
    "n_slices": 1,
    "slice_size": 3,
    "steps": (1e-6, 1e-5),
    "n_chains": 2,
    "n_burn_in": 2,
    "n_draws": 4,
    "n_heldout": 6,
    "n_top": 4,
    "units": ("residual", "head_z", "mlp", "neuron", "sae", "latent"),
    "n_random_sets": 1,
    "thresholds": (0.3,),
    "n_ig_steps": 2,
}


@pytest.fixture(scope="module")
def subject(
    evaluation, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Subject | PlantedSubject]:
    if evaluation.subject_type is PlantedSubject:
        yield toy_planted.subject()
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAE_KIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield toy_subject.subject(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module", params=list(Evaluation.variants()))
def evaluation(request) -> Evaluation:
    known = Evaluation.variants()[request.param].__dataclass_fields__
    fields = {name: value for name, value in SMALL.items() if name in known}
    return from_node(Evaluation, {"name": request.param, **fields})


@pytest.fixture(scope="module")
def result(evaluation, subject) -> Result:
    return evaluation.run(subject)


def numbers(result: Result) -> dict[str, float]:
    """Every number of a result by a name of its own."""
    named = dict(result.scalars)
    for i, row in enumerate(result.rows):
        named |= {f"{i}/{key}": value for key, value in row.items() if not isinstance(value, str)}
    return named


def test_a_result_says_what_it_is_of(evaluation, subject, result):
    assert result.name == evaluation.word
    assert result.provenance["evaluation"] == to_dict(evaluation)
    if isinstance(subject, Subject):
        assert result.provenance["subject"]["model"] == "toy"
    assert list(result.provenance["subject"]["saes"]) == list(subject.saes)
    assert from_node(Evaluation, result.provenance["evaluation"]) == evaluation


def test_every_number_is_finite(result):
    assert result.scalars
    assert result.rows
    for name, value in numbers(result).items():
        assert math.isfinite(value), name
    for name, array in result.arrays.items():
        assert array.isfinite().all(), name


def test_a_result_is_the_same_after_saving_and_loading(result, tmp_path):
    result.save(tmp_path)
    loaded = Result.load(tmp_path)
    assert (loaded.name, loaded.scalars, list(loaded.rows)) == (
        result.name,
        dict(result.scalars),
        [dict(row) for row in result.rows],
    )
    assert loaded.arrays.keys() == result.arrays.keys()
    for name, array in result.arrays.items():
        assert torch.equal(loaded.arrays[name], array), name


def test_a_loaded_result_can_be_drawn(evaluation, result, tmp_path):
    result.save(tmp_path)
    figures = type(evaluation).plot(Result.load(tmp_path))
    assert figures
    for name, figure in figures.items():
        assert isinstance(figure, Figure)
        assert figure.axes, name
        for ax in figure.axes:
            assert ax.get_xlabel(), f"{name}: an x axis without a label"
            assert ax.get_ylabel() or ax.get_yticklabels(), f"{name}: a y axis without a label"
        figure.savefig(tmp_path / f"{name}.png", dpi=50)


def test_the_same_seed_gives_the_same_bits(evaluation, subject, result):
    again = evaluation.run(subject)
    assert again.scalars == result.scalars
    assert again.rows == result.rows
    for name, array in result.arrays.items():
        assert torch.equal(again.arrays[name], array), name


@pytest.mark.slow
def test_another_seed_gives_other_numbers(evaluation, subject, result):
    other = evaluation.run(dataclasses.replace(subject, seed=1))
    assert numbers(other) != numbers(result)


@pytest.mark.slow
def test_the_order_of_the_latents_does_not_matter(evaluation, subject, result):
    saes = {}
    for site, sae in subject.saes.items():
        order = torch.randperm(sae.d_sae, generator=torch.Generator().manual_seed(9))
        weights = sae.weights()
        saes[site] = copy.deepcopy(sae)
        saes[site].load_weights(
            {
                "W_enc": weights["W_enc"][:, order],
                "b_enc": weights["b_enc"][order],
                "W_dec": weights["W_dec"][order],
                "b_dec": weights["b_dec"],
            }
        )
    permuted = evaluation.run(dataclasses.replace(subject, saes=saes))
    # Sums in another order round otherwise, and quotients of small differences (the share of the
    # loss that an untrained SAE recovers) show it ten times as large.
    assert numbers(permuted) == pytest.approx(numbers(result), rel=1e-4, abs=1e-6)


@pytest.mark.slow
def test_the_subject_is_left_as_it_was(evaluation, subject):
    def state() -> list[torch.Tensor]:
        model = [subject.model] if isinstance(subject, Subject) else []
        modules = [*model, *subject.saes.values()]
        return [p.detach().clone() for module in modules for p in module.parameters()]

    before, random_state = state(), torch.get_rng_state()
    evaluation.run(subject)
    assert torch.equal(torch.get_rng_state(), random_state), "drew from the global generator"
    for was, now in zip(before, state(), strict=True):
        assert torch.equal(was, now)
    if isinstance(subject, Subject):
        assert all(p.grad is None for p in subject.model.parameters())


def test_the_module_says_nothing_of_matplotlib_until_it_draws(evaluation):
    """Importing an evaluation must not import matplotlib, which is slow."""
    file = Path(__import__(type(evaluation).__module__, fromlist=["_"]).__file__)
    lines = file.read_text(encoding="utf-8").splitlines()
    imports = [line for line in lines if line.startswith(("import ", "from "))]
    assert not [line for line in imports if "matplotlib" in line or "sae_kit.viz" in line]
