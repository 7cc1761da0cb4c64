import dataclasses

import pytest
import torch
import toy_results
from read_shard import read_shard

from sae_kit.viz.browser.atlas import MEASURES, Atlas
from sae_kit.viz.browser.manifest import manifest


def test_it_says_what_the_site_has(site, single):
    both, one = (read_shard(folder, "manifest") for folder in (site, single))
    for found in (both, one):
        assert found["model"] == "toy <b>"
        assert [entry["name"] for entry in found["sites"]] == list(toy_results.SITES)
        assert found["sites"][0]["n_alive"] == 69
        assert found["sites"][0]["neuronpedia"] == "gpt2-small/6-res-jb"
        assert found["prompts"] == [list(range(6))]
    assert both["measures"] == list(MEASURES)
    assert (both["n_booleans"], both["n_strict"]) == (4, 2)
    assert (one["measures"], one["pairs"], one["communities"]) == ([], [], [])


def test_shares_passed_on_fall_with_the_threshold(site):
    pair = read_shard(site, "manifest")["pairs"][0]
    shares = pair["forward"]["pearson"]
    assert len(shares) == 101
    assert shares[0] == shares[90] == 1.0  # every latent has one of 0.9
    assert shares[91] == 0.0
    assert pair["backward"]["pearson"] == shares


def test_shares_are_of_latents_that_fired():
    evolution = toy_results.evolution()
    key = f"n_active/{toy_results.SITES[0]}"
    name = f"pairs/{toy_results.SITES[0]}>{toy_results.SITES[1]}"
    kept = evolution.arrays[f"{name}/index"][:, 0] >= 35
    arrays = {k: v[kept] if k.startswith(name) else v for k, v in evolution.arrays.items()}
    dead = torch.where(torch.arange(70) < 14, 0, 5)
    found = manifest(Atlas([dataclasses.replace(evolution, arrays={**arrays, key: dead})]), {})
    assert found["pairs"][0]["forward"]["pearson"][50] == pytest.approx(35 / 56, abs=1e-4)


@pytest.mark.parametrize(
    "known", ["", "javascript:alert(1)", "a/b/../../c", "gpt2-small/6-res-jb?x", "one", 'a/"b']
)
def test_only_an_id_becomes_a_link(known):
    found = manifest(Atlas([toy_results.dashboard(neuronpedia=known)]), {})
    assert found["sites"][0]["neuronpedia"] == ""
