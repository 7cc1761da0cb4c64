import torch
import toy_results
from read_shard import read_entries, read_shard

from sae_kit.viz.browser import communities
from sae_kit.viz.browser.atlas import Atlas
from sae_kit.viz.browser.build import build


def test_members_and_the_lines_between_them(site):
    (entry,) = read_entries(site, "communities/0")
    assert entry["n"] == len(entry["members"]) == 30
    assert {tuple(member[:2]) for member in entry["members"]} == {
        (at, latent) for at in range(3) for latent in range(10)
    }
    assert len(entry["edges"]) == 2 * (10 + 9)
    for a, b, n_both, *measures in entry["edges"]:
        (up, one, _), (down, other, _) = entry["members"][a], entry["members"][b]
        assert down == up + 1
        assert other - one in (0, 1)
        assert n_both == (one + 1 if other == one else 71 + one)
        assert len(measures) == 7


def test_large_ones_are_cut_to_the_best_joined(tmp_path, monkeypatch):
    monkeypatch.setattr(communities, "MAX_MEMBERS", 12)
    monkeypatch.setattr(communities, "MAX_EDGES", 20)
    build([toy_results.evolution()], tmp_path / "site")
    (entry,) = read_entries(tmp_path / "site", "communities/0")
    assert entry["n"] == 30
    assert len(entry["members"]) == 12
    assert 0 < len(entry["edges"]) <= 20
    assert max(max(edge[:2]) for edge in entry["edges"]) < 12
    assert {edge[3] for edge in entry["edges"]} == {0.9}


def test_numbers_without_members_are_left_out_of_the_list(tmp_path):
    evolution = toy_results.evolution()
    for at in toy_results.SITES:
        community = evolution.arrays[f"community/{at}"]
        evolution.arrays[f"community/{at}"] = torch.where(community == 0, 40, community)
    build([evolution], tmp_path / "site")
    found = read_shard(tmp_path / "site", "manifest")
    assert [entry[:3] for entry in found["communities"]] == [[40, 30, 3]]
    assert found["n_communities"] == 1
    assert read_entries(tmp_path / "site", "communities/1")[40 - 32]["n"] == 30


def test_no_communities_no_shards(single):
    assert not (single / "data" / "communities").exists()
    assert Atlas([toy_results.dashboard()]).community(0).tolist() == [-1] * 70
