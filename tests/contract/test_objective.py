"""What every registered objective must do. A new one is tested by being registered."""

import pytest
import torch
from torch.testing import assert_close

from sae_kit.config import from_node, to_dict
from sae_kit.data.activations import Batch
from sae_kit.sae import Moment, SAEConfig
from sae_kit.train.objective import Objective, Part, Trained

OBJECTIVES = list(Objective.variants())
WIDTHS = {"blocks.0.hook_resid_pre": 6, "blocks.1.hook_resid_pre": 6, "blocks.1.mlp.hook_post": 9}
N_ROWS, D_SAE = 20, 12


@pytest.fixture(params=OBJECTIVES)
def objective(request) -> Objective:
    return from_node(Objective, {"name": request.param})


@pytest.fixture(params=list(SAEConfig.variants()))
def saes(request):
    fields = {"arch": request.param, "d_sae": D_SAE}
    if "k" in SAEConfig.variants()[request.param].__dataclass_fields__:
        fields["k"] = 3
    config = from_node(SAEConfig, fields)
    return {
        site: config.build(width, generator=torch.Generator().manual_seed(i))
        for i, (site, width) in enumerate(WIDTHS.items())
    }


@pytest.fixture
def batch() -> Batch:
    generator = torch.Generator().manual_seed(7)
    acts = {site: torch.randn(N_ROWS, d, generator=generator) for site, d in WIDTHS.items()}
    return Batch(acts, n_contexts=5)


END = Moment(100, 100)


def join(saes):
    return [Trained(sae, site, site) for site, sae in saes.items()]


def nobody(saes):
    return {site: torch.zeros(D_SAE, dtype=torch.bool) for site in saes}


def parts(objective, saes, batch) -> list[Part]:
    """All parts, each differentiated before the next is asked for, as the trainer does it."""
    done = []
    for part in objective.parts(join(saes), batch, at=END, dead=nobody(saes)):
        part.total.backward()
        done.append(part)
    return done


def test_every_site_is_trained_exactly_once(objective, saes, batch):
    trained = [site for part in parts(objective, saes, batch) for site in part.outputs]
    assert sorted(trained) == sorted(WIDTHS)


def test_a_part_gives_gradients_to_its_own_sites_only(objective, saes, batch):
    for part in objective.parts(join(saes), batch, at=END, dead=nobody(saes)):
        part.total.backward()
        reached = {
            s for s, sae in saes.items() if any(p.grad is not None for p in sae.parameters())
        }
        assert reached == set(part.outputs)
        for sae in saes.values():
            sae.zero_grad()


def test_outputs_fit_the_batch(objective, saes, batch):
    for part in parts(objective, saes, batch):
        for site, output in part.outputs.items():
            assert torch.equal(output.x, batch.acts[site])
            assert output.target.shape == output.out.recon.shape
            assert len(output.target) == N_ROWS
            assert output.losses.total.isfinite()


def test_totals_add_up(objective, saes, batch):
    for part in parts(objective, saes, batch):
        total = torch.stack([output.losses.total for output in part.outputs.values()]).sum()
        assert_close(part.total, total)


def test_the_batch_is_left_as_it_was(objective, saes, batch):
    before = {site: rows.clone() for site, rows in batch.acts.items()}
    parts(objective, saes, batch)
    assert all(torch.equal(batch.acts[site], rows) for site, rows in before.items())


def test_steps_along_the_gradient_lower_the_loss(objective, saes, batch):
    def loss():
        return float(sum(part.total.detach() for part in parts(objective, saes, batch)))

    optimiser = torch.optim.Adam([p for sae in saes.values() for p in sae.parameters()], lr=0.01)
    first = loss()
    for _ in range(30):
        optimiser.zero_grad()
        last = loss()
        optimiser.step()
    assert last < 0.9 * first


def test_its_config_is_its_constructor(objective):
    assert from_node(Objective, to_dict(objective)) == objective
