"""Training the transformer that adds."""

import dataclasses
import math

import pytest
import torch

from sae_kit.models.modular_addition import AdditionConfig
from sae_kit.train.loop import Loop
from sae_kit.train.modular_addition import AdditionTask, AdditionTraining, accuracy_on, loss_on

TINY = AdditionConfig(prime=7, d_model=16, n_head=2, d_mlp=32)
SMALL = AdditionTraining(
    model=TINY, train_fraction=0.6, n_steps=200, lr=5e-3, weight_decay=0.1, log_every=50
)


def run(folder, config: AdditionTraining) -> Loop:
    """A finished loop; its task is in it."""
    task = AdditionTask(config)
    loop = Loop(task, task.plan(), folder=folder, loggers=[])
    assert loop.run() is None
    return loop


def test_it_learns_the_pairs_that_it_sees(tmp_path):
    start = AdditionTask(SMALL)
    task = run(tmp_path, SMALL).task
    assert accuracy_on(task.model, task.train) == 1.0
    assert loss_on(task.model, task.train) < 0.1 < loss_on(start.model, start.train)


def test_every_pair_is_seen_or_held_out():
    task = AdditionTask(SMALL)
    assert len(task.train) == round(0.6 * 49)
    pairs = torch.cat([task.train, task.heldout]).tolist()
    assert len({tuple(pair) for pair in pairs}) == 49


def test_it_ends_when_the_rest_can_be_done(tmp_path):
    """And has saved itself then; going on takes no further step."""
    config = AdditionTraining(model=TINY, margin=100.0, n_steps=500, log_every=30)
    loop = run(tmp_path, config)
    assert loop.n_done == 30
    again = AdditionTask(config)
    resumed = Loop(again, again.plan(), folder=tmp_path, loggers=[])
    assert resumed.resume()
    resumed.run()
    assert resumed.n_done == 30
    assert torch.equal(again.model.embedding, loop.task.model.embedding)


def test_without_a_margin_it_takes_every_step(tmp_path):
    config = AdditionTraining(model=TINY, margin=0.0, n_steps=20, log_every=5)
    assert run(tmp_path, config).n_done == 20


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("train_fraction", 0.0),
        ("train_fraction", 1.0),
        ("train_fraction", math.nan),
        ("n_steps", 0),
        ("lr", 0.0),
        ("lr", math.nan),
        ("lr", math.inf),
        ("weight_decay", -0.1),
        ("weight_decay", math.inf),
        ("n_warmup_steps", 0),
        ("margin", -1e-3),
        ("margin", math.nan),
        ("log_every", 0),
        ("checkpoint_every", 0),
        ("seed", -1),
    ],
)
def test_settings_that_make_no_sense_are_refused(name, value):
    with pytest.raises(ValueError, match=f"^{name}: {value} .*give "):
        AdditionTraining(**{name: value})


@pytest.mark.parametrize("fraction", [0.01, 0.99])
def test_a_share_of_few_pairs_leaves_some_on_both_sides(fraction):
    """Of 49 pairs it rounds to none, or to all."""
    with pytest.raises(ValueError, match=f"train_fraction: {fraction} of 49 pairs; give"):
        AdditionTraining(model=TINY, train_fraction=fraction)


def test_every_setting_is_tried_by_the_test_of_bad_ones():
    """A new one is to be checked, too; the sizes check themselves."""
    (mark,) = test_settings_that_make_no_sense_are_refused.pytestmark
    tried = {name for name, _ in mark.args[1]}
    assert tried == {field.name for field in dataclasses.fields(AdditionTraining)} - {"model"}
