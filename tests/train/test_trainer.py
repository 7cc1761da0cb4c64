"""The trainer: an update by hand, independent sites, exact resume, and that it learns at all."""

import copy
import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from sae_kit.checkpoint import checkpoints
from sae_kit.data.activations import ActivationSource, Batch
from sae_kit.maths import fvu
from sae_kit.sae.base import Moment, SAEConfig
from sae_kit.sae.relu import ReLUConfig
from sae_kit.sae.topk import TopKConfig
from sae_kit.timing import Stopwatch
from sae_kit.train.aim import aim
from sae_kit.train.loop import TrainingError
from sae_kit.train.objective import LocalObjective
from sae_kit.train.trainer import Trainer, TrainerConfig

SITES = ("blocks.0.hook_resid_pre", "blocks.1.hook_resid_pre", "blocks.2.hook_resid_pre")
D_IN, D_TRUE = 16, 24
CONFIG = TrainerConfig(
    n_tokens=640,
    batch_rows=32,
    lr=0.01,
    n_warmup_steps=4,
    dead_after_tokens=64,
    log_every=5,
    checkpoint_every=6,
)
TOPK, RELU = TopKConfig(d_sae=32, k=3), ReLUConfig(d_sae=32, l1_warmup=0.25)


class Planted(ActivationSource):
    """Sums of three of 24 fixed directions; batch i depends on (site, i) only."""

    drop_first_position = drop_special_tokens = True

    def __init__(self, sites=SITES, batch_rows: int = 32) -> None:
        self.widths = dict.fromkeys(sites, D_IN)
        self.scales = dict.fromkeys(sites, 1.0)
        self.batch_rows, self.position, self.n_prepared = batch_rows, 0, 0

    def prepare(self) -> None:
        self.n_prepared += 1

    def rows(self, site: str, index: int, n: int) -> Tensor:
        number = SITES.index(site)
        true = torch.randn(D_TRUE, D_IN, generator=torch.Generator().manual_seed(number))
        draw = torch.Generator().manual_seed(1000 * (number + 1) + index)
        active = torch.rand(n, D_TRUE, generator=draw).topk(3).indices
        code = torch.zeros(n, D_TRUE).scatter(1, active, 1 + torch.rand(n, 3, generator=draw))
        return code @ (true / true.norm(dim=1, keepdim=True)) + 0.5

    def sample(self, site: str, n_rows: int) -> Tensor:
        return self.rows(site, 999, min(n_rows, 256))

    def __next__(self) -> Batch:
        self.position += 1
        acts = {site: self.rows(site, self.position, self.batch_rows) for site in self.widths}
        return Batch(acts, n_contexts=7)

    def state_dict(self):
        return {"position": self.position}

    def load_state_dict(self, state) -> None:
        self.position = state["position"]


def make(
    config: TrainerConfig = CONFIG, sae: SAEConfig = TOPK, source: Planted | None = None
) -> Trainer:
    return Trainer(config, sae, LocalObjective(), source or Planted(), device=torch.device("cpu"))


def weights(trainer: Trainer, site: str = SITES[0]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in trainer.saes[site].weights().items()}


def assert_equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


def train(trainer: Trainer, n_steps: int) -> list[Mapping]:
    trainer.initialise()
    return [trainer.step(step, measure=True) for step in range(n_steps)]


# --- one step -------------------------------------------------------------------------------------


@pytest.mark.parametrize("clip_norm", [None, 0.5])
@pytest.mark.parametrize("sae_config", [TOPK, RELU], ids=["topk", "relu"])
def test_steps_are_adam_with_the_gradient_projected_and_the_decoder_normalised(
    sae_config, clip_norm
):
    trainer, site = make(replace(CONFIG, clip_norm=clip_norm), sae_config), SITES[0]
    trainer.initialise()
    sae = copy.deepcopy(trainer.saes[site])
    adam = torch.optim.Adam(sae.parameters(), lr=0.01, betas=(CONFIG.beta1, CONFIG.beta2))
    source = Planted()
    for step in range(3):
        adam.param_groups[0]["lr"] = 0.01 * (step + 1) / 4
        x = next(source).acts[site]
        at = Moment(step, 20)
        out = sae.forward_train(x, at)
        sae.losses(x, x, out, at=at, dead=torch.zeros(32, dtype=torch.bool)).total.backward()
        with torch.no_grad():
            along = (sae.W_dec.grad * sae.W_dec).sum(1, keepdim=True)
            sae.W_dec.grad.sub_(along * sae.W_dec)
            if clip_norm is not None:
                grads = [p.grad for p in sae.parameters()]
                norm = sum(grad.square().sum().item() for grad in grads) ** 0.5
                assert norm > clip_norm
                for grad in grads:
                    grad.mul_(clip_norm / norm)
        adam.step()
        adam.zero_grad()
        with torch.no_grad():
            sae.W_dec.div_(sae.W_dec.norm(dim=1, keepdim=True))
        metrics = trainer.step(step, measure=True)
        assert metrics["lr"] == pytest.approx(0.01 * (step + 1) / 4)
        if step == 0:
            assert_close(metrics[f"{site}/FVU"], fvu(x, out.recon.detach()))
    for name, tensor in sae.weights().items():
        # The norm is another sum, and Adam makes more of its last bits than they are.
        atol = 1e-6 if clip_norm is None else 1e-5
        assert_close(weights(trainer)[name], tensor, atol=atol, rtol=1e-5)


def test_what_a_step_reports():
    trainer = make()
    (metrics,) = train(trainer, 1)
    of_sites = {f"{site}/{name}" for site in SITES for name in ("FVU", "L0", "dead", "loss_mse")}
    assert set(metrics) == {"loss", "lr", "n_contexts", "FVU", "L0", "dead", *of_sites}
    assert metrics["n_contexts"] == 7
    for name in ("FVU", "L0", "dead"):
        mean = sum(float(metrics[f"{site}/{name}"]) for site in SITES) / 3
        assert float(metrics[name]) == pytest.approx(mean)
    total = sum(float(metrics[f"{site}/loss_mse"]) for site in SITES)
    assert float(metrics["loss"]) == pytest.approx(total / 3)
    assert set(trainer.step(1, measure=False)) == {"loss", "lr", "n_contexts"}


@pytest.mark.slow
def test_it_learns():
    """On planted directions, which it can find."""
    trainer = make(replace(CONFIG, n_tokens=32 * 200), source=Planted(SITES[:1]))
    metrics = train(trainer, 200)
    assert float(metrics[0]["FVU"]) > 0.5
    assert float(metrics[-1]["FVU"]) < 0.35


def test_an_sae_starts_from_the_data():
    trainer = make()
    trainer.initialise()
    assert trainer.source.n_prepared == 1
    # The median of what lies around 0.5 plus a few random directions.
    for sae in trainer.saes.values():
        assert (sae.b_dec - 0.5).norm() < (sae.b_dec * 0 - 0.5).norm()


def test_a_transcoder_starts_aimed_at_what_it_writes():
    config = replace(TOPK, apply_b_dec_to_input=False)
    trainer = Trainer(
        CONFIG,
        config,
        LocalObjective(),
        Planted(SITES[:2]),
        writes={SITES[0]: SITES[1]},
        device=torch.device("cpu"),
    )
    sae = copy.deepcopy(trainer.saes[SITES[0]])
    trainer.initialise()
    aim(sae, *(trainer.source.sample(site, 8192) for site in SITES[:2]))
    assert_equal(weights(trainer), sae.weights())


# --- dead latents and frequencies -----------------------------------------------------------------


def test_a_silent_latent_is_called_dead_and_gets_the_auxiliary_loss():
    trainer = make()
    trainer.initialise()
    with torch.no_grad():
        trainer.saes[SITES[0]].b_enc[5] = -100.0
    seen = [trainer.step(step, measure=True) for step in range(4)]
    # dead_after_tokens is two batches: the third step is the first with the auxiliary loss.
    assert [f"{SITES[0]}/loss_aux" in metrics for metrics in seen] == [False, False, True, True]
    assert float(seen[-1][f"{SITES[0]}/dead"]) >= 1 / 32
    assert trainer.firing[SITES[0]].dead(64)[5]


@pytest.mark.parametrize(
    ("decay_fraction", "n_counted"), [(0.3, 6), (1.0, 20), (0.0, 2), (0.04, 2)]
)
def test_frequencies_are_counted_while_the_rate_falls(decay_fraction, n_counted):
    trainer = make(replace(CONFIG, decay_fraction=decay_fraction))
    train(trainer, 20)
    firing = trainer.firing[SITES[0]]
    assert firing.n_rows == 32 * n_counted
    assert float(firing.frequency().sum()) <= 3 + 1e-6
    assert float(firing.frequency().sum()) > 1


# --- what goes wrong ------------------------------------------------------------------------------


def test_a_loss_that_is_no_number_names_site_and_step_and_keeps_what_was_good(tmp_path):
    class Broken(Planted):
        def __next__(self) -> Batch:
            batch = super().__next__()
            if self.position == 9:
                batch.acts[SITES[1]][3] = math.nan
            return batch

    message = rf"{SITES[1]}: the loss is nan at step 10; .*step_6\. Start a new run: lower trainer"
    with pytest.raises(TrainingError, match=message):
        make(source=Broken()).fit(tmp_path, [])
    assert [path.name for path in checkpoints(tmp_path / "checkpoints")] == ["step_6"]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 1


def test_an_error_that_is_finite_but_explodes_stops_it_too(tmp_path):
    with pytest.raises(TrainingError, match=rf"{SITES[0]}: the error has exploded \(FVU .* step 5"):
        make(replace(CONFIG, lr=1e3)).fit(tmp_path, [])


def test_nothing_is_looked_at_between_measured_steps():
    """On a GPU every look waits for it."""
    trainer = make()
    trainer.initialise()
    trainer.step(0, measure=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tensor, "__float__", None)
        patch.setattr(Tensor, "__bool__", None)
        patch.setattr(Tensor, "item", None)
        trainer.step(1, measure=False)


# --- independence and state -----------------------------------------------------------------------


@pytest.mark.parametrize("sae", [TOPK, RELU], ids=["topk", "relu"])
def test_a_site_alone_is_that_site_among_all(sae):
    among, alone = make(sae=sae), make(sae=sae, source=Planted(SITES[1:2]))
    train(among, 6)
    train(alone, 6)
    assert_equal(weights(among, SITES[1]), weights(alone, SITES[1]))


def test_the_seed_decides_and_sites_start_differently():
    assert_equal(weights(make()), weights(make()))
    one, other = weights(make()), weights(make(replace(CONFIG, seed=1)))
    assert not torch.equal(one["W_dec"], other["W_dec"])
    trainer = make()
    assert not torch.equal(weights(trainer)["W_dec"], weights(trainer, SITES[1])["W_dec"])


def test_the_global_generator_is_left_alone():
    state = torch.get_rng_state()
    train(make(), 2)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.slow
@pytest.mark.parametrize("sae", [TOPK, RELU], ids=["topk", "relu"])
def test_stopped_and_resumed_is_never_stopped(tmp_path, sae):
    """20 steps, and 14 of which 12 are saved, then the rest by another trainer."""
    whole = make(sae=sae)
    whole.fit(tmp_path / "whole", [])

    class Stop(Exception):
        pass

    class Breaking(Planted):
        def __next__(self) -> Batch:
            if self.position == 14:
                raise Stop
            return super().__next__()

    cut = make(sae=sae, source=Breaking())
    with pytest.raises(Stop):
        cut.fit(tmp_path / "cut", [])
    resumed = make(sae=sae)
    assert resumed.fit(tmp_path / "cut", [], resume=True) is None
    assert resumed.source.n_prepared == 0, "a resumed run has its buffer already"
    for site in SITES:
        assert_equal(weights(resumed, site), weights(whole, site))
        assert_equal(
            resumed.firing[site].state_dict() | {"n_rows": torch.tensor(0)},
            whole.firing[site].state_dict() | {"n_rows": torch.tensor(0)},
        )
    lines = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("whole", "cut")]
    assert lines[0] == lines[1]
    assert [json.loads(line)["step"] for line in lines[0].splitlines()] == [5, 10, 15, 20]


def test_resuming_before_the_first_checkpoint_starts_from_the_beginning(tmp_path: Path):
    whole, again = make(), make()
    whole.fit(tmp_path / "whole", [])
    again.fit(tmp_path / "again", [], resume=True)
    assert_equal(weights(again), weights(whole))


@pytest.mark.parametrize(("n_warmup", "warned"), [(4, False), (15, False), (16, True), (40, True)])
def test_a_rate_that_is_never_reached_is_said(tmp_path, caplog, n_warmup, warned):
    config = replace(CONFIG, n_warmup_steps=n_warmup)  # 20 steps, of which the last 6 decay
    make(config).fit(tmp_path, [])
    assert ("the learning rate never gets above" in caplog.text) == warned


def test_the_time_is_told_apart():
    stopwatch = Stopwatch()
    trainer = Trainer(
        CONFIG,
        TOPK,
        LocalObjective(),
        Planted(),
        device=torch.device("cpu"),
        stopwatch=stopwatch,
    )
    train(trainer, 1)
    assert set(stopwatch.seconds) == {"SAE forward", "SAE backward", "optimiser", "statistics"}


# --- settings -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"n_tokens": 100, "batch_rows": 101}, "n_tokens: 100 .* batch_rows=101"),
        ({"batch_rows": 0}, "batch_rows: 0 is not positive"),
        ({"checkpoint_every": 0}, "checkpoint_every: 0"),
        ({"lr": 0.0}, "lr: 0"),
        ({"lr": float("nan")}, "lr: nan"),
        ({"beta2": 1.0}, "beta2: 1"),
        ({"clip_norm": 0.0}, "clip_norm: 0.0 is not positive"),
        ({"n_warmup_steps": -1}, "n_warmup_steps: -1"),
        ({"decay_fraction": 1.5}, "decay_fraction: 1.5"),
        ({"seed": -1}, "seed: -1"),
    ],
)
def test_impossible_settings_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        TrainerConfig(**fields)


def test_steps_are_whole_batches():
    assert TrainerConfig(n_tokens=100, batch_rows=30).n_steps == 3
    assert TrainerConfig(n_tokens=100, batch_rows=10, decay_fraction=0.35).n_decay_steps == 3
