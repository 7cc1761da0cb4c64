"""Paths between activations and planes through three, against models whose borders are planted."""

import torch
from conftest import random_gpt2
from torch import Tensor

from sae_kit.evals.hosts import Place
from sae_kit.evals.kept import Part
from sae_kit.evals.region_bench import (
    ARC,
    LINE,
    Between,
    GateFlips,
    Slices,
    last_activations,
)
from sae_kit.evals.responses import Outcome

MODEL = random_gpt2()
TOKENS = torch.randint(300, (4, 6), generator=torch.Generator().manual_seed(0))
SITE, READ = "blocks.1.hook_resid_pre", "blocks.2.hook_resid_post"
NOTHING = Part(None)


def between(**settings) -> Between:
    found = Between(MODEL, SITE, READ, 9, **{"paths": (LINE, ARC), "memory_mb": 64, **settings})
    found.measure(TOKENS[:-1], last_activations(MODEL, TOKENS[1:], SITE), NOTHING)
    return found


def put(host: int, x: Tensor) -> Tensor:
    """The read activation with `x` at the last position, by a full run."""

    def replaced(acts: Tensor) -> Tensor:
        return torch.cat([acts[:, :-1], x.view(1, 1, -1)], 1)

    run = MODEL.run(TOKENS[host : host + 1], edit={SITE: replaced}, capture=[READ])
    return run.acts[READ][0, -1]


def test_distances_are_of_activations_put_into_the_first_prompts_context():
    ends = last_activations(MODEL, TOKENS, SITE)
    found = between()
    for host in range(3):
        clean = put(host, ends[host])
        for i, alpha in enumerate(torch.linspace(0, 1, 9).tolist()):
            x = ends[host] + alpha * (ends[host + 1] - ends[host])
            expected = (put(host, x) - clean).norm()
            torch.testing.assert_close(
                found.distances[LINE][host, i], expected, rtol=1e-3, atol=1e-4
            )


def test_line_and_arc_begin_alike_and_need_not_end_alike():
    found = between()
    assert (found.distances[ARC][:, 0] == 0).all()
    assert set(found.kl) == set(found.flips) == {LINE, ARC}


def test_gates_flip_where_the_path_crosses_their_hyperplane():
    """A network with known hyperplanes: neuron i is on where x_0 > i."""
    thresholds = torch.arange(5.0)
    path = torch.linspace(-1, 6, 8)
    pre = path[None, :, None, None] - thresholds
    flips = GateFlips("mlp")(Outcome({"mlp": pre[:, :1]}, None), Outcome({"mlp": pre}, None))
    assert flips[0, :, 0].tolist() == [0, 0, 1, 2, 3, 4, 5, 5]


def test_behind_the_last_mlp_no_gate_can_flip():
    found = Between(MODEL, READ, READ, 5, paths=(LINE,), memory_mb=64)
    found.measure(TOKENS[:-1], last_activations(MODEL, TOKENS[1:], READ), NOTHING)
    assert (found.flips[LINE] == 0).all()


def test_a_logit_difference_runs_from_1_to_0():
    ends = last_activations(MODEL, TOKENS[:2], SITE)
    values = between().logit_difference(TOKENS[:1], ends)
    assert values.shape == (9,)
    same = MODEL.run(TOKENS[:1]).logits[0, -1].argmax()
    other = Place(write=SITE, position=-1).hosts(
        MODEL, TOKENS[:1], torch.zeros(1, dtype=torch.long)
    )
    end = other.outcome(ends[None, 1:, None], sites=(), logits=True).logits[0, 0, 0].argmax()
    expected = [0.0, 0.0] if same == end else [1.0, 0.0]
    torch.testing.assert_close(values[[0, -1]], torch.tensor(expected))


def test_a_plane_shows_planted_borders_where_they_are():
    """F8: the output is which of three planted cells an activation is in; the borders are straight.

    Read at the site written, a plane's distance is that of the activations themselves, so each
    context is closest to its own, and the border between two is where their distances are equal.
    """
    slices = Slices(MODEL, SITE, SITE, 13, 64).of(TOKENS[:3], NOTHING, "s")
    a, b, c = last_activations(MODEL, TOKENS[:3], SITE)
    sides, t = slices["s/sides"], slices["s/t"].item()
    across = b - a
    up = c - a - t * across
    for row, beta in enumerate(sides.tolist()):
        for column, alpha in enumerate(sides.tolist()):
            x = a + alpha * across + beta * up
            expected = torch.stack([(x - corner).norm() for corner in (a, b, c)])
            torch.testing.assert_close(
                slices["s/distances"][:, row, column], expected, rtol=1e-3, atol=1e-3
            )
    cells = slices["s/distances"].argmin(0)
    # The border of A and B is the line alpha = 1/2, as far as C is far.
    low = cells[sides < 0.2]
    assert (low[:, sides < 0.45] == 0).all()
    assert (low[:, sides > 0.55] == 1).all()
