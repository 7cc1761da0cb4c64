import toy_results
from read_shard import read_entries, read_shard

ARRAYS = toy_results.dashboard().arrays


def test_the_vocabulary_is_every_token(site):
    assert read_shard(site, "vocabulary") == list(toy_results.WORDS)


def test_the_text_is_there_to_be_read(site):
    assert read_shard(site, "text/0") == ARRAYS["contexts"].tolist()


def test_a_token_leads_to_the_latents_that_belong_to_it(site):
    entries = read_entries(site, "tokens/0")
    text = ARRAYS["contexts"].flatten()
    for token in (0, 17):
        expected = {}
        for number, name in enumerate(toy_results.SITES):
            for latent, places in enumerate(ARRAYS[f"top_place/{name}"].tolist()):
                n = sum(place >= 0 and int(text[place]) == token for place in places)
                if n:
                    expected[number, latent] = round(n / 6, 4)
        peaks = entries[token]["peaks"]
        assert {(at, latent): value for at, latent, _, value in peaks} == expected
        assert [row[3] for row in peaks] == sorted(expected.values(), reverse=True)
        promoted = {(at, latent) for at, latent, _, _ in entries[token]["promoted"]}
        assert promoted == {
            (number, latent)
            for number, name in enumerate(toy_results.SITES)
            for latent, tokens in enumerate(ARRAYS[f"logits_promoted/{name}"].tolist())
            if token in tokens
        }


def test_a_context_leads_to_the_latents_that_show_it(site):
    shown = [row for shard in range(3) for row in read_entries(site, f"contexts/{shard}")]
    assert len(shown) == toy_results.N_CONTEXTS
    expected = {
        (*divmod(place, toy_results.N_POS), number, latent)
        for number, name in enumerate(toy_results.SITES)
        for latent, places in enumerate(ARRAYS[f"top_place/{name}"].tolist())
        for place in places
        if place >= 0
    }
    assert expected == {
        (context, position, at, latent)
        for context, rows in enumerate(shown)
        for at, latent, _, position, _ in rows
    }
    assert {row[4] for rows in shown for row in rows} == {1000, 875, 750, 625, 500, 375}
