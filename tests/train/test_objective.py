"""The local objective: each SAE reconstructs what it reads, whatever the others do."""

import torch
from torch.testing import assert_close

from sae_kit.data.activations import Batch
from sae_kit.sae import Moment
from sae_kit.sae.relu import ReLUConfig
from sae_kit.sae.topk import TopKConfig
from sae_kit.train.objective import LocalObjective, Trained

SITES = ("blocks.0.hook_resid_pre", "blocks.1.hook_resid_pre")


def build(seed: int):
    return ReLUConfig(d_sae=8, l1_coefficient=0.5, l1_warmup=0.1).build(
        4, generator=torch.Generator().manual_seed(seed)
    )


def rows(seed: int) -> torch.Tensor:
    return torch.randn(16, 4, generator=torch.Generator().manual_seed(seed))


def join(saes):
    return [Trained(sae, site, site) for site, sae in saes.items()]


START = Moment(0, 100)
NOBODY = {site: torch.zeros(8, dtype=torch.bool) for site in SITES}


def test_the_loss_is_the_documented_one():
    sae, x = build(0), rows(1)
    saes, batch = {SITES[0]: sae}, Batch({SITES[0]: x}, 1)
    (part,) = LocalObjective().parts(join(saes), batch, at=Moment(5, 100), dead=NOBODY)
    code = ((x - sae.b_dec) @ sae.W_enc + sae.b_enc).relu()
    recon = code @ sae.W_dec + sae.b_dec
    expected = (recon - x).square().sum(1).mean() + 0.5 * (5 / 10) * code.sum(1).mean()
    assert_close(part.total, expected)
    output = part.outputs[SITES[0]]
    assert output.target is x
    assert set(output.terms) == {"mse", "l1"}
    assert_close(sum(output.terms.values()), expected)


def test_a_site_does_not_see_the_others():
    saes = {site: build(i) for i, site in enumerate(SITES)}
    batch = Batch({site: rows(i + 5) for i, site in enumerate(SITES)}, 1)
    together = {}
    for part in LocalObjective().parts(join(saes), batch, at=START, dead=NOBODY):
        ((site, output),) = part.outputs.items()
        together[site] = output.total
    assert list(together) == list(SITES)
    for site, total in together.items():
        alone = Batch({site: batch.acts[site]}, 1)
        (part,) = LocalObjective().parts(join({site: saes[site]}), alone, at=START, dead=NOBODY)
        assert torch.equal(part.total, total)


def test_a_transcoder_reconstructs_what_it_writes():
    config = TopKConfig(d_sae=8, k=2, apply_b_dec_to_input=False)
    sae = config.build(4, 6, generator=torch.Generator().manual_seed(0))
    batch = Batch({SITES[0]: rows(1), SITES[1]: torch.randn(16, 6)}, 1)
    one = Trained(sae, SITES[0], SITES[1])
    (part,) = LocalObjective().parts([one], batch, at=START, dead=NOBODY)
    assert part.outputs[SITES[0]].target is batch.acts[SITES[1]]
    assert_close(part.total, (sae(rows(1)) - batch.acts[SITES[1]]).square().sum(1).mean())


def test_nothing_but_what_is_read_and_written_is_asked_for():
    assert not LocalObjective.needs_contexts
    assert LocalObjective().observes(SITES, SITES) == []


def test_a_part_is_built_only_when_asked_for():
    """Otherwise the graphs of all sites would be in memory at once."""
    saes = {site: build(i) for i, site in enumerate(SITES)}
    seen = []

    class Watched(dict):
        def __getitem__(self, site):
            seen.append(site)
            return super().__getitem__(site)

    batch = Batch(Watched({site: rows(3) for site in SITES}), 1)
    found = LocalObjective().parts(join(saes), batch, at=START, dead=NOBODY)
    next(found)
    assert SITES[1] not in seen
    next(found)
    assert SITES[1] in seen
