"""Ways between activations and planes through three, in models whose regions are planted."""

import math

import pytest
import torch
from conftest import random_gpt2
from planted_memory import READ as MEMORY_READ
from planted_memory import SITE as MEMORY_SITE
from planted_memory import memory, recalled
from planted_regions import READ as PLANTED_READ
from planted_regions import SITE as PLANTED_SITE
from planted_regions import cells
from torch import Tensor

from sae_kit.evals.perturb.curves import max_slope, plateau_length, relative
from sae_kit.evals.perturb.hosts import Hosts, Place
from sae_kit.evals.perturb.paths import Ray, Segment
from sae_kit.evals.perturb.perturbation import Probe, respond
from sae_kit.evals.perturb.responses import L2
from sae_kit.evals.regions.region_bench import Bench
from sae_kit.evals.regions.sampled_pairs import Pairs
from sae_kit.evals.shared.kept import Part

MODEL = random_gpt2()
TOKENS = torch.randint(300, (4, 6), generator=torch.Generator().manual_seed(0))
PAIRS = Pairs(TOKENS[:-1], TOKENS[1:])
SITE, READ = "blocks.1.hook_resid_pre", "blocks.2.hook_resid_post"
ALPHAS = torch.linspace(0, 1, 9)
NOTHING = Part(None)
THREE = torch.tensor([[1.0, 0.0], [-0.5, 0.75**0.5], [-0.5, -(0.75**0.5)]]).double()
"""Directions of three equal cells."""


def bench(model=MODEL, read: str = READ, memory_mb: int = 64) -> Bench:
    return Bench(model, SITE, read, memory_mb=memory_mb)


def put(host: int, x: Tensor) -> tuple[Tensor, Tensor]:
    """The read activation and log-probabilities with `x` at the last position, by a full run."""

    def replaced(acts: Tensor) -> Tensor:
        return torch.cat([acts[:, :-1], x.view(1, 1, -1)], 1)

    run = MODEL.run(TOKENS[host : host + 1], edit={SITE: replaced}, capture=[READ])
    return run.acts[READ][0, -1], run.logits[0, -1].log_softmax(-1)


# --- against full runs ----------------------------------------------------------------------------


def test_responses_are_of_activations_put_into_the_first_prompts_context():
    ends = bench().last_activations(TOKENS)
    found = bench().along(PAIRS, {"line": Segment}, ALPHAS, NOTHING)["line"]
    for host in range(3):
        clean, log_p = put(host, ends[host])
        for i, alpha in enumerate(ALPHAS.tolist()):
            act, log_q = put(host, ends[host] + alpha * (ends[host + 1] - ends[host]))
            l2, kl = (act - clean).norm(), (log_p.exp() * (log_p - log_q)).sum()
            torch.testing.assert_close(found["l2"][host, i], l2, rtol=1e-3, atol=1e-4)
            torch.testing.assert_close(found["kl"][host, i], kl, rtol=1e-3, atol=1e-5)


def test_at_alpha_0_nothing_has_changed_at_all():
    found = bench().along(PAIRS, {"line": Segment}, ALPHAS, NOTHING)["line"]
    assert set(found) == {"l2", "kl", "gate_flips", "gate_crossings"}
    for name, values in found.items():
        assert (values[:, 0] == 0).all(), name


def test_memory_changes_nothing():
    """Groups of one prompt and pieces of a few points, switching neurons too."""
    whole = bench().along(PAIRS, {"line": Segment}, ALPHAS, NOTHING)["line"]
    small = bench(memory_mb=1).along(PAIRS, {"line": Segment}, ALPHAS, NOTHING)["line"]
    for name, values in small.items():
        torch.testing.assert_close(values, whole[name], rtol=1e-4, atol=1e-5)


def test_an_interrupted_run_goes_on_with_the_same_ways_in_their_order(tmp_path):
    ways = {"b": Segment, "a": Segment}
    first, again = (bench().along(PAIRS, ways, ALPHAS, Part(tmp_path)) for _ in range(2))
    assert list(first) == list(again) == ["b", "a"]
    for name, values in first["a"].items():
        assert torch.equal(again["a"][name], values)


def test_behind_the_last_mlp_no_neuron_can_switch():
    found = Bench(MODEL, READ, READ, memory_mb=64).along(PAIRS, {"line": Segment}, ALPHAS, NOTHING)[
        "line"
    ]
    assert set(found) == {"l2", "kl"}


# --- hand-made pairs ------------------------------------------------------------------------------


def test_with_one_start_the_end_of_the_path_is_the_second_prompts_own_output():
    """Prompts that differ in their last token alone have the same context."""
    a = TOKENS[:1]
    b = torch.cat([a[:, :-1], (a[:, -1:] + 7) % 300], 1)
    found = bench().endings(Pairs(a, b), ALPHAS)
    first, second = (MODEL.run(prompt, capture=[READ]) for prompt in (a, b))
    distance = (second.acts[READ] - first.acts[READ])[0, -1].norm()
    torch.testing.assert_close(found["l2"][0, -1], distance, rtol=1e-4, atol=1e-5)
    tops = [run.logits[0, -1].argmax() for run in (first, second)]
    assert tops[0] != tops[1]
    for i, run in ((0, first), (-1, second)):
        logits = run.logits[0, -1]
        expected = logits[tops[0]] - logits[tops[1]]
        torch.testing.assert_close(found["logit_difference"][0, i], expected)


def test_a_logit_difference_of_one_token_is_nothing():
    same = bench().endings(Pairs(TOKENS[:2], TOKENS[:2]), ALPHAS)
    assert (same["logit_difference"] == 0).all()


# --- planted regions ------------------------------------------------------------------------------


def planted(model, tokens: Tensor, alphas: Tensor) -> Tensor:
    """Relative distances from the first place to the second."""
    there = Bench(model, PLANTED_SITE, PLANTED_READ, memory_mb=64)
    pairs = Pairs(tokens[:1], tokens[1:2])
    return relative(there.along(pairs, {"line": Segment}, alphas, NOTHING)["line"]["l2"], 0.01)[0]


def test_linear_F_has_r_equal_to_alpha_and_slope_1():
    """METHODS 3(f). Read where it is written, the output is the activation itself."""
    there = Bench(MODEL, READ, READ, memory_mb=64)
    r, _ = relative(there.along(PAIRS, {"line": Segment}, ALPHAS, NOTHING)["line"]["l2"], 0.01)
    torch.testing.assert_close(r, ALPHAS.expand_as(r))
    slope, _ = max_slope(r, ALPHAS)
    torch.testing.assert_close(slope, torch.ones(3), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("k", [4.0, 30.0])
def test_a_sigmoid_F_has_slope_k_over_4_tanh(k):
    """METHODS 3(f): F = sigma(k (alpha - 1/2)), slope (k/4) / tanh(k/4). Two cells, whose softmax
    is a sigmoid; 1,000 points, two of which have the steepest place in their middle."""
    xy = torch.tensor([[0.5, 0.0], [-0.5, 0.0]])
    two = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    alphas = torch.linspace(0, 1, 1000)
    r = planted(*cells(xy, two, gain=k / 2), alphas)
    slope, where = max_slope(r.double(), alphas)
    assert slope.item() == pytest.approx((k / 4) / math.tanh(k / 4), rel=1e-3)
    assert where.item() == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize("n", [11, 50])
def test_a_hard_threshold_has_slope_S_minus_1_at_the_known_alpha(n):
    """METHODS 3(f); F8: the border of cells i and j is (C_i - C_j) x = 0, on a segment at
    alpha = (C_i - C_j) A / (C_i - C_j) (A - B)."""
    xy = torch.tensor([[0.9, 0.1], [-0.2, 0.8]]).double()
    alphas = torch.linspace(0, 1, n)
    slope, where = max_slope(planted(*cells(xy, THREE, gain=1e5), alphas).double(), alphas)
    across = THREE[0] - THREE[1]
    border = (across @ xy[0]) / (across @ (xy[0] - xy[1]))
    assert slope.item() == pytest.approx(n - 1, rel=1e-5)
    assert where.item() == pytest.approx(border.item(), abs=0.5 / (n - 1))


def test_F_through_layernorm_only_has_the_closed_form():
    """METHODS 3(f): LN maps to a sphere, so distances are chords: r = sin(t/2) / sin(t_1/2) with t
    the angle between A and X(alpha), their means removed."""
    end = "blocks.2.hook_resid_post"
    model = random_gpt2().double()
    there = Bench(model, end, "ln_final.hook_normalized", memory_mb=64)
    alphas = torch.linspace(0, 1, 21)
    found = there.along(PAIRS, {"line": Segment}, alphas, NOTHING)["line"]["l2"]
    a, b = (there.last_activations(prompts)[:, None] for prompts in (PAIRS.a, PAIRS.b))
    a, b = (x - x.mean(-1, keepdim=True) for x in (a, b))
    x = a + alphas[:, None].double() * (b - a)
    angle = torch.nn.functional.cosine_similarity(a, x, dim=-1).clamp(max=1).acos()
    chord = 2 * 32**0.5 * (angle / 2).sin()
    torch.testing.assert_close(found.double(), chord, rtol=1e-4, atol=1e-4)


# --- planes ---------------------------------------------------------------------------------------


def test_planted_voronoi_cells_have_straight_borders_at_computable_positions():
    """METHODS 3(f), F8: three cells, the argmax of three inner products at high gain."""
    a, b, c = xy = torch.tensor([[0.9, 0.1], [-0.2, 0.8], [-0.6, -0.5]]).double()
    model, tokens = cells(xy, THREE, gain=1e5)
    there = Bench(model, PLANTED_SITE, PLANTED_READ, memory_mb=64)
    found = there.slice(tokens, 41, NOTHING)
    t = ((b - a) @ (c - a) / (b - a).square().sum()).item()
    assert found.t == pytest.approx(t)
    sides = torch.linspace(-0.25, 1.25, 41).double()
    beta, alpha = torch.meshgrid(sides, sides, indexing="ij")
    across, up = b - a, c - a - t * (b - a)
    x = a + alpha[..., None] * across + beta[..., None] * up
    scores = x @ THREE.T
    first, second, _ = scores.sort(-1, descending=True).values.unbind(-1)
    inside = first - second > 1e-3
    assert inside.float().mean() > 0.98
    # Each of the three lies in the cell of its own number.
    for cell, distances in enumerate(found.distances):
        near = distances < distances.max() / 2
        assert torch.equal(near[inside], (scores.argmax(-1) == cell)[inside])
    # Each border by itself: in a row of the grid, A's cell ends where its line says.
    apart = THREE[0] - THREE[1]
    row = 10
    border = -(apart @ (a + sides[row] * up)) / (apart @ across)
    own = found.distances[0, row] < found.distances[0, row].max() / 2
    assert torch.equal(own, sides < border)


def test_a_plane_read_where_it_is_written_shows_the_activations_own_distances():
    found = Bench(MODEL, SITE, SITE, memory_mb=64).slice(TOKENS[:3], 7, NOTHING)
    a, b, c = bench().last_activations(TOKENS[:3])
    sides = torch.linspace(-0.25, 1.25, 7)
    across = b - a
    up = c - a - found.t * across
    x = a + sides[None, :, None] * across + sides[:, None, None] * up
    expected = torch.stack([(x - corner).norm(dim=-1) for corner in (a, b, c)])
    torch.testing.assert_close(found.distances, expected, rtol=1e-3, atol=1e-3)


# --- an associative memory ------------------------------------------------------------------------


def patterns_and_draws() -> tuple[Tensor, Tensor]:
    """F9: 20 stored patterns in 32 dimensions, and 20 Gaussian draws that nobody stored."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 20, 32, generator=generator, dtype=torch.float64).unbind()


def memory_plateaus(beta: float, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """How many of these steps toward a draw move the output by 0.5 at least, from every stored
    pattern and from every draw."""
    stored, drawn = patterns_and_draws()
    starts = torch.cat([stored, drawn])
    model, tokens = memory(stored, starts, beta=beta)

    def probes(hosts: Hosts) -> dict[str, Probe]:
        away = torch.zeros_like(hosts.base)
        away[:, 0, :32] = (drawn.roll(-1, 0).repeat(2, 1) - starts)[hosts.index]
        return {"ray": Probe(Ray(hosts.base, away, lengths), (L2(MEMORY_READ),))}

    place = Place(write=MEMORY_SITE, position=-1)
    found = respond(model, tokens, place, probes, memory_mb=64, kept=NOTHING)["ray"]["l2"]
    return plateau_length(found[..., 0], 0.5).double().split(20)


def test_a_planted_memory_recalls_by_its_formula():
    stored, drawn = patterns_and_draws()
    model, tokens = memory(stored, drawn, beta=0.3)
    found = model.run(tokens, capture=[MEMORY_READ]).acts[MEMORY_READ][:, -1, :32]
    torch.testing.assert_close(found, recalled(drawn, stored, beta=0.3))


@pytest.mark.parametrize("beta", [0.3, 1.0])
def test_stored_patterns_sit_on_longer_plateaus_than_gaussian_draws(beta):
    """METHODS F9."""
    stored, drawn = memory_plateaus(beta, 0.1 * torch.arange(101))
    assert stored.median() > 1.3 * drawn.median()
    assert stored.mean() > 1.3 * drawn.mean()


def test_a_memory_with_flat_softmax_has_no_plateaus():
    """METHODS F9: at beta = 0 all goes to the mean, x - mean shrinking to (1 - ETA)^6 = 1/64 of
    itself, so that after n steps of 0.7 the output has moved by 0.7 n / 64 wherever one begins."""
    stored, drawn = memory_plateaus(0.0, 0.7 * torch.arange(51))
    first = math.ceil(64 * 0.5 / 0.7)
    assert (stored == first).all()
    assert (drawn == first).all()


def test_borders_of_a_memory_lie_between_stored_patterns():
    """METHODS F9: from one stored pattern to another there is a steep rise, at beta = 0 a line."""
    stored, _ = patterns_and_draws()
    alphas = torch.linspace(0, 1, 50)
    slopes = {}
    for beta in (0.0, 1.0):
        model, tokens = memory(stored, stored, beta=beta)
        there = Bench(model, MEMORY_SITE, MEMORY_READ, memory_mb=64)
        pairs = Pairs(tokens[:-1], tokens[1:])
        r, _ = relative(there.along(pairs, {"line": Segment}, alphas, NOTHING)["line"]["l2"], 0.01)
        slopes[beta] = max_slope(r.double(), alphas)[0]
    torch.testing.assert_close(slopes[0.0], torch.ones(19).double(), rtol=1e-4, atol=1e-4)
    assert (slopes[1.0] > 3).all()
