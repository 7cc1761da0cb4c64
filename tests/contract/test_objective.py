"""What every registered objective must do, on every device (conftest.device).

A new one is tested by being registered.
"""

import pytest
import torch
from conftest import computes, random_gpt2, sums_in_order
from elsewhere import ELSEWHERE
from torch.testing import assert_close

from sae_kit.config import from_node, to_dict
from sae_kit.data.activations import Batch
from sae_kit.models.gpt2 import GPT2, GPT2Config
from sae_kit.models.splice import CleanRun
from sae_kit.sae import Moment, SAEConfig
from sae_kit.train.objective import Objective, Part, Trained

OBJECTIVES = list(Objective.variants())
WIDTHS = {"blocks.0.hook_resid_pre": 6, "blocks.1.hook_resid_pre": 6, "blocks.1.mlp.hook_post": 9}
D_SAE = 12
SHAPE = GPT2Config(n_layer=2, n_head=2, d_model=6, d_mlp=9, n_ctx=8, n_vocab=20)


@pytest.fixture(params=OBJECTIVES)
def objective(request) -> Objective:
    return from_node(Objective, {"name": request.param})


@pytest.fixture
def model(device) -> GPT2:
    return random_gpt2(SHAPE, seed=1).to(device)


@pytest.fixture(params=list(SAEConfig.variants()))
def saes(request, device):
    if device.type == ELSEWHERE and request.param not in ("relu", "topk"):
        pytest.skip("one dense code, one sparse one; test_sae.py has every architecture there")
    fields = {"arch": request.param, "d_sae": D_SAE}
    if "k" in SAEConfig.variants()[request.param].__dataclass_fields__:
        fields["k"] = 3
    config = from_node(SAEConfig, fields)
    return {
        site: config.build(width, generator=torch.Generator().manual_seed(i)).to(device)
        for i, (site, width) in enumerate(WIDTHS.items())
    }


@pytest.fixture
def batch(model) -> Batch:
    """Two runs of two contexts each, in which position 0 does not count."""
    tokens = torch.randint(20, (4, 6), generator=torch.Generator().manual_seed(7))
    counts = torch.arange(6).expand(4, 6) > 0
    runs = [
        CleanRun(model, some, which, capture=list(WIDTHS), observe=list(model.sites()))
        for some, which in zip(tokens.split(2), counts.split(2), strict=True)
    ]
    scales = dict.fromkeys(model.sites(), 0.7)
    acts = {site: 0.7 * torch.cat([run.select(run.acts[site]) for run in runs]) for site in WIDTHS}
    return Batch(acts, 4, runs, scales)


N_ROWS = 20
END = Moment(100, 100)


def join(saes):
    return [Trained(sae, site, site) for site, sae in saes.items()]


def nobody(saes):
    return {site: torch.zeros_like(sae.b_enc, dtype=torch.bool) for site, sae in saes.items()}


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
            assert output.total.isfinite()
            assert not any(
                one.requires_grad for one in (*output.terms.values(), *output.measures.values())
            )


def test_totals_add_up(objective, saes, batch):
    for part in parts(objective, saes, batch):
        assert_close(part.total, torch.stack([o.total for o in part.outputs.values()]).sum())
        for output in part.outputs.values():
            assert_close(output.total.detach(), torch.stack(list(output.terms.values())).sum())


def test_the_batch_is_left_as_it_was(objective, saes, batch):
    def everything():
        of_runs = [
            t
            for run in batch.runs
            for t in (*run.acts.values(), *run.observed.values(), run.predictions.logits)
        ]
        return [*batch.acts.values(), *of_runs]

    before = [tensor.clone() for tensor in everything()]
    parts(objective, saes, batch)
    assert all(torch.equal(*pair) for pair in zip(everything(), before, strict=True))


@pytest.mark.slow
def test_steps_along_the_gradient_lower_the_loss(objective, saes, batch, device):
    computes(device)

    def loss():
        return float(sum(part.total.detach() for part in parts(objective, saes, batch)))

    optimiser = torch.optim.Adam([p for sae in saes.values() for p in sae.parameters()], lr=0.01)
    first = loss()
    for _ in range(30):
        optimiser.zero_grad()
        last = loss()
        optimiser.step()
    assert last < 0.9 * first


def test_an_sae_among_several_is_the_one_alone(objective, saes, batch, device):
    """Bit for bit, gradients too."""
    if not sums_in_order(device):
        pytest.skip("the device adds in no fixed order")
    together = {s: o for part in parts(objective, saes, batch) for s, o in part.outputs.items()}
    gradients = {s: [p.grad for p in sae.parameters()] for s, sae in saes.items()}
    for site, sae in saes.items():
        sae.zero_grad()
        (part,) = parts(objective, {site: sae}, batch)
        assert torch.equal(part.total, together[site].total)
        for p, gradient in zip(sae.parameters(), gradients[site], strict=True):
            assert (p.grad is None) == (gradient is None)
            assert p.grad is None or torch.equal(p.grad, gradient)


def test_what_it_observes_are_sites_of_the_model_in_its_order(objective):
    known = list(random_gpt2(SHAPE).sites())
    found = objective.observes(list(WIDTHS), known)
    assert found == [site for site in known if site in found]
    assert objective.needs_contexts or not found


def test_its_config_is_its_constructor(objective):
    assert from_node(Objective, to_dict(objective)) == objective
