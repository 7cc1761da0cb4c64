"""Rows from disk: all of them every epoch, mixed as random draws are, and the same as live ones."""

import copy
import itertools
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_cache import DATA, N_POS, SITES, context_of_rows, rows_in_order, stream, write
from torch import Tensor

from sae_kit.checkpoint import load_checkpoint, save_checkpoint
from sae_kit.config import from_node, to_dict
from sae_kit.data import cache
from sae_kit.data.activations import ActivationsConfig, ActivationSource, Batch
from sae_kit.data.cache import CachedConfig, CachedSource
from sae_kit.data.cache_manifest import shard_path
from sae_kit.data.docs import DocsConfig
from sae_kit.data.permutation import Permutation
from sae_kit.data.tokens import TokenSource
from sae_kit.dist import World
from sae_kit.models.gpt2 import GPT2
from sae_kit.sae.topk import TopKConfig
from sae_kit.timing import Stopwatch
from sae_kit.train.objective import LocalObjective
from sae_kit.train.trainer import Trainer, TrainerConfig

N_ROWS = 300


@pytest.fixture(scope="module")
def model(make_gpt2) -> GPT2:
    return make_gpt2()


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory) -> Iterator[Path]:
    """A cache of 300 rows in five shards, which nobody may write to."""
    folder = tmp_path_factory.mktemp("cache")
    write(folder, model, n_rows=N_ROWS)
    for path in folder.iterdir():
        path.chmod(0o444)
    folder.chmod(0o555)
    yield folder
    folder.chmod(0o755)  # so that pytest can clear it away


@pytest.fixture(scope="module")
def rows(model) -> dict[str, Tensor]:
    """The rows that the cache holds, in reading order, straight from the model."""
    return rows_in_order(model, N_ROWS)


def open_cache(
    folder: Path,
    model: GPT2,
    *,
    sites: Iterable[str] = SITES,
    batch_rows: int = 32,
    seed: int = 0,
    here: World | None = None,
    tokens: TokenSource | None = None,
    **changed: object,
) -> CachedSource:
    with pytest.MonkeyPatch.context() as patch:
        if here is not None:
            patch.setattr(cache, "world", lambda: here)
        return CachedConfig(path=str(folder), **changed).open(
            model,
            list(sites),
            tokens or stream(),
            batch_rows=batch_rows,
            special_ids=[7],
            seed=seed,
            stopwatch=Stopwatch(),
        )


def which(batch: Batch, source: CachedSource, rows: Mapping[str, Tensor]) -> list[int]:
    """Which rows of the cache a batch holds; all sites must agree, bit for bit."""
    found = None
    for site, acts in batch.acts.items():
        own = rows[site] * source.scales[site]
        same = (acts[:, None] == own[None]).all(-1)
        assert (same.sum(1) == 1).all(), site
        assert found is None or torch.equal(found, same.long().argmax(1)), site
        found = same.long().argmax(1)
    assert found is not None
    return found.tolist()


def epoch(source: CachedSource, rows: Mapping[str, Tensor], n_batches: int) -> list[list[int]]:
    return [which(next(source), source, rows) for _ in range(n_batches)]


# --- what is served -------------------------------------------------------------------------------


def test_every_epoch_visits_every_row_once(folder, model, rows):
    source = open_cache(folder, model, batch_rows=30)
    epochs = [epoch(source, rows, 10) for _ in range(3)]
    for batches in epochs:
        assert sorted(row for batch in batches for row in batch) == list(range(N_ROWS))
    assert len({tuple(batches[0]) for batches in epochs}) == 3


def test_a_batch_may_end_one_epoch_and_begin_the_next(folder, model, rows):
    source = open_cache(folder, model, batch_rows=32)
    served = [row for batch in epoch(source, rows, 75) for row in batch]  # 8 epochs
    assert torch.tensor(served).bincount(minlength=N_ROWS).tolist() == [8] * N_ROWS
    order = [
        row
        for number in range(8)
        for row in Permutation(N_ROWS, seed=(0, number))(torch.arange(N_ROWS)).tolist()
    ]
    assert sorted(served[9 * 32 : 10 * 32]) == sorted(order[9 * 32 : 10 * 32])


def test_the_order_is_the_seeds(folder, model, rows):
    one, same, other = (open_cache(folder, model, seed=seed) for seed in (0, 0, 1))
    first = which(next(one), one, rows)
    assert first == which(next(same), same, rows)
    assert first != which(next(other), other, rows)


def test_the_global_generator_is_left_alone(folder, model):
    state = torch.get_rng_state()
    next(open_cache(folder, model))
    assert torch.equal(torch.get_rng_state(), state)


def test_batches_mix_contexts_as_random_draws_do(model, tmp_path):
    """A context of c rows among n is in a batch of b with probability 1 - C(n-c, b) / C(n, b)."""
    n, b = 2000, 64
    write(tmp_path, model, n_rows=n, shard_rows=500, sites=SITES[:1])
    source = open_cache(tmp_path, model, batch_rows=b, sites=SITES[:1])
    measured = [next(source).n_contexts for _ in range(5 * n // b)]
    sizes = torch.tensor(context_of_rows(n)).bincount().tolist()
    theory = sum(1 - math.comb(n - c, b) / math.comb(n, b) for c in sizes)
    assert abs(sum(measured) / len(measured) - theory) < 0.01 * theory
    # Rows in reading order would come from 5 or 6 contexts.
    assert theory > 8 * b / N_POS


def test_distinct_contexts_are_counted(folder, model, rows):
    source, context = open_cache(folder, model), context_of_rows(N_ROWS)
    for _ in range(5):
        batch = next(source)
        assert batch.n_contexts == len({context[row] for row in which(batch, source, rows)})


@pytest.mark.parametrize(
    "sites", [SITES[:1], SITES[1:], SITES[::-1], (SITES[2], SITES[0])], ids=len
)
def test_some_of_the_sites_are_the_same_rows(folder, model, rows, sites):
    every, some = open_cache(folder, model), open_cache(folder, model, sites=sites)
    assert list(some.widths) == list(sites)
    for _ in range(3):
        batch, part = next(every), next(some)
        assert list(part.acts) == list(sites)
        for site in sites:
            assert torch.equal(part.acts[site], batch.acts[site])
        assert part.n_contexts == batch.n_contexts


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_the_space_gives_rounded_rows_in_float32(model, tmp_path, rows, dtype):
    write(tmp_path, model, n_rows=N_ROWS, dtype=dtype)
    source = open_cache(tmp_path, model, scale_inputs=False)
    rounded = {site: own.to(getattr(torch, dtype)).float() for site, own in rows.items()}
    batch = next(source)
    assert all(acts.dtype == torch.float32 for acts in batch.acts.values())
    which(batch, source, rounded)


def test_batches_are_the_takers_own(folder, model):
    one, other = (open_cache(folder, model, scale_inputs=False) for _ in range(2))
    for _ in range(12):  # more than an epoch
        batch, same = next(one), next(other)
        for site in SITES:
            assert torch.equal(batch.acts[site], same.acts[site])
            batch.acts[site].zero_()


def test_several_trainers_read_at_once(folder, model, rows):
    """In turns, from files that cannot be written, each at its own place."""
    sources = [open_cache(folder, model, batch_rows=n, seed=n) for n in (16, 25, 32)]
    alone = [epoch(open_cache(folder, model, batch_rows=n, seed=n), rows, 6) for n in (16, 25, 32)]
    together = [[which(next(s), s, rows) for s in sources] for _ in range(6)]
    assert [list(batches) for batches in zip(*together, strict=True)] == alone


def test_a_new_epoch_is_said(folder, model, caplog):
    caplog.set_level("INFO")
    source = open_cache(folder, model, batch_rows=100)
    assert "300 positions of" in caplog.text
    said = []
    for _ in range(7):
        next(source)
        said.append(caplog.text.count("all 300 positions were read"))
    assert said == [0, 0, 1, 1, 1, 2, 2]
    assert "epoch 3 begins" in caplog.text


# --- scale and samples ----------------------------------------------------------------------------


def test_the_mean_norm_of_all_rows_is_root_width(folder, model):
    source = open_cache(folder, model, batch_rows=100)
    served = [next(source).acts for _ in range(3)]
    for site in SITES:
        norms = torch.cat([acts[site] for acts in served]).double().norm(dim=-1)
        assert float(norms.mean()) == pytest.approx(math.sqrt(source.widths[site]), rel=1e-6)


def test_scaling_can_be_left_out(folder, model, rows):
    source = open_cache(folder, model, scale_inputs=False)
    assert set(source.scales.values()) == {1.0}
    which(next(source), source, rows)


@pytest.mark.parametrize(("asked", "given"), [(10, 10), (300, 300), (1000, 300), (77, 77)])
def test_a_sample_is_spread_and_leaves_the_position(folder, model, rows, asked, given):
    source, other = open_cache(folder, model), open_cache(folder, model)
    source.prepare()
    found = source.sample(SITES[1], asked)
    expected = rows[SITES[1]] * source.scales[SITES[1]]
    assert torch.equal(found, expected[[i * N_ROWS // given for i in range(given)]])
    assert torch.equal(next(source).acts[SITES[0]], next(other).acts[SITES[0]])


@pytest.mark.parametrize("site", SITES)
def test_a_sample_reads_the_columns_of_its_site_alone(folder, model, rows, monkeypatch, site):
    source, select, widths = open_cache(folder, model), torch.index_select, []

    def noting(*arguments, out: Tensor) -> Tensor:
        widths.extend(out.shape[1:])
        return select(*arguments, out=out)

    monkeypatch.setattr(torch, "index_select", noting)
    assert torch.equal(source.sample(site, N_ROWS), rows[site] * source.scales[site])
    assert set(widths) == {source.widths[site]}


# --- several processes ----------------------------------------------------------------------------


@pytest.mark.parametrize("size", [2, 3, 4])
def test_processes_share_out_what_one_would_see(folder, model, rows, size):
    alone = open_cache(folder, model, batch_rows=16 * size)
    ranks = [
        open_cache(folder, model, batch_rows=16, here=World(rank, size)) for rank in range(size)
    ]
    for _ in range(15):
        parts = [which(next(source), source, rows) for source in ranks]
        assert sorted(itertools.chain(*parts)) == which(next(alone), alone, rows)
    for source in ranks:
        assert source.state_dict() == alone.state_dict()
        assert source.scales == alone.scales


def test_a_position_is_good_for_any_number_of_processes(folder, model, rows):
    two = [open_cache(folder, model, batch_rows=16, here=World(rank, 2)) for rank in range(2)]
    for _ in range(4):
        for source in two:
            next(source)
    alone, ahead = (open_cache(folder, model, batch_rows=32) for _ in range(2))
    alone.load_state_dict(two[1].state_dict())
    expected = epoch(ahead, rows, 6)[4:]
    assert epoch(alone, rows, 2) == expected
    parts = [[which(next(source), source, rows) for source in two] for _ in range(2)]
    assert [sorted(itertools.chain(*part)) for part in parts] == expected


# --- position -------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_before", [0, 1, 9, 30])
@pytest.mark.parametrize("how", ["memory", "disk"])
def test_a_position_is_left_and_found_again(folder, model, tmp_path, n_before, how):
    source = open_cache(folder, model)
    for _ in range(n_before):
        next(source)
    state = copy.deepcopy(source.state_dict())
    if how == "disk":
        state = dict(load_checkpoint(save_checkpoint(tmp_path, 1, state, keep=1)))
    assert state["position"] == n_before * 32
    assert all(isinstance(value, int | str) for value in state.values())
    other = open_cache(folder, model)
    next(other)  # so that something is fetched ahead that must not be served
    other.load_state_dict(state)
    for _ in range(12):
        batch, again = next(source), next(other)
        assert again.n_contexts == batch.n_contexts
        for site in SITES:
            assert torch.equal(again.acts[site], batch.acts[site])


def test_a_position_in_another_cache_is_refused(folder, model, tmp_path):
    write(tmp_path, model, n_rows=N_ROWS - 1)
    state = open_cache(tmp_path, model).state_dict()
    with pytest.raises(ValueError, match=f"path: {folder} holds other activations than when"):
        open_cache(folder, model).load_state_dict(state)


# --- training -------------------------------------------------------------------------------------


class Live(ActivationSource):
    """Runs the model for every batch, and takes the rows that a cache serves from what it gives."""

    drop_first_position = drop_special_tokens = True

    def __init__(self, model: GPT2, scales: Mapping[str, float], batch_rows: int) -> None:
        self.model, self.scales, self.batch_rows, self.position = model, scales, batch_rows, 0
        self.widths = {site: model.width(site) for site in SITES}

    def prepare(self) -> None:
        pass

    def rows(self, places: Tensor) -> dict[str, Tensor]:
        every = rows_in_order(self.model, N_ROWS)
        return {site: own[places] * self.scales[site] for site, own in every.items()}

    def sample(self, site: str, n_rows: int) -> Tensor:
        n = min(n_rows, N_ROWS)
        return self.rows(torch.arange(n) * N_ROWS // n)[site]

    def __next__(self) -> Batch:
        places = range(self.position, self.position + self.batch_rows)
        numbers = [
            int(Permutation(N_ROWS, seed=(0, place // N_ROWS))(torch.tensor([place % N_ROWS])))
            for place in places
        ]
        self.position += self.batch_rows
        return Batch(self.rows(torch.tensor(sorted(numbers))), n_contexts=0)

    def state_dict(self):
        return {}

    def load_state_dict(self, state) -> None:
        pass


@pytest.mark.slow
def test_training_from_it_is_training_live_on_the_same_rows(folder, model):
    """Weights, optimisers and firing records are equal bit for bit, also in a second epoch."""
    config = TrainerConfig(n_tokens=32 * 12, batch_rows=32, lr=0.01, n_warmup_steps=2)
    cached = open_cache(folder, model)
    sources = [cached, Live(model, cached.scales, 32)]
    trained = []
    for source in sources:
        sae = TopKConfig(d_sae=64, k=4)
        trainer = Trainer(config, sae, LocalObjective(), source, device=torch.device("cpu"))
        trainer.initialise()
        before = {site: sae.W_dec.clone() for site, sae in trainer.saes.items()}
        losses = [float(trainer.step(step, measure=True)["loss"]) for step in range(12)]
        assert all(not torch.equal(before[site], trainer.saes[site].W_dec) for site in SITES)
        trained.append((trainer.state_dict()["sites"], losses))
    (one, losses), (other, same) = trained
    assert losses == same
    assert_same(one, other)


def assert_same(one: object, other: object, where: str = "") -> None:
    if isinstance(one, Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, Mapping):
        assert one.keys() == other.keys()
        for key, value in one.items():
            assert_same(value, other[key], f"{where}.{key}")
    else:
        assert one == other, where


# --- what does not fit ----------------------------------------------------------------------------


def test_another_model_is_refused(folder, make_gpt2):
    for other in (make_gpt2(seed=1), make_gpt2().bfloat16()):
        with pytest.raises(
            ValueError, match=r"model: its weights .* which is of 'random' .*dtype="
        ):
            open_cache(folder, other)


def test_a_site_that_is_not_there_is_refused(folder, model):
    message = r"has no 'blocks\.2\.hook_resid_pre' \(nearest: .*blocks\.1\.hook_resid_pre.*write"
    with pytest.raises(ValueError, match=message):
        open_cache(folder, model, sites=["blocks.2.hook_resid_pre"])


@pytest.mark.parametrize("name", ["drop_first_position", "drop_special_tokens"])
def test_other_positions_are_refused(folder, model, name):
    message = (
        rf"activations\.{name}: false, but .* written with true; give activations\.{name}=true"
    )
    with pytest.raises(ValueError, match=message):
        open_cache(folder, model, **{name: False})


def test_other_contexts_are_refused(folder, model):
    tokens = stream()
    tokens.context_size = 12
    with pytest.raises(
        ValueError, match=r"data\.context_size: 12, but .* give data\.context_size=16"
    ):
        open_cache(folder, model, tokens=tokens)
    tokens = stream(replace(DATA, prepend_bos=False))
    message = r"prepend_bos: false, but .* written with true; give data\.prepend_bos=true, or write"
    with pytest.raises(ValueError, match=message):
        open_cache(folder, model, tokens=tokens)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (replace(DATA, paths=("a", "c")), "  paths: ['a', 'b'] -> ['a', 'c']"),
        (replace(DATA, heldout_paths=("b",)), "  heldout_paths: [] -> ['b']"),
        (DocsConfig(context_size=N_POS), "  kind: 'text' -> 'docs'"),
    ],
)
def test_other_text_is_warned_of_and_the_caches_own_is_told(folder, model, caplog, data, said):
    source = open_cache(folder, model, tokens=stream(data))
    (warning,) = (record.getMessage() for record in caplog.records if record.levelname == "WARNING")
    assert f"the cache at {folder} is of other text" in warning
    assert said in warning
    assert source.text == to_dict(DATA)


def test_the_same_text_is_not_warned_of(folder, model, caplog):
    open_cache(folder, model)
    assert "other text" not in caplog.text


@pytest.mark.parametrize("size", [1, 2])
def test_a_step_larger_than_the_cache_is_refused(folder, model, size):
    here = World(0, size)
    next(open_cache(folder, model, batch_rows=N_ROWS // size, here=here))
    with pytest.raises(ValueError, match=r"batch_rows: 30[12] rows a step are more than the 300"):
        open_cache(folder, model, batch_rows=N_ROWS // size + 1, here=here)


@pytest.fixture
def damaged(model, tmp_path) -> Path:
    """A cache with one bit of its third shard flipped."""
    write(tmp_path, model, n_rows=N_ROWS)
    data = bytearray(shard_path(tmp_path, 2).read_bytes())
    data[-1000] ^= 4
    shard_path(tmp_path, 2).write_bytes(bytes(data))
    return tmp_path


def test_a_damaged_shard_is_named_before_work(damaged, model):
    with pytest.raises(ValueError, match=r"shard_00002\.safetensors: checksum differs"):
        open_cache(damaged, model)


def test_checksums_can_be_left_out(damaged, model):
    next(open_cache(damaged, model, verify=False))


def test_sizes_are_compared_in_any_case(damaged, model):
    os.truncate(shard_path(damaged, 4), 1000)
    with pytest.raises(ValueError, match=r"shard_00004\.safetensors: has 1000 bytes"):
        open_cache(damaged, model, verify=False)


def test_processes_share_out_the_checksums(damaged, model):
    open_cache(damaged, model, batch_rows=16, here=World(1, 2))
    with pytest.raises(ValueError, match="shard_00002"):
        open_cache(damaged, model, batch_rows=16, here=World(0, 2))


def test_where_there_is_no_cache_it_is_said_how_to_write_one(model, tmp_path):
    with pytest.raises(ValueError, match=r"path: .*/none holds no activations .*cache path="):
        open_cache(tmp_path / "none", model)


def test_kinds_are_chosen_by_a_word():
    config = from_node(ActivationsConfig, {"kind": "cached", "path": "here"})
    assert config == CachedConfig(path="here")
    assert from_node(ActivationsConfig, to_dict(config)) == config
    with pytest.raises(ValueError, match=r"activations\.path: missing"):
        from_node(ActivationsConfig, {"kind": "cached"}, where="activations")


def test_the_time_is_told(folder, model):
    source = open_cache(folder, model)
    next(source)
    assert set(source.stopwatch.seconds) == {"activations"}


def test_columns_are_read_in_as_few_pieces_as_can_be(folder, model):
    for sites, n_pieces in [(SITES, 1), (SITES[1:], 1), ((SITES[2], SITES[0]), 2)]:
        assert len(open_cache(folder, model, sites=sites)._spans) == n_pieces
