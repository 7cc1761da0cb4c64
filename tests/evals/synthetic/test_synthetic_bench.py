"""Frequencies, paths and the audit behind eval=synthetic_activations."""

import dataclasses

import pytest
import torch
import toy_subject

from sae_kit.evals.perturb.hosts import Place
from sae_kit.evals.shared.prompts import Prompts
from sae_kit.evals.synthetic.generators import Vocabulary
from sae_kit.evals.synthetic.synthetic_bench import Bench, Maker

SITE, READ = "blocks.0.hook_resid_pre", "blocks.1.hook_resid_post"


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAE_KIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        subject = toy_subject.subject(tmp_path_factory.mktemp("text"))
        prompts = Prompts.of(
            subject,
            context_size=6,
            n_hosts=5,
            n_others=50,
            drop_first_position=True,
            drop_special_tokens=False,
        )
        place = Place(write=SITE, position=-1)
        yield Bench.of(subject, prompts, place, subject.saes[SITE])


def hosts(bench: Bench):
    return bench.place.hosts(bench.model, bench.prompts.hosts, torch.arange(5))


def test_frequencies_are_shares_of_the_other_prompts_positions(bench):
    act = bench.model.run(bench.prompts.others, capture=[SITE], stop=SITE).acts[SITE][:, 1:]
    active = bench.vocabulary.sae.encode(act.flatten(0, 1)) > 0
    share = active.double().mean(0)
    assert torch.equal(bench.vocabulary.alive, share > 0)
    found = 10 ** bench.vocabulary.log_frequency[share > 0]
    torch.testing.assert_close(found, share[share > 0], rtol=1e-5, atol=0)


def test_the_pool_is_of_last_positions(bench):
    act = bench.model.run(bench.prompts.others, capture=[SITE], stop=SITE).acts[SITE][:, -1]
    assert len(bench.pool.rows) == 50
    torch.testing.assert_close(bench.pool.normal.mean, act.double().mean(0))


def test_a_single_latent_is_the_same_whatever_prompts_it_is_made_with(bench):
    """Groups of prompts depend on the memory there is."""

    def ends(index: list[int]) -> torch.Tensor:
        maker = Maker(bench, ["single_latent"], 20, 0.5, READ, 0)
        tokens, numbers = bench.prompts.hosts[index], torch.tensor(index)
        some = bench.place.hosts(bench.model, tokens, numbers)
        return maker.plateau(some)["single_latent"].origin[:, 0]

    torch.testing.assert_close(ends([3]), ends([0, 1, 2, 3, 4])[[3]])


def test_latents_of_which_no_frequency_is_known_do_not_count_for_the_mean(bench):
    """Normal draws can make latents fire that the text does not."""
    frequency = torch.where(torch.arange(96) % 2 == 0, 0.01, 0.0)
    vocabulary = Vocabulary(bench.vocabulary.sae, frequency, bench.pool.normal.mean)
    half = dataclasses.replace(bench, vocabulary=vocabulary)
    assert half.audit(["random"], 0)["random"]["log_frequency"] == pytest.approx(-2)


def test_paths_go_toward_the_target_in_equal_steps(bench):
    maker = Maker(bench, ["model_generated"], 20, 0.5, READ, 0)
    given = hosts(bench)
    path = maker.toward(given)["model_generated"].path
    x = path.at(slice(None))[:, :, 0]
    assert torch.equal(x[:, 0], given.base[:, 0])
    steps = x.diff(dim=1).norm(dim=-1)
    torch.testing.assert_close(steps, torch.full_like(steps, 0.5), rtol=1e-3, atol=0)


def test_plateaus_begin_at_the_prompts_own_activation_and_end_where_all_do(bench):
    maker = Maker(bench, ["model_generated", "random"], 20, 0.5, READ, 0)
    given = hosts(bench)
    probes = maker.plateau(given)
    own = probes["model_generated"]
    torch.testing.assert_close(own.origin, given.base)
    torch.testing.assert_close(own.path.at(slice(0, 1))[:, 0], given.base)
    ways = [probe.path.at(slice(20, 21))[:, 0] - probe.origin for probe in probes.values()]
    targets = [
        probe.origin + 1e4 * torch.nn.functional.normalize(way, dim=-1)
        for probe, way in zip(probes.values(), ways, strict=True)
    ]
    assert (targets[0] - targets[1]).norm() > 0  # not parallel: to one point from two


def test_the_audit_of_real_activations_is_of_their_codes(bench):
    found = bench.audit(["model_generated"], 0)["model_generated"]
    assert found["l0"] == pytest.approx(4.0)
    assert -1 <= found["top_cosine"] <= 1
    assert found["log_frequency"] < 0
