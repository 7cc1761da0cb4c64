"""Hard concrete gates: their distribution, and what is learnt of circuits that are known."""

import pytest
import torch
from circuits.benches import bench_of
from circuits.gates import gate
from circuits.programs import fraction

from sae_kit.evals.circuits.circuit import Circuit
from sae_kit.evals.circuits.probing import OPEN, Probe, gates, p_open


def test_gates_are_open_as_often_as_the_formula_says() -> None:
    noise = torch.rand(200_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for parameter in (-2.0, 0.0, 1.5):
        parameters = torch.full_like(noise, parameter)
        drawn = gates(parameters, noise)
        share = (drawn > 0).double().mean().item()
        assert share == pytest.approx(p_open(parameters)[0].item(), abs=0.005)
        assert drawn.min() >= 0
        assert drawn.max() <= 1


def test_gates_are_exactly_0_or_1_for_much_of_the_noise() -> None:
    noise = torch.linspace(0, 1, 1001)[:-1]
    drawn = gates(torch.zeros(1000), noise)
    assert (drawn == 0).sum() > 100
    assert (drawn == 1).sum() > 100
    assert (drawn.diff() >= 0).all()


def test_no_noise_is_too_extreme_for_a_gradient() -> None:
    parameters = torch.zeros(2, requires_grad=True)
    gates(parameters, torch.tensor([0.0, 1.0])).sum().backward()
    assert parameters.grad.isfinite().all()


def test_gates_start_open() -> None:
    bench = bench_of(fraction())
    parameters = Probe(penalty=0.0, n_steps=1, learning_rate=0.0).learn(bench)
    half = torch.full_like(parameters, 0.5)
    started = gates(parameters, half)[bench.graph.allowed]
    assert started.tolist() == pytest.approx([OPEN] * len(started), abs=1e-6)
    assert (parameters[~bench.graph.allowed] == -torch.inf).all()


def test_a_high_penalty_closes_all() -> None:
    bench = bench_of(gate("and", (1, 1), (0, 0)), metric="logit_difference")
    closed = Probe(penalty=100.0, n_steps=12, learning_rate=0.5)
    assert closed.circuit(bench, closed.learn(bench)).n_edges == 0


def test_what_is_known_to_matter_is_found() -> None:
    made = fraction()
    bench = bench_of(made, metric="logit_difference")
    probe = Probe(penalty=1e-3, n_steps=60, learning_rate=0.2)
    circuit = probe.circuit(bench, probe.learn(bench))
    known = Circuit.of(bench.graph, bench.graph.find(made.edges))
    assert bool((known.edges <= circuit.edges).all())
    assert circuit.n_edges < bench.graph.n_edges / 2


def test_the_same_seed_learns_the_same() -> None:
    bench = bench_of(fraction())
    first, again, other = (
        Probe(penalty=0.01, n_steps=3, seed=seed).learn(bench) for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert all(p.grad is None for p in bench.graph.model.parameters())
