"""Several processes do what one does, and go on from each other's checkpoints."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from ranks import in_ranks
from torch import Tensor
from torch.testing import assert_close

from sae_kit.config import from_node
from sae_kit.data.activations import ActivationSource, Batch
from sae_kit.dist import World
from sae_kit.sae.base import SAEConfig
from sae_kit.train.objective import LocalObjective
from sae_kit.train.parallel import PARALLEL, Replicated, Spread
from sae_kit.train.trainer import Trainer, TrainerConfig

SITES = [f"blocks.{i}.hook_resid_pre" for i in range(3)]
D_IN, D_SAE, ROWS = 16, 48, 48  # rows for one, two or three processes
CONFIG = TrainerConfig(
    n_tokens=16 * ROWS,
    batch_rows=ROWS,
    lr=0.002,
    n_warmup_steps=2,
    dead_after_tokens=2 * ROWS,
    checkpoint_every=8,
    log_every=4,
)
ROW_WISE = ["topk", "relu", "relu_weighted", "p_anneal", "gated", "jumprelu"]
COMPETING = ["batch_topk", "matryoshka"]
ALONE = World(0, 1)


class Shared(ActivationSource):
    """Batch i of all processes together depends on (site, i) only; each takes its part."""

    drop_first_position = drop_special_tokens = True

    def __init__(self, world: World) -> None:
        self.world, self.position = world, 0
        self.widths = dict.fromkeys(SITES, D_IN)
        self.scales = dict.fromkeys(SITES, 1.0)

    def prepare(self) -> None:
        pass

    def rows(self, site: str, index: int, n: int) -> Tensor:
        number = SITES.index(site)
        true = torch.randn(24, D_IN, generator=torch.Generator().manual_seed(number))
        draw = torch.Generator().manual_seed(1000 * (number + 1) + index)
        code = torch.rand(n, 24, generator=draw).topk(3)
        dense = torch.zeros(n, 24).scatter(1, code.indices, 1 + code.values)
        return dense @ (true / true.norm(dim=1, keepdim=True)) + 0.5

    def sample(self, site: str, n_rows: int) -> Tensor:
        return self.rows(site, 999, 512)

    def __next__(self) -> Batch:
        n = ROWS // self.world.size
        own = slice(self.world.rank * n, (self.world.rank + 1) * n)
        acts = {site: self.rows(site, self.position, ROWS)[own] for site in SITES}
        self.position += 1
        return Batch(acts, n_contexts=3)

    def state_dict(self):
        return {"position": self.position}

    def load_state_dict(self, state) -> None:
        self.position = state["position"]


def sae_config(word: str) -> SAEConfig:
    fields = {"arch": word, "d_sae": D_SAE, "aux_coefficient": 0.0}
    if "k" in SAEConfig.variants()[word].__dataclass_fields__:
        fields["k"] = 4
    return from_node(SAEConfig, fields)


def trainer_of(here: World, word: str, mode: str, config: TrainerConfig = CONFIG) -> Trainer:
    parallel = PARALLEL[mode](here)
    writes = {site: site for site in SITES}
    return Trainer(
        config,
        sae_config(word),
        LocalObjective(),
        parallel.source(Shared(here), writes),
        writes=parallel.owned(writes),
        parallel=parallel,
        device=torch.device("cpu"),
    )


def weights(trainer: Trainer) -> dict[str, dict[str, Tensor]]:
    return {
        site: {name: tensor.clone() for name, tensor in sae.weights().items()}
        for site, sae in trainer.saes.items()
    }


def take_steps(here: World, word: str, mode: str, n_steps: int):
    """Weights, metrics and firing records after some steps."""
    trainer = trainer_of(here, word, mode)
    trainer.initialise()
    metrics = [trainer.step(step, measure=True) for step in range(n_steps)]
    plain = [{name: float(value) for name, value in one.items()} for one in metrics]
    fired = {site: firing.n_fired.clone() for site, firing in trainer.firing.items()}
    return weights(trainer), plain, fired


def fit_in(here: World, word: str, mode: str, n_steps: int, folder: Path, resume: bool):
    """Train to a step, as a run of that length that is longer than its steps."""
    trainer = trainer_of(here, word, mode, replace(CONFIG, n_tokens=n_steps * ROWS))
    trainer.fit(folder, [], resume=resume)
    return weights(trainer)


def assert_same(one, other, **tolerance: float) -> None:
    assert one.keys() == other.keys()
    for site, tensors in one.items():
        for name, tensor in tensors.items():
            assert_close(tensor, other[site][name], **tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("word", ROW_WISE)
def test_two_processes_with_half_a_batch_each_do_what_one_does(word):
    first, second = in_ranks(take_steps, word, "data", 8)
    alone = take_steps(ALONE, word, "data", 8)
    assert_same(first[0], second[0], rtol=0, atol=0)
    assert_same(first[0], alone[0], rtol=1e-3, atol=1e-4)
    for here, there in zip(first[1], alone[1], strict=True):
        assert here.keys() == there.keys()
        for name in ("loss", f"{SITES[1]}/L0", "dead"):
            assert here[name] == pytest.approx(there[name], rel=1e-3), name
    for site, fired in alone[2].items():
        assert_close(first[2][site].double(), fired.double(), rtol=0.02, atol=1)


@pytest.mark.slow
@pytest.mark.parametrize("word", COMPETING)
def test_processes_agree_where_rows_compete_within_each(word):
    first, second = in_ranks(take_steps, word, "data", 8)
    assert_same(first[0], second[0], rtol=0, atol=0)
    assert first[1] == second[1]


@pytest.mark.slow
@pytest.mark.parametrize("word", ["topk", "batch_topk", "gated"])
def test_sites_spread_over_processes_are_trained_as_in_one(word):
    parts = in_ranks(take_steps, word, "sites", 6)
    alone = take_steps(ALONE, word, "data", 6)
    assert list(parts[0][0]) == [SITES[0], SITES[2]]
    assert list(parts[1][0]) == [SITES[1]]
    assert_same({**parts[0][0], **parts[1][0]}, {**alone[0]}, rtol=0, atol=0)
    for part in parts:
        assert part[1][-1].keys() == alone[1][-1].keys()
        assert part[1][-1]["loss"] == pytest.approx(alone[1][-1]["loss"], rel=1e-6)
        assert part[1][-1]["FVU"] == pytest.approx(alone[1][-1]["FVU"], rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["data", "sites"])
@pytest.mark.parametrize(("before", "after"), [(2, 2), (2, 1), (1, 2), (3, 2)])
def test_a_checkpoint_of_some_processes_is_continued_by_others(tmp_path, mode, before, after):
    folder = tmp_path / "run"
    _run(before, mode, 8, folder, False)
    states = _run(after, mode, 16, folder, True)
    merged = {site: own for part in states for site, own in part.items()}
    # The schedule of a run of 8 steps is not that of 16: the reference is cut in the same way.
    reference = tmp_path / "reference"
    fit_in(ALONE, "topk", "data", 8, reference, False)
    expected = fit_in(ALONE, "topk", "data", 16, reference, True)
    tolerance = {"rtol": 0, "atol": 0} if mode == "sites" else {"rtol": 1e-3, "atol": 1e-4}
    assert_same({site: merged[site] for site in expected}, expected, **tolerance)


def _run(size: int, mode: str, n_steps: int, folder: Path, resume: bool):
    if size == 1:
        return [fit_in(ALONE, "topk", mode, n_steps, folder, resume)]
    return in_ranks(fit_in, "topk", mode, n_steps, folder, resume, size=size)


def test_too_few_sites_for_the_processes():
    with pytest.raises(ValueError, match=r"trainer.parallel: 'sites' cannot spread 1 SAEs over 2"):
        Spread(World(0, 2)).owned({SITES[0]: SITES[0]})


def test_end_to_end_needs_the_model_where_the_sae_is():
    source = Shared(World(0, 2))
    source.gives_runs = True
    with pytest.raises(ValueError, match=r"give trainer.parallel=data"):
        Spread(World(0, 2)).source(source, {site: site for site in SITES})
    assert Replicated(World(0, 2)).source(source, {}) is source
