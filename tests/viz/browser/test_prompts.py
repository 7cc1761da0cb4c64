import toy_results
from read_shard import read_shard

PAIRS = {(latent, other) for latent in range(70) for other in (latent, latent + 1)}


def test_active_latents_of_every_token(site):
    prompt, arrays = read_shard(site, "prompts/0"), toy_results.dashboard().arrays
    assert prompt["tokens"] == list(range(6))
    for position, place in enumerate(prompt["places"]):
        for number, name in enumerate(toy_results.SITES):
            latents = arrays[f"prompt/0/latent/{name}"][position, :3].tolist()  # the 4th is 0
            own = [node for node in place["nodes"] if node[0] == number]
            assert [node[1] for node in own] == latents
            assert [node[3] for node in own] == [4.0, 3.0, 2.0]
            assert [node[4] for node in own] == [0.5, 0.375, 0.25]


def test_lines_are_all_known_pairs_among_them(site):
    for place in read_shard(site, "prompts/0")["places"]:
        nodes = place["nodes"]
        expected = {
            (a, b)
            for a, up in enumerate(nodes)
            for b, down in enumerate(nodes)
            if down[0] == up[0] + 1 and (up[1], down[1]) in PAIRS
        }
        assert {tuple(edge[:2]) for edge in place["edges"]} == expected


def test_without_evolution_there_are_no_lines(single):
    assert not any(place["edges"] for place in read_shard(single, "prompts/0")["places"])
