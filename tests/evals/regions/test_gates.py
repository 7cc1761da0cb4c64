"""Neurons that switch, against hyperplanes that are known: METHODS 3(f)."""

import pytest
import torch
from conftest import random_gpt2
from planted_regions import READ, SITE, gates
from torch import Tensor

from sae_kit.evals.perturb.paths import Arc, Segment
from sae_kit.evals.perturb.responses import Outcome
from sae_kit.evals.regions.gates import GateCrossings, GateFlips, last_gates
from sae_kit.evals.regions.region_bench import Bench
from sae_kit.evals.regions.sampled_pairs import Pairs
from sae_kit.evals.shared.kept import Part

ALPHAS = torch.linspace(0, 1, 101)


def along(model, tokens: Tensor, way) -> dict[str, Tensor]:
    bench = Bench(model, SITE, READ, memory_mb=64)
    return bench.along(Pairs(tokens[:1], tokens[1:2]), {"way": way}, ALPHAS, Part(None))["way"]


def test_a_straight_line_crosses_the_hyperplanes_between_its_ends_and_no_other():
    """METHODS 3(f): known hyperplanes, exact count, at the alphas where they are crossed."""
    generator = torch.Generator().manual_seed(0)
    normals = torch.randn(300, 2, generator=generator, dtype=torch.float64)
    thresholds = torch.randn(300, generator=generator, dtype=torch.float64)
    a, b = xy = torch.tensor([[-1.0, 0.3], [0.9, -0.2]]).double()
    found = along(*gates(xy, normals, thresholds), Segment)
    crossed = (thresholds - normals @ a) / (normals @ (b - a))
    crossed = crossed[(crossed > 0) & (crossed < 1)]
    assert 100 < len(crossed) < 200
    expected = (crossed < ALPHAS[:, None]).sum(1).float()
    assert torch.equal(found["gate_flips"][0], expected)
    assert torch.equal(found["gate_crossings"][0].cumsum(0), expected)


def test_a_hyperplane_crossed_twice_is_two_crossings_and_no_flip():
    """An arc from one side of the circle to the other, over a line that cuts off its top."""
    xy = torch.tensor([[-1.0, 0.0], [1.0, 0.5]]).double()
    normals, thresholds = torch.tensor([[0.0, 1.0]]), torch.tensor([0.8])
    centre = torch.zeros(10).double()
    centre[5] = 1.0  # where all activations are
    found = along(*gates(xy, normals, thresholds), lambda *given: Arc(*given, centre))
    assert found["gate_flips"][0, [0, -1]].tolist() == [0, 0]
    assert found["gate_flips"][0].max() == 1
    assert found["gate_crossings"].sum() == 2
    line = along(*gates(xy, normals, thresholds), Segment)
    assert line["gate_crossings"].sum() == 0


def test_the_pieces_of_a_path_do_not_matter():
    on = torch.randn(2, 9, 1, 20, generator=torch.Generator().manual_seed(1))
    clean = Outcome({"gates": on[:, :1]}, None)
    whole = GateCrossings("gates")(clean, Outcome({"gates": on}, None))
    response = GateCrossings("gates")
    pieces = [response(clean, Outcome({"gates": part}, None)) for part in on.split(4, dim=1)]
    assert torch.equal(torch.cat(pieces, 1), whole)
    flips = GateFlips("gates")(clean, Outcome({"gates": on}, None))
    assert (whole[:, 0] == 0).all()
    # What is on at the end has switched an odd number of times.
    parity = (whole.sum(1) - flips[:, -1]) % 2
    assert (parity == 0).all()
    assert (whole.cumsum(1) >= flips).all()


@pytest.mark.parametrize("seed", [0, 1])
def test_the_last_mlp_is_that_of_the_last_block(seed):
    model = random_gpt2(seed=seed)
    assert last_gates(model) == "blocks.2.mlp.hook_pre"
    assert last_gates(model) in model.sites()
