"""Training the transformer that adds."""

import pytest
import torch

from sae_kit.models.modular_addition import AdditionConfig
from sae_kit.train.modular_addition import AdditionTraining, accuracy_on, loss_on, train

SMALL = AdditionTraining(
    model=AdditionConfig(prime=7, d_model=16, n_head=2, d_mlp=32),
    train_fraction=0.6,
    n_steps=200,
    lr=5e-3,
    weight_decay=0.1,
)


@pytest.fixture(scope="module")
def trained():
    return train(SMALL)


def test_it_learns_the_pairs_that_it_sees(trained):
    assert accuracy_on(trained.model, trained.train) == 1.0
    assert trained.losses[-1, 0] < 0.1 < trained.losses[0, 0] + trained.losses[0, 1]
    assert loss_on(trained.model, trained.heldout).item() == pytest.approx(
        trained.losses[-1, 1].item(), rel=1e-4
    )


def test_every_pair_is_seen_or_held_out(trained):
    assert len(trained.train) == round(0.6 * 49)
    pairs = torch.cat([trained.train, trained.heldout]).tolist()
    assert len({tuple(pair) for pair in pairs}) == 49


def test_it_ends_when_the_rest_can_be_done():
    early = train(AdditionTraining(model=SMALL.model, margin=100.0, n_steps=500))
    assert early.n_steps == 100


@pytest.mark.parametrize("change", [{"train_fraction": 1.0}, {"n_steps": 0}])
def test_settings_that_make_no_sense_are_refused(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        AdditionTraining(**change)
