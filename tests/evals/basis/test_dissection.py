"""A classifier whose insides are known, taken apart."""

import pytest
import torch
from torch import nn

from sae_kit.evals.basis.dissection import Dissection, class_shares
from sae_kit.evals.basis.node_network import of_modules

N_CLASSES = 3


def linear(weight: torch.Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False).double().requires_grad_(False)
    layer.weight.copy_(weight)
    return layer


@pytest.fixture(scope="module")
def dissection() -> Dissection:
    """Three of six inputs decide, one each; the others vary as much and are not read."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 1, 6, generator=generator, dtype=torch.float64)
    eye = torch.eye(N_CLASSES, dtype=torch.float64)
    read = torch.cat([eye, torch.zeros_like(eye)], 1)
    network = of_modules([linear(read), linear(eye)], ("inputs", "middle", "outputs"))
    answers = x[200:, 0, :3].argmax(1)
    return Dissection(network, x[:200], x[200:], answers, batch=64)


def test_as_it_is_every_answer_is_right(dissection):
    assert dissection.base == 1.0


def test_lib_needs_the_directions_that_are_read_and_no_other(dissection):
    rows = {
        (row["basis"], row["k"]): row["accuracy"]
        for row in dissection.kept([1, 3, 6])
        if row["site"] == "inputs"
    }
    assert rows["LIB", 3] == 1.0 > rows["LIB", 1]
    assert ("LIB", 6) not in rows  # it has three directions
    assert rows["neurons", 6] == rows["PCA", 6] == 1.0
    assert rows["PCA", 3] < 1.0


def test_each_output_needs_one_edge(dissection):
    for basis in ("neurons", "LIB"):
        rows, graph = dissection.edges(basis, cost=0.0)
        assert [row["n_needed"] for row in rows] == [3, 3]
        assert [int((weights > 0).sum()) for weights in graph.weights] == [3, 3]
    rows, _ = dissection.edges("PCA", cost=0.0)
    assert rows[0]["n_needed"] > 3


def test_edges_may_cost_what_one_lets_them(dissection):
    strict, _ = dissection.edges("PCA", cost=0.0)
    loose, _ = dissection.edges("PCA", cost=0.5)
    assert loose[0]["n_needed"] < strict[0]["n_needed"]


def test_a_class_explains_its_own_indicator_and_half_of_one_of_two():
    answers = torch.tensor([0, 1, 2, 3] * 10)
    own = (answers == 2).double()
    constant = torch.ones(40, dtype=torch.float64)
    pair = ((answers == 0) | (answers == 1)).double()
    shares = class_shares(torch.stack([own, constant, pair], 1), answers, 4)
    assert shares[0, 2].item() == pytest.approx(1.0)
    assert shares[0, 0].item() == pytest.approx(1 / 9)  # correlation -1/3 of two of four classes
    assert (shares[1] == 0).all()
    assert shares[2].tolist() == pytest.approx([1 / 3] * 4)
