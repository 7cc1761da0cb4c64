"""Removal schedules, waiting for the loss, exact resume, and a model trained out of LayerNorm."""

import dataclasses
import math

import pytest
import torch
from counting import ARCHITECTURE, CONFIG, fit, stream
from omegaconf import OmegaConf

import sae_kit
from sae_kit.config import from_node
from sae_kit.models.gpt2 import GPT2, GPT2Config
from sae_kit.models.no_ln import EOT, FIRST, removable
from sae_kit.train.language_model import LanguageModelTask
from sae_kit.train.no_ln import Event, KeepNorms, RemovalConfig, RemovalGroup, RemoveNorms

CONTEXTS = torch.arange(40).view(4, 10) % 32
QUICK = RemovalConfig(
    groups=tuple(
        RemovalGroup(what=what, start=start, gap=1)
        for what, start in (
            ("ln2", 2), ("ln1.qk", 3), ("ln1.v", 4), ("ln_final", 5), ("eot", 6), ("first", 7)
        )
    ),
    patience=0,
)  # fmt: skip


def preset(name: str) -> RemovalConfig:
    file = sae_kit.__file__.replace("sae_kit/__init__.py", f"conf/removal/{name}.yaml")
    return from_node(RemovalConfig, OmegaConf.load(file))


def model(seed: int = 0) -> GPT2:
    return GPT2(ARCHITECTURE, generator=torch.Generator().manual_seed(seed))


def norms(config: RemovalConfig = QUICK, *, n_steps: int = 100) -> RemoveNorms:
    return RemoveNorms(config, model(), CONTEXTS, eot_id=31, n_steps=n_steps)


def drive(removing: RemoveNorms, losses: list[float]) -> list[tuple[int, str]]:
    """When what is removed, if these are the steps' losses."""
    for step, loss in enumerate(losses):
        removing.before(step)
        removing.after(torch.tensor(loss))
    return [(removed.step, removed.name) for removed in removing.done]


# --- schedules ------------------------------------------------------------------------------------


def test_the_papers_39_events_are_at_the_papers_steps():
    """METHODS 5(b) and (f)."""
    events = preset("gpt2").events(12)
    expected = [Event(200 + 20 * i, f"blocks.{i}.ln2") for i in range(12)]
    expected += [Event(440 + 20 * i, f"blocks.{i}.ln1.qk") for i in range(12)]
    expected += [Event(680 + 30 * i, f"blocks.{i}.ln1.v") for i in range(12)]
    expected += [Event(1040, "ln_final"), Event(1060, EOT), Event(1160, FIRST)]
    assert events == expected
    assert len(events) == 36 + 1 + 2


@pytest.mark.parametrize(("name", "n_layer"), [("gpt2", 12), ("demo", 6)])
def test_a_preset_removes_everything(name, n_layer):
    assert {event.name for event in preset(name).events(n_layer)} == removable(n_layer)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda groups: (*groups, groups[0]), "'blocks.0.ln2' is there twice"),
        (lambda groups: groups[1:], "'blocks.0.ln2' is missing"),
        (
            lambda groups: (*groups[:2], dataclasses.replace(groups[2], start=1), *groups[3:]),
            "ln1.v is removed before blocks.0.ln1.qk",
        ),
        (lambda groups: (), "groups: none"),
    ],
)
def test_schedules_that_do_not_remove_everything_once_and_in_order_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(QUICK, groups=change(QUICK.groups)).events(2)


def test_a_group_starts_after_a_step():
    with pytest.raises(ValueError, match="start: 0 must be 1 or more"):
        RemovalGroup(what="ln2", start=0)


def test_a_run_too_short_for_its_schedule_is_refused():
    with pytest.raises(ValueError, match=r"first position's scale.* removed after 7 steps.*has 7"):
        norms(n_steps=7)


# --- waiting --------------------------------------------------------------------------------------


def test_without_a_rise_of_the_loss_everything_happens_as_planned():
    removing = norms()
    done = drive(removing, [1.0] * 12)
    assert done == [(event.step, event.name) for event in QUICK.events(2)]
    assert all(removed.loss_before == removed.peak == 1.0 for removed in removing.done)


def test_removals_wait_until_the_loss_has_come_down():
    config = dataclasses.replace(QUICK, tolerance=0.1, patience=50)
    # The first removal, before step 2, lifts the loss for ten steps.
    losses = [1.0, 1.0, *[3.0] * 10, *[1.0] * 60]
    removing = norms(config)
    done = drive(removing, losses)
    mean, steps = 1.0, 0
    for loss in losses:  # the running mean by hand
        if steps > 2 and mean <= 1.1:
            break
        mean, steps = mean + 0.1 * (loss - mean), steps + 1
    # All but the first are as much later as the second is.
    delay = done[1][0] - QUICK.events(2)[1].step
    assert done[1][0] == steps
    assert [step - delay for step, _ in done[1:]] == [e.step for e in QUICK.events(2)[1:]]
    assert removing.done[0].peak == 3.0


def test_patience_ends():
    config = dataclasses.replace(QUICK, tolerance=0.0, patience=5)
    done = drive(norms(config), [1.0, 1.0, *[2.0 + i for i in range(60)]])
    steps = [step for step, _ in done]
    planned = [event.step for event in config.events(2)]
    # The first never waits; two of one step are removed together only where the loss allows it.
    assert steps[0] == planned[0]
    assert steps[1] - planned[1] == 5


def test_a_loss_that_never_comes_down_does_not_keep_a_norm(caplog):
    """The paper's schedule in its 1,200 steps, 39 of them to spare: less than one may wait."""
    config = preset("gpt2")
    assert config.patience > 39
    deep = dataclasses.replace(ARCHITECTURE, n_layer=12, d_model=8, d_mlp=8)
    of = GPT2(deep, generator=torch.Generator().manual_seed(0))
    removing = RemoveNorms(config, of, CONTEXTS, eot_id=31, n_steps=1200)
    done = drive(removing, [float(step) for step in range(1200)])
    first, *later = config.events(12)
    assert done == [(first.step, first.name), *((e.step + 39, e.name) for e in later)]
    assert done[-1] == (1199, FIRST)
    assert removing.finished(of).config.norm == "linear"
    (said,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert "do not wait for the loss from here on" in said.message


@pytest.mark.parametrize("n_short", [-5, 0, 1, 3])
def test_removals_wait_as_long_as_the_run_has_steps(n_short):
    """All are late by what they wait in a long run, less the steps that this one lacks."""
    config = dataclasses.replace(QUICK, tolerance=0.1, patience=50)
    losses = [1.0, 1.0, *[3.0] * 10, *[1.0] * 80]
    planned, long = config.events(2), drive(norms(config), losses)
    waited = long[-1][0] - planned[-1].step
    assert waited > 10
    n_steps = planned[-1].step + waited + 1 - n_short
    done = drive(norms(config, n_steps=n_steps), losses[:n_steps])
    if n_short <= 0:
        assert done == long
    assert [step for step, _ in done[1:]] == [
        event.step + waited - max(n_short, 0) for event in planned[1:]
    ]


@pytest.mark.parametrize(("patience", "n_said"), [(5, 1), (0, 0)])
def test_a_run_that_ends_with_its_schedule_says_at_once_that_nothing_waits(
    patience, n_said, caplog
):
    config = dataclasses.replace(QUICK, patience=patience)
    removing = norms(config, n_steps=8)
    assert len(caplog.records) == n_said
    done = drive(removing, [float(step) for step in range(8)])
    assert done == [(event.step, event.name) for event in QUICK.events(2)]


def test_waiting_goes_on_as_it_was_left(caplog):
    """Whenever it was left: before, while and after the steps to spare are waited for."""
    config = dataclasses.replace(QUICK, tolerance=0.0, patience=3)
    losses = [float(step) for step in range(12)]
    whole = norms(config, n_steps=12)
    drive(whole, losses)
    for cut in range(1, 12):
        left = norms(config, n_steps=12)
        drive(left, losses[:cut])
        resumed = norms(config, n_steps=12)
        resumed.load_state_dict(left.state_dict())
        assert resumed.state_dict() == left.state_dict()
        for step in range(cut, 12):
            resumed.before(step)
            resumed.after(torch.tensor(losses[step]))
        assert resumed.state_dict() == whole.state_dict()
    warnings = [record for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 12  # once a run, whoever takes the step


# --- in training ----------------------------------------------------------------------------------


def make() -> LanguageModelTask:
    config = dataclasses.replace(CONFIG, n_tokens=12 * 8 * 12)

    def removing(of: GPT2, contexts: torch.Tensor, n_steps: int) -> RemoveNorms:
        return RemoveNorms(QUICK, of, contexts, eot_id=31, n_steps=n_steps)

    return LanguageModelTask(config, model(), stream(), {"counting": stream(10**6)}, removing)


def test_the_loss_is_of_the_model_as_far_as_it_is_removed():
    task = make()
    tokens = CONTEXTS
    before = task.loss(tokens)
    drive(task.norms, [1.0] * 12)
    after = task.loss(tokens)
    linear = task.norms.finished(task.model)
    assert linear.config.norm == "linear"
    plain = LanguageModelTask(task.config, linear, stream(), {"counting": stream(10**6)})
    torch.testing.assert_close(after, plain.loss(tokens))
    assert abs(after - before) > 1e-4


@pytest.mark.slow
def test_stopped_and_resumed_in_mid_schedule_is_never_stopped(tmp_path):
    whole = make()
    fit(whole, tmp_path / "whole")
    fit(make(), tmp_path / "half", n_steps=6)
    resumed = make()
    fit(resumed, tmp_path / "half", resume=True)
    assert resumed.norms.done == whole.norms.done
    assert len(whole.norms.done) == len(removable(2))
    assert resumed.norms.scales == whole.norms.scales
    for a, b in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_model_with_norms_left_is_not_called_finished():
    task = make()
    drive(task.norms, [1.0] * 4)
    with pytest.raises(ValueError, match="are still there"):
        task.norms.finished(task.model)


def test_keeping_them_changes_nothing():
    kept = KeepNorms()
    kept.before(0)
    assert kept.edits(CONTEXTS) == kept.after(torch.tensor(1.0)) == kept.state_dict() == {}
    own = model()
    assert kept.finished(own) is own


@pytest.mark.slow
def test_the_loss_spikes_at_a_removal_and_recovers(tmp_path):
    """METHODS 5(f), on a small model that counts: trained with LayerNorm, then without."""
    config = dataclasses.replace(CONFIG, n_tokens=150 * 8 * 12, lr_matrix=0.02, lr_other=0.02)
    with_norms = LanguageModelTask(config, model(), stream(), {"counting": stream(10**6)})
    fit(with_norms, tmp_path / "with")
    trained = with_norms.model
    schedule = dataclasses.replace(
        preset("demo"),
        groups=tuple(
            dataclasses.replace(group, start=5 + 15 * i, gap=5)
            for i, group in enumerate(preset("demo").groups)
        ),
    )

    def removing(of: GPT2, contexts: torch.Tensor, n_steps: int) -> RemoveNorms:
        return RemoveNorms(schedule, of, contexts, eot_id=31, n_steps=n_steps)

    heldout = {"counting": stream(10**6)}
    task = LanguageModelTask(config, trained, stream(), heldout, removing)
    before = float(task.loss(CONTEXTS).detach())
    fit(task, tmp_path / "without")
    linear = task.norms.finished(task.model)
    after = float(LanguageModelTask(config, linear, stream(), heldout).loss(CONTEXTS).detach())
    assert after < before + 0.1 < math.log(32) / 2
    assert max(removed.peak - removed.loss_before for removed in task.norms.done) > 0.05


def test_gpt2_small_has_blocks_for_its_schedule():
    assert preset("gpt2").events(GPT2Config().n_layer)
