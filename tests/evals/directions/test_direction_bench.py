"""What is made ready: positions, pools and dictionaries of every site and set."""

import dataclasses

import pytest
import torch
import toy_subject

from sae_kit.evals.base import Compared
from sae_kit.evals.directions.direction_bench import Bench
from sae_kit.evals.perturb.paths import Fixed
from sae_kit.evals.perturb.perturbation import Probe
from sae_kit.evals.shared.kept import Part
from sae_kit.evals.shared.prompts import Prompts

SITES = ["blocks.0.hook_resid_pre", "blocks.1.hook_resid_mid"]
READ = "blocks.1.hook_resid_post"


@pytest.fixture(scope="module")
def prompts(subject) -> Prompts:
    return Prompts.of(
        subject,
        context_size=12,
        n_hosts=20,
        n_others=30,
        drop_first_position=True,
        drop_special_tokens=True,
    )


def bench(subject, prompts, sites=SITES, **changed) -> Bench:
    settings = {"position": None, "read": READ, "n_pool_rows": 100, "memory_mb": 64, **changed}
    return Bench(subject, prompts, sites, **settings)


def test_whole_prompts_are_measured_where_a_token_comes_next(subject, prompts):
    counts = bench(subject, prompts).counts
    assert torch.equal(counts[:, :-1], prompts.hosts_count[:, :-1])
    assert not counts[:, -1].any()


@pytest.mark.parametrize(("position", "n_losses"), [(-1, 0), (5, 1)])
def test_one_position_is_measured_where_it_counts(subject, prompts, position, n_losses):
    made = bench(subject, prompts, position=position)
    assert torch.equal(made.counts[:, 0], prompts.hosts_count[:, position])
    seen = []

    def probes(hosts, given):
        seen.append((given.positions.tolist(), len(made.losses(hosts))))
        return {"stay": Probe(Fixed(hosts.base[:, None]), made.responses())}

    found = made.respond(SITES[0], probes, Part(None))
    assert set(map(str, seen)) == {str(([position % 12], n_losses))}
    assert (found["stay"]["kl"] == 0).all()
    assert (found["stay"]["l2"] == 0).all()


def test_probes_are_given_their_hosts_activations_and_the_pool_of_the_site(subject, prompts):
    made = bench(subject, prompts)
    site = SITES[1]
    acts = subject.model.run(prompts.hosts, capture=[site]).acts[site]

    def probes(hosts, given):
        torch.testing.assert_close(given.base, acts[given.index], rtol=1e-4, atol=1e-5)
        assert torch.equal(made.mask(given)[..., 0], made.counts[given.index])
        assert given.pool.site == site
        assert given.positions.tolist() == list(range(12))
        return {"stay": Probe(Fixed(hosts.base[:, None]), made.responses())}

    made.respond(site, probes, Part(None))


def test_every_set_has_its_dictionaries_where_it_has_saes(subject, prompts):
    both = toy_subject.random_saes(tuple(SITES))
    compared = (
        Compared(label="one", saes={SITES[0]: both[SITES[0]]}),
        Compared(label="two", saes=both),
    )
    made = bench(dataclasses.replace(subject, saes={}, compared=compared), prompts)
    assert {site: list(found) for site, found in made.dictionaries.items()} == {
        SITES[0]: ["one", "two"],
        SITES[1]: ["two"],
    }
    assert made.about(SITES[1], "two") == {"saes": "two", "objective": "unknown", "l0": 4.0}


def test_dictionaries_have_seen_what_counts_of_hosts_and_pool(subject, prompts):
    site = SITES[0]
    found = bench(subject, prompts, n_pool_rows=7).dictionaries[site][""]
    acts = subject.model.run(prompts.hosts, capture=[site]).acts[site]
    fired = (subject.saes[site].encode(acts) != 0) & prompts.hosts_count[..., None]
    assert torch.equal(found.fired, fired.any(1))
    # Seven rows of the pool fire 28 latents at most.
    assert (found.alive & ~found.fired.any(0)).sum() <= 28


@pytest.mark.parametrize("position", [None, -1])
def test_distances_are_means_over_what_is_perturbed(subject, prompts, position):
    """As the KLs beside them in the table."""
    site = SITES[0]
    made = bench(subject, prompts, position=position)
    acts = subject.model.run(prompts.hosts, capture=[site]).acts[site]
    counts = prompts.hosts_count.clone()
    counts[:, slice(-1) if position is not None else slice(-1, None)] = False
    x = acts[counts]
    means = made.dictionaries[site][""].means()
    assert means["norm"] == pytest.approx(x.norm(dim=-1).mean().item(), rel=1e-5)
    error = (subject.saes[site](x) - x).norm(dim=-1).mean().item()
    assert means["epsilon"] == pytest.approx(error, rel=1e-5)


def test_places_in_which_nothing_counts_are_refused(subject, prompts):
    with pytest.raises(ValueError, match="position: there is none that counts"):
        bench(subject, prompts, position=0)
    with pytest.raises(ValueError, match="position: 12 is outside"):
        bench(subject, prompts, position=12)
    with pytest.raises(ValueError, match=r"read: .* comes before"):
        bench(subject, prompts, SITES[1:], read=SITES[0])
