"""What a unit is: exchanging it changes its own part of the activation, and nothing else."""

import pytest
import torch
import toy_subject
from toy_pairs import CONFIG, N_POS, SAE_SITES, random_model, random_pairs, random_saes

from sae_kit.data.pairs import Column, Pairs
from sae_kit.evals.patches.units import KINDS, Latents, SAEParts, check_kinds, unique_names

PLAIN = [word for word, kind in KINDS.items() if not kind.needs_saes]


def activations(site: str) -> tuple[torch.Tensor, torch.Tensor]:
    """At a site, of the clean and of the corrupted prompts."""
    pairs = random_pairs()
    runs = [random_model().run(tokens, capture=[site]) for tokens in (pairs.clean, pairs.corrupt)]
    return runs[0].acts[site], runs[1].acts[site]


@pytest.mark.parametrize("word", PLAIN)
def test_units_divide_a_site_among_them(word: str) -> None:
    """Each exchanges its part; all together exchange everything, and no part twice."""
    groups = KINDS[word].of(random_model(), random_pairs(), {})
    assert len({name for units in groups for name in units.names}) == sum(map(len, groups))
    for units in groups:
        act, source = activations(units.site)
        every = units.patched(act, source, range(len(units)))
        assert torch.equal(every, source)
        changes = [units.patched(act, source, [unit]) != act for unit in range(len(units))]
        assert torch.equal(torch.stack(changes).sum(0), (act != source).long())


def test_a_head_is_a_head_and_a_position_a_position() -> None:
    model, pairs = random_model(), random_pairs()
    by_word = {word: KINDS[word].of(model, pairs, {}) for word in PLAIN}
    assert by_word["head_z"][1].names == ("a1.0", "a1.1")
    assert by_word["head_pattern"][0].names == ("a0.0.pattern", "a0.1.pattern")
    assert by_word["residual"][3].names[2] == "3@p2"
    assert [units.site for units in by_word["residual"]][-1] == "blocks.2.hook_resid_post"
    act, source = activations("blocks.1.attn.hook_pattern")
    changed = by_word["head_pattern"][1].patched(act, source, [1]) != act
    assert changed[:, 1].any()
    assert not changed[:, 0].any()


def test_columns_move_with_their_labels() -> None:
    """Where a label has another position in every pair, a unit follows it."""
    pairs = random_pairs()
    at = torch.tensor([1, 3, 3, 2])
    moved = Pairs(
        clean=pairs.clean,
        corrupt=pairs.corrupt,
        answers=pairs.answers,
        wrong=pairs.wrong,
        columns=(Column("S", at),),
    )
    act, source = torch.zeros(4, N_POS, 16), torch.ones(4, N_POS, 16)
    patched = KINDS["residual"].of(random_model(), moved, {})[0].patched(act, source, [0])
    assert torch.equal(patched[..., 0].nonzero(), torch.stack([torch.arange(4), at], 1))


@pytest.mark.parametrize("word", [word for word in PLAIN if word != "head_pattern"])
def test_attribution_is_the_inner_product_with_the_exchange(word: str) -> None:
    for units in KINDS[word].of(random_model(), random_pairs(), {}):
        act, source = activations(units.site)
        gradient = torch.randn(act.shape, generator=torch.Generator().manual_seed(1))
        found = units.attribution(gradient, act, source)
        for unit in range(len(units)):
            change = units.patched(act, source, [unit]) - act
            expected = (change * gradient).flatten(1).sum(1).double()
            torch.testing.assert_close(found[unit], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [SAEParts, Latents])
@pytest.mark.parametrize("normalization", ["none", "layer_norm"])
def test_parts_of_an_sae_make_up_what_it_reconstructs(kind, normalization: str) -> None:
    """Error and reconstruction exchanged together exchange the activation; all latents together
    exchange the reconstruction (of rows that are normalised, with the statistics they had).
    """
    made = random_saes()
    for sae in made.values():
        sae.normalization = normalization
    groups = kind.of(random_model(), random_pairs(), made)
    assert [units.site for units in groups] == list(SAE_SITES)
    for units in groups:
        act, source_act = activations(units.site)
        source = units.value(source_act)
        every = units.patched(act, source, range(len(units)))
        if kind is SAEParts:
            torch.testing.assert_close(every, source_act)
            continue
        sae = made[units.site]
        if normalization == "none":
            recon, other = (sae(a.flatten(2)) for a in (act, source_act))
            torch.testing.assert_close(every - act, (other - recon).view(act.shape))
        gradient = torch.randn(act.shape, generator=torch.Generator().manual_seed(1))
        found = units.attribution(gradient, act, source).sum(0)
        expected = ((every - act) * gradient).flatten(1).sum(1).double()
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_latents_are_those_that_are_ever_active() -> None:
    made, pairs = random_saes(), random_pairs()
    units = Latents.of(random_model(), pairs, made)[0]
    acts = activations(units.site)
    fired = torch.stack([made[units.site].encode(act) for act in acts]).flatten(0, 2).any(0)
    assert units.names == tuple(f"{units.site}/{i}" for i in fired.nonzero()[:, 0].tolist())
    torch.testing.assert_close(units.value(acts[0]), made[units.site].encode(acts[0])[..., fired])


def test_an_identity_sae_has_no_error() -> None:
    sae = toy_subject.identity_sae(CONFIG.d_model)
    (units,) = SAEParts.of(random_model(), random_pairs(), {SAE_SITES[0]: sae})
    act, source_act = activations(SAE_SITES[0])
    source = units.value(source_act)
    torch.testing.assert_close(units.patched(act, source, [0]), source_act)
    torch.testing.assert_close(units.patched(act, source, [1]), act)


def test_names_of_columns_are_made_unique() -> None:
    pairs = random_pairs()
    zero = pairs.columns[0].at
    columns = tuple(Column(name, zero) for name in ("the", "S", "the"))
    twice = Pairs(
        clean=pairs.clean,
        corrupt=pairs.corrupt,
        answers=pairs.answers,
        wrong=pairs.wrong,
        columns=columns,
    )
    assert unique_names(twice) == ["the.0", "S", "the.2"]


def test_words_are_checked() -> None:
    check_kinds(["residual", "head_z"])
    with pytest.raises(ValueError, match="'head' is unknown; give head_"):
        check_kinds(["head"])
    with pytest.raises(ValueError, match="has one twice"):
        check_kinds(["mlp", "mlp"])
