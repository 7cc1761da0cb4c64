"""The bench gives what scenes give, by the names of units."""

import pytest
import torch
from toy_pairs import SAE_SITES, random_model, random_pairs, random_saes

from sae_kit.evals.patches.patch_bench import Bench, largest
from sae_kit.evals.shared.ablations import ABLATIONS


@pytest.fixture(scope="module")
def bench() -> Bench:
    with torch.no_grad():
        return make()


def make(seed: int = 0) -> Bench:
    own = random_pairs(seed=seed)
    return Bench(
        random_model(double=True),
        own,
        {site: sae.double() for site, sae in random_saes().items()},
        kinds=["residual", "head_z", "latent"],
        ablation=ABLATIONS["corrupt"](len(own), seed=0),
        metric="logit_difference",
        seed=0,
    )


@torch.no_grad()
def test_what_is_found_has_the_units_names_in_the_order_asked(bench: Bench) -> None:
    units = bench.groups["head_z"][1]
    found = bench.exchange("noising", units, [1, 0])
    assert list(found) == ["a1.1", "a1.0"]
    by_name = bench.exchange_named("noising", "head_z", ["a1.0", "a2.1", "a1.1"])
    assert list(by_name) == ["a1.0", "a2.1", "a1.1"]
    for name, values in found.items():
        torch.testing.assert_close(by_name[name], values)
    logits = dict(bench.scenes["noising"].each(units, [1]))[1]
    torch.testing.assert_close(found["a1.1"], bench.scorer.measure(logits))


@torch.no_grad()
def test_a_latent_that_is_never_active_does_nothing(bench: Bench) -> None:
    name = f"{SAE_SITES[0]}/none"
    found = bench.exchange_named("denoising", "latent", [name])
    expected = bench.scorer.measure(bench.scenes["denoising"].base.logits)
    assert torch.equal(found[name], expected)


@torch.no_grad()
def test_attributions_are_scores_of_all_units(bench: Bench) -> None:
    """All positions of the stream together are, to first order, everything at once: the sums over
    the positions of any two layers agree where the net is linear; here only their shapes must.
    """
    for direction in ("denoising", "noising"):
        found = bench.attributions(direction)
        for word, groups in bench.groups.items():
            assert [len(own) for own in found[word]] == [len(units) for units in groups]
    # Before the first position that differs there is nothing to exchange.
    assert found["residual"][0][:2].tolist() == [0.0, 0.0]
    assert (found["residual"][0][2:] != 0).all()


def test_the_largest_are_chosen_over_all_sites() -> None:
    values = [torch.tensor([0.1, -5.0, 0.2]), torch.tensor([3.0]), torch.tensor([0.0, 1.0])]
    assert largest(values, 3) == [[1], [0], [1]]
    assert largest(values, 100) == [[0, 1, 2], [0], [0, 1]]
