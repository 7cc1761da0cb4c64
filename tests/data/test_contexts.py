"""Batches of whole contexts: rows in reading order, the runs they are from, exact positions."""

import copy
import math
from dataclasses import dataclass, replace

import pytest
import torch
from conftest import random_gpt2
from torch import Tensor
from torch.testing import assert_close

from sae_kit.data import contexts as contexts_module
from sae_kit.data.activations import ActivationsConfig, LiveConfig
from sae_kit.data.contexts import ContextSource, open_contexts
from sae_kit.data.tokens import Contexts, ContextStream
from sae_kit.dist import World
from sae_kit.timing import Stopwatch

MODEL = random_gpt2()
SITES = ("blocks.1.hook_resid_pre", "blocks.1.attn.hook_z")
LATER = "blocks.2.hook_resid_post"
N_POS, EOT = 16, 7
CONFIG = LiveConfig(contexts_per_pass=4)


class RandomContexts(Contexts):
    """Random tokens; every third context has end-of-text tokens in it."""

    n_contexts = None
    n_tokens = None
    fingerprint = "random"

    def __getitem__(self, index: int) -> Tensor:
        tokens = torch.randint(8, 300, (N_POS,), generator=torch.Generator().manual_seed(index))
        tokens[0] = EOT
        if index % 3 == 0:
            tokens[5] = tokens[11] = EOT
        return tokens


@pytest.fixture(autouse=True)
def small_sample(monkeypatch):
    monkeypatch.setattr(contexts_module, "N_SAMPLE_ROWS", 200)


def open_source(config=CONFIG, *, sites=SITES, observed=(LATER,), batch_rows=96) -> ContextSource:
    return open_contexts(
        config,
        MODEL,
        sites,
        ContextStream(RandomContexts(), world=World(0, 1)),
        observed=observed,
        batch_rows=batch_rows,
        special_ids=[EOT],
        stopwatch=Stopwatch(),
    )


def tokens_of(first: int, n: int) -> Tensor:
    return torch.stack([RandomContexts()[i] for i in range(first, first + n)])


def counting(tokens: Tensor) -> Tensor:
    counts = tokens != EOT
    counts[:, 0] = False
    return counts


def expected(site: str, first: int, n: int) -> Tensor:
    """The activations of the counting positions of some contexts, from one run."""
    tokens = tokens_of(first, n)
    return MODEL.run(tokens, capture=[site]).acts[site].flatten(2)[counting(tokens)]


# --- what is served -------------------------------------------------------------------------------


def test_rows_are_the_models_own_at_counting_positions_in_reading_order():
    source = open_source()
    for step in range(3):
        batch = next(source)
        assert set(batch.acts) == set(SITES)
        for site, rows in batch.acts.items():
            assert_close(
                rows, expected(site, 6 * step, 6) * source.scales[site], rtol=1e-4, atol=1e-5
            )
        assert batch.n_contexts == 6
        assert batch.scales == source.scales


def test_the_runs_are_those_the_rows_come_from():
    batch = next(open_source())
    assert [run.tokens.tolist() for run in batch.runs] == [
        tokens_of(0, 4).tolist(),
        tokens_of(4, 2).tolist(),
    ]
    assert sum(run.n_rows for run in batch.runs) == len(batch.acts[SITES[0]])
    for site in SITES:
        rows = torch.cat([run.select(run.acts[site]) for run in batch.runs])
        assert_close(rows, expected(site, 0, 6), rtol=1e-4, atol=1e-5)
    rows = torch.cat([run.select(run.observed[LATER]) for run in batch.runs])
    assert_close(rows, expected(LATER, 0, 6), rtol=1e-4, atol=1e-5)
    logits = torch.cat([run.predictions.logits for run in batch.runs])
    assert_close(logits, MODEL.run(tokens_of(0, 6)).logits.flatten(0, 1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("batch_rows", "n"), [(16, 1), (23, 1), (25, 2), (96, 6), (100, 6)])
def test_a_batch_is_as_many_contexts_as_come_nearest(batch_rows, n):
    batch = next(open_source(batch_rows=batch_rows))
    assert sum(len(run.tokens) for run in batch.runs) == n


def test_runs_are_small_enough_for_their_logits(monkeypatch):
    whole = next(open_source(replace(CONFIG, contexts_per_pass=16)))
    assert [len(run.tokens) for run in whole.runs] == [6]
    monkeypatch.setattr(contexts_module, "MAX_LOGITS", 2 * N_POS * 300 + 1)
    parts = next(open_source())
    assert [len(run.tokens) for run in parts.runs] == [2, 2, 2]
    assert_close(parts.acts[SITES[0]], whole.acts[SITES[0]], rtol=1e-4, atol=1e-5)
    monkeypatch.setattr(contexts_module, "MAX_LOGITS", 1)
    assert len(next(open_source()).runs) == 6


def test_contexts_in_which_nothing_counts_are_passed_over(monkeypatch):
    own = RandomContexts.__getitem__
    empty = torch.full((N_POS,), EOT)
    monkeypatch.setattr(
        RandomContexts, "__getitem__", lambda self, i: empty if i < 5 else own(self, i)
    )
    # Contexts 0-1 and 2-3 hold nothing; of 4-5, the second does.
    batch = next(open_source(batch_rows=32))
    assert batch.n_contexts == 1
    assert_close(batch.runs[0].tokens, torch.stack([empty, RandomContexts()[5]]))


def test_text_of_special_tokens_alone_ends(monkeypatch):
    monkeypatch.setattr(contexts_module, "MAX_EMPTY_PASSES", 3)
    monkeypatch.setattr(RandomContexts, "__getitem__", lambda self, i: torch.full((N_POS,), EOT))
    with pytest.raises(ValueError, match="12 contexts in a row hold nothing but special tokens"):
        next(open_source())


# --- scales and samples ---------------------------------------------------------------------------


def test_the_scale_is_root_width_over_mean_norm_of_the_first_positions():
    source = open_source()
    source.prepare()
    for site in (*SITES, LATER):
        norm = expected(site, 0, 20)[:200].double().norm(dim=-1).mean().item()
        assert source.scales[site] == pytest.approx(math.sqrt(32) / norm, rel=1e-5)
    plain = open_source(replace(CONFIG, scale_inputs=False))
    assert set(next(plain).scales.values()) == {1.0}


@pytest.mark.parametrize(("asked", "given"), [(10, 10), (200, 200), (1000, 200)])
def test_a_sample_is_spread_and_leaves_the_position(asked, given):
    source = open_source()
    rows = source.sample(SITES[0], asked)
    assert len(rows) == given
    first = expected(SITES[0], 0, 20)[: 200 : 200 // given] * source.scales[SITES[0]]
    assert_close(rows, first, rtol=1e-4, atol=1e-5)
    assert torch.equal(next(source).runs[0].tokens, tokens_of(0, 4))


# --- position -------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_before", [0, 1, 5])
def test_a_position_is_left_and_found_again_bit_for_bit(n_before):
    source = open_source()
    for _ in range(n_before):
        next(source)
    state = copy.deepcopy(source.state_dict())
    ahead = [next(source) for _ in range(3)]
    other = open_source()
    other.load_state_dict(state)
    for batch in ahead:
        again = next(other)
        for site in SITES:
            assert torch.equal(again.acts[site], batch.acts[site])
        assert torch.equal(again.runs[0].predictions.logits, batch.runs[0].predictions.logits)
    assert other.scales == source.scales


def test_another_number_of_processes_goes_on_with_what_none_has_read():
    source = open_source()
    next(source)
    other = open_source()
    other.continue_from([source.state_dict()])
    assert torch.equal(next(other).runs[0].tokens, next(source).runs[0].tokens)
    assert other.scales == source.scales


def test_a_site_does_not_depend_on_the_others():
    alone, among = open_source(sites=SITES[:1], observed=()), open_source()
    for _ in range(3):
        one, other = next(alone), next(among)
        assert torch.equal(one.acts[SITES[0]], other.acts[SITES[0]])
        assert one.scales[SITES[0]] == other.scales[SITES[0]]


# --- refusals -------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class OtherConfig(ActivationsConfig):
    """Stands for every kind that has no model; not registered."""

    word = "cached"

    def open(self, *args, **options):
        raise NotImplementedError


def test_activations_without_a_model_are_refused():
    with pytest.raises(ValueError, match=r"activations\.kind: 'cached' .* give activations=live"):
        open_source(OtherConfig())


def test_less_than_a_context_to_a_batch_is_refused():
    message = r"trainer\.batch_rows: 15 is less than one context of 16 positions; give 16 or more"
    with pytest.raises(ValueError, match=message):
        open_source(batch_rows=15)


def test_what_is_said_of_a_batch_is_said_of_all_processes_together(monkeypatch):
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "4")
    message = r"batch_rows: 60 shared by 4 processes is 15 for each, .* of 16 .*; give 64 or more"
    with pytest.raises(ValueError, match=message):
        open_source(batch_rows=15)
    assert next(open_source(batch_rows=64 // 4)).n_contexts == 1


def test_sites_at_which_positions_have_no_width_are_refused():
    message = r"objective\.downstream_sites: .* 'blocks\.2\.attn\.hook_pattern' has axes"
    with pytest.raises(ValueError, match=message):
        open_source(observed=(LATER, "blocks.2.attn.hook_pattern"))


def test_the_time_is_told_apart():
    source = open_source()
    next(source)
    assert set(source.stopwatch.seconds) == {"tokens", "model forward"}
