"""The shuffle buffer: every row is the model's own at its place, once, mixed as theory says."""

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from sae_kit.checkpoint import load_checkpoint, save_checkpoint
from sae_kit.config import from_node, to_dict
from sae_kit.data import activations
from sae_kit.data.activations import ActivationsConfig, LiveConfig, LiveSource, Passes
from sae_kit.data.tokens import Contexts, ContextStream
from sae_kit.dist import World
from sae_kit.models.gpt2 import GPT2
from sae_kit.timing import Stopwatch

SITES = ("blocks.1.hook_resid_pre", "blocks.1.attn.hook_z", "blocks.2.hook_resid_mid")
N_POS, EOT = 16, 7
CONFIG = LiveConfig(buffer_rows=256, contexts_per_pass=4)


class RandomContexts(Contexts):
    """Random tokens; every third context has end-of-text tokens in it.

    Token 1 differs, so that no two contexts have the same activations behind position 0.
    """

    n_contexts = None
    n_tokens = None
    fingerprint = "random"

    def __getitem__(self, index: int) -> Tensor:
        generator = torch.Generator().manual_seed(index)
        tokens = torch.randint(8, 300, (N_POS,), generator=generator)
        tokens[0], tokens[1] = EOT, 8 + index % 292
        if index % 3 == 0:
            tokens[5] = tokens[11] = EOT
        return tokens


@pytest.fixture(scope="module")
def model(make_gpt2) -> GPT2:
    return make_gpt2()


def open_source(
    model: GPT2,
    config: LiveConfig = CONFIG,
    *,
    sites: Sequence[str] = SITES,
    batch_rows: int = 32,
    seed: int = 0,
) -> LiveSource:
    return config.open(
        model,
        sites,
        ContextStream(RandomContexts(), world=World(0, 1)),
        batch_rows=batch_rows,
        special_ids=[EOT],
        seed=seed,
        stopwatch=Stopwatch(),
    )


def places(n_contexts: int, config: LiveConfig = CONFIG) -> Iterator[tuple[int, int]]:
    """(context, position) of every row, in reading order."""
    contexts = RandomContexts()
    for index in range(n_contexts):
        for pos, token in enumerate(contexts[index].tolist()):
            special = config.drop_special_tokens and token == EOT
            if not (special or (config.drop_first_position and pos == 0)):
                yield index, pos


def expected_rows(model: GPT2, config: LiveConfig, n_contexts: int, site: str) -> Tensor:
    """The activations of all rows in reading order, from one run each: no passes, no buffer."""
    contexts = RandomContexts()
    acts = [
        model.run(contexts[index][None], capture=[site]).acts[site][0].flatten(1)
        for index in range(n_contexts)
    ]
    return torch.stack([acts[index][pos] for index, pos in places(n_contexts, config)])


def found_at(served: Tensor, rows: Tensor) -> Tensor:
    """For each served row, which of `rows` it is; fails where there is none."""
    distance = torch.cdist(served.double(), rows.double())
    nearest = distance.min(dim=1)
    assert nearest.values.max() < 1e-4
    # And no other row is anywhere near, or the match would say nothing.
    assert distance.topk(2, dim=1, largest=False).values[:, 1].min() > 1e-2
    return nearest.indices


# --- what is served -------------------------------------------------------------------------------


@pytest.mark.parametrize("drop_special_tokens", [True, False])
@pytest.mark.parametrize("site", SITES)
def test_every_row_is_the_models_own_and_comes_once(model, site, drop_special_tokens):
    config = replace(CONFIG, drop_special_tokens=drop_special_tokens)
    source = open_source(model, config)
    served = [next(source).acts[site] for _ in range(12)]
    rows = expected_rows(model, config, source.n_contexts_read, site) * source.scales[site]
    order = found_at(torch.cat(served), rows)
    assert order.unique().numel() == order.numel() == 12 * 32, "a row came twice"
    # What has been read is served or still there: served + buffer + waiting rows.
    n_read = len(list(places(source.n_contexts_read, config)))
    assert n_read == 12 * 32 + CONFIG.buffer_rows + len(source.state_dict()["spare_context"])


def test_all_sites_see_the_same_positions(model):
    source = open_source(model)
    batches = [next(source) for _ in range(3)]
    orders = []
    for site in SITES:
        rows = expected_rows(model, CONFIG, source.n_contexts_read, site) * source.scales[site]
        orders.append(found_at(torch.cat([batch.acts[site] for batch in batches]), rows))
    assert torch.equal(orders[0], orders[1])
    assert torch.equal(orders[0], orders[2])


def test_position_0_and_special_tokens_are_dropped_by_default(model):
    source = open_source(model)
    assert source.drop_first_position
    assert source.drop_special_tokens
    passes = Passes(CONFIG, model, SITES, [EOT])
    tokens = torch.stack([RandomContexts()[i] for i in range(2)])
    assert passes.counting(tokens).tolist() == [
        [pos not in (0, 5, 11) for pos in range(N_POS)],
        [pos != 0 for pos in range(N_POS)],
    ]
    keep = replace(CONFIG, drop_first_position=False, drop_special_tokens=False)
    assert Passes(keep, model, SITES, [EOT]).counting(tokens).all()
    only = replace(CONFIG, drop_special_tokens=False)
    assert Passes(only, model, SITES, [EOT]).counting(tokens)[0].sum() == N_POS - 1


def test_a_pass_stops_at_the_last_site(model, monkeypatch):
    stops, run = [], GPT2.run

    def watched(self, tokens, **options):
        stops.append(options["stop"])
        return run(self, tokens, **options)

    monkeypatch.setattr(GPT2, "run", watched)
    next(open_source(model, sites=SITES[::-1]))
    assert set(stops) == {"blocks.2.hook_resid_mid"}


def test_distinct_contexts_are_counted(model):
    source = open_source(model)
    every = list(places(500))
    for _ in range(5):
        batch = next(source)
        rows = expected_rows(model, CONFIG, source.n_contexts_read, SITES[0])
        order = found_at(batch.acts[SITES[0]], rows * source.scales[SITES[0]])
        assert batch.n_contexts == len({every[i][0] for i in order.tolist()})


# --- mixing ---------------------------------------------------------------------------------------


def test_batches_mix_as_many_contexts_as_theory_says(model):
    """A row that came in `a` steps ago is still there with probability (1 - p)^a, p = batch/buffer.

    So a context of c rows has none in the batch with probability (1 - p (1 - p)^a)^c, and b/c
    contexts came in at every step.
    """
    buffer_rows, b, c = 1024, 64, N_POS - 1
    config = LiveConfig(buffer_rows=buffer_rows, contexts_per_pass=8, drop_special_tokens=False)
    source = open_source(model, config, sites=SITES[:1], batch_rows=b)
    for _ in range(60):  # out of the start, whose contexts all came at once
        next(source)
    measured = [next(source).n_contexts for _ in range(100)]
    p = b / buffer_rows
    theory = sum(b / c * (1 - (1 - p * (1 - p) ** a) ** c) for a in range(400))
    assert abs(sum(measured) / len(measured) - theory) < 0.03 * theory
    # Rows served in reading order would come from 5 or 6 contexts.
    assert theory > 8 * b / c


def test_order_is_random_and_the_seeds(model):
    one, same, other = (open_source(model, seed=seed) for seed in (0, 0, 1))
    batch = next(one).acts[SITES[0]]
    assert torch.equal(batch, next(same).acts[SITES[0]])
    assert not torch.equal(batch, next(other).acts[SITES[0]])


def test_the_global_generator_is_left_alone(model):
    state = torch.get_rng_state()
    next(open_source(model))
    assert torch.equal(torch.get_rng_state(), state)


# --- scale ----------------------------------------------------------------------------------------


def test_the_scale_is_root_width_over_mean_norm_of_the_first_buffer(model):
    source = open_source(model)
    source.prepare()
    for site in SITES:
        rows = expected_rows(model, CONFIG, source.n_contexts_read, site)[: CONFIG.buffer_rows]
        norm = rows.double().norm(dim=-1).mean().item()
        assert source.scales[site] == pytest.approx(math.sqrt(source.widths[site]) / norm, rel=1e-5)
        first = source.sample(site, CONFIG.buffer_rows)
        assert_close(first, rows * source.scales[site], atol=1e-4, rtol=1e-4)


def test_scaling_can_be_left_out(model):
    source = open_source(model, replace(CONFIG, scale_inputs=False))
    batch = next(source)
    assert set(source.scales.values()) == {1.0}
    found_at(batch.acts[SITES[0]], expected_rows(model, CONFIG, source.n_contexts_read, SITES[0]))


def test_a_half_precision_model_gives_float32_rows(make_gpt2):
    source = open_source(make_gpt2().bfloat16())
    assert next(source).acts[SITES[0]].dtype == torch.float32


# --- samples --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("asked", "given"), [(10, 10), (256, 256), (1000, 256), (100, 100)])
def test_a_sample_is_spread_and_leaves_the_position(model, asked, given):
    source, other = open_source(model), open_source(model)
    rows = source.sample(SITES[0], asked)
    assert len(rows) == given
    assert_close(rows.norm(dim=-1).mean().item(), math.sqrt(32), atol=1.0, rtol=0)
    assert torch.equal(next(source).acts[SITES[0]], next(other).acts[SITES[0]])


# --- position -------------------------------------------------------------------------------------


def test_processes_share_the_buffer_out(model, monkeypatch):
    whole = open_source(model).config.buffer_rows
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert open_source(model).config.buffer_rows == -(-whole // 2)


def test_a_site_does_not_depend_on_the_others(model):
    alone, among = open_source(model, sites=SITES[:1]), open_source(model)
    for _ in range(6):
        assert torch.equal(next(alone).acts[SITES[0]], next(among).acts[SITES[0]])


@pytest.mark.parametrize("n_before", [0, 1, 7])
@pytest.mark.parametrize("how", ["memory", "disk"])
def test_a_position_is_left_and_found_again_bit_for_bit(model, tmp_path, n_before, how):
    source = open_source(model)
    for _ in range(n_before):
        next(source)
    if how == "memory":
        state = copy.deepcopy(source.state_dict())
    else:
        state = load_checkpoint(save_checkpoint(tmp_path, 1, source.state_dict(), keep=1))
    ahead = [next(source) for _ in range(6)]
    other = open_source(model)
    other.load_state_dict(dict(state))
    for batch in ahead:
        again = next(other)
        assert again.n_contexts == batch.n_contexts
        for site in SITES:
            assert torch.equal(again.acts[site], batch.acts[site]), site
    assert other.scales == source.scales
    assert other.n_contexts_read == source.n_contexts_read


def test_another_number_of_processes_goes_on_behind_all_buffers(model):
    """The first row of a fresh buffer is of the first context that the old ones had not read."""
    old = open_source(model)
    for _ in range(3):
        next(old)
    state = copy.deepcopy(old.state_dict())
    new, reference = open_source(model), open_source(model)
    new.continue_from([state])
    reference.tokens.load_state_dict(state["tokens"])
    reference.prepare()
    new.prepare()
    assert new.scales == old.scales
    for site in SITES:
        rows = reference.sample(site, 8) / reference.scales[site]
        assert_close(new.sample(site, 8), rows * old.scales[site])


def test_batches_are_the_takers_own(model):
    """Writing into a batch must not reach the buffer."""
    source, other = open_source(model), open_source(model)
    for _ in range(6):
        batch, same = next(source), next(other)
        assert torch.equal(batch.acts[SITES[0]], same.acts[SITES[0]])
        batch.acts[SITES[0]].zero_()


# --- settings -------------------------------------------------------------------------------------


def test_memory_is_what_is_said(model):
    source = open_source(model)
    assert source.n_bytes == (256 + 4 * N_POS) * ((32 + 32 + 32) * 4 + 8)
    for _ in range(5):
        next(source)
        state = source.state_dict()
        held = [*state["buffer"].values(), *state["spare"].values()]
        held += [state["context"], state["spare_context"]]
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in held}
        assert sum(storages.values()) <= source.n_bytes


def test_a_buffer_smaller_than_a_batch_is_refused(model):
    open_source(model, batch_rows=256)
    with pytest.raises(ValueError, match=r"buffer_rows: 256 .* batch of 257 rows; .* 4112"):
        open_source(model, batch_rows=257)


@pytest.mark.parametrize("name", ["buffer_rows", "contexts_per_pass"])
def test_counts_are_positive(name):
    with pytest.raises(ValueError, match=f"activations.{name}: 0 is not positive"):
        from_node(ActivationsConfig, {"kind": "live", name: 0}, where="activations")


def test_a_broken_model_is_named(make_gpt2):
    model = make_gpt2()
    model.blocks[1].attn.b_O.fill_(math.nan)
    with pytest.raises(ValueError, match=r"blocks\.2\.hook_resid_mid' have mean norm nan"):
        next(open_source(model))


def test_text_of_special_tokens_alone_ends(model, monkeypatch):
    monkeypatch.setattr(activations, "MAX_EMPTY_PASSES", 3)
    monkeypatch.setattr(RandomContexts, "__getitem__", lambda self, i: torch.full((N_POS,), EOT))
    with pytest.raises(ValueError, match="12 contexts in a row hold nothing but special tokens"):
        next(open_source(model))


def test_a_site_without_a_width_is_refused(model):
    with pytest.raises(ValueError, match=r"hook_pattern.* no fixed width"):
        open_source(model, sites=["blocks.0.attn.hook_pattern"])


def test_kinds_are_chosen_by_a_word():
    config = from_node(ActivationsConfig, {"kind": "live", "buffer_rows": 1e3})
    assert config == LiveConfig(buffer_rows=1000)
    assert from_node(ActivationsConfig, to_dict(config)) == config


def test_the_time_is_told_apart(model):
    stopwatch = Stopwatch()
    source = CONFIG.open(
        model,
        SITES,
        ContextStream(RandomContexts(), world=World(0, 1)),
        batch_rows=32,
        special_ids=[EOT],
        seed=0,
        stopwatch=stopwatch,
    )
    next(source)
    assert set(stopwatch.seconds) == {"tokens", "model forward", "buffer"}
