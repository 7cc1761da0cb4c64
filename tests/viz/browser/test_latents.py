import pytest
from read_shard import read_entries, read_shard

from sae_kit.viz.browser.atlas import MEASURES


def test_everything_about_a_latent_is_in_its_shard(site):
    shard = read_entries(site, "latents/1/2")  # latents 64 to 69
    assert len(shard) == 70 - 2 * 32
    latent = shard[1]
    assert latent["n_active"] == sum(latent["histogram"]) == 91
    assert (latent["max"], latent["mean"], latent["bin_width"]) == (8.0, 3.5, 0.5)
    assert len(latent["top"]) == 6
    assert len(latent["samples"]) == 16
    assert len(latent["promoted"]) == len(latent["suppressed"]) == 5
    assert len(latent["decoder"]) == 4
    assert [row[:2] for row in latent["up"]] == [[0, 65], [0, 64]]
    assert [row[:2] for row in latent["down"]] == [[2, 65], [2, 66]]


def test_quasi_boolean_roles_of_parents_and_children(site):
    roles = {latent: read_entries(site, "latents/1/0")[latent]["roles"] for latent in range(9)}
    kind, strict, trio = roles[2][0]
    assert (kind, strict, [member[:2] for member in trio]) == (0, 1, [[0, 0], [0, 1], [1, 2]])
    assert [member[:2] for member in roles[6][0][2]] == [[1, 5], [1, 6], [2, 7]]
    assert roles[4] == []
    assert read_shard(site, "lists/1")["role"][:8] == [0, 0, 1 | 4, 0, 0, 0, 0, 2]


def test_lists_have_every_statistic_of_every_latent(site):
    columns = read_shard(site, "lists/1")
    assert {len(column) for column in columns.values()} == {70}
    for measure in MEASURES:
        assert columns[f"up_{measure}"][0] == pytest.approx(0.9 - 0.01 * MEASURES.index(measure))
        assert f"down_{measure}" in columns
    assert not [name for name in read_shard(site, "lists/0") if name.startswith("up_")]
    assert columns["community"][:11] == [0] * 10 + [-1]


def test_a_dashboard_alone_has_no_neighbours(single):
    latent = read_entries(single, "latents/0/0")[0]
    assert latent["up"] == latent["down"] == latent["roles"] == []
    assert latent["community"] == -1
    assert set(read_shard(single, "lists/0")) == {
        *("label", "n_active", "max", "mean", "community", "role", "decoder")
    }
