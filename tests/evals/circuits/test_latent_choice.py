"""Latents are chosen by what they are worth, where that is known by construction."""

import pytest
import torch
from circuits.benches import bench_of, feature_sae, pairs_of
from circuits.compiler import Compiled
from circuits.gates import gate
from circuits.linear import linear
from toy_subject import identity_sae

from sae_kit.evals.circuits.circuit import Graph
from sae_kit.evals.circuits.circuit_bench import CircuitBench
from sae_kit.evals.circuits.latent_choice import attributions, choose, saes_at
from sae_kit.evals.shared.ablations import ABLATIONS
from sae_kit.sae.base import SAE
from sae_kit.sae.relu import ReLUConfig

MID, LATE = "blocks.0.hook_resid_mid", "blocks.1.hook_resid_pre"
SUM = 4
"""The number of the feature "sum" in a gate of two inputs."""


def chosen(made: Compiled, saes: dict[str, SAE], n: int, ablation: str = "corrupt") -> list:
    how = ABLATIONS[ablation](len(made.clean), seed=0)
    bench = bench_of(made, ablation=ablation, metric="logit_difference")
    return choose(bench, saes, how, n=n, n_steps=8)


@pytest.mark.parametrize("ablation", ["corrupt", "zero"])
def test_the_latent_that_a_gate_reads_is_chosen(ablation: str) -> None:
    """The SAE has a latent for each feature; on the sum, 2 or 0, hangs the AND, 1 or 0."""
    made = gate("and", (1, 1), (0, 0))
    (one,) = chosen(made, {MID: feature_sae(made)}, 3, ablation)
    assert len(one.latents) == 3
    assert SUM in one.latents.tolist()
    sizes = dict(zip(one.latents.tolist(), one.sizes.tolist(), strict=True))
    assert sizes.pop(SUM) == pytest.approx(1.0)
    assert set(sizes.values()) == {0.0}
    assert one.rows()[one.latents.tolist().index(SUM)] == {
        "kind": "latent",
        "site": MID,
        "latent": SUM,
        "attribution": pytest.approx(1.0),
    }


def test_the_order_of_an_saes_latents_does_not_matter() -> None:
    made = gate("and", (1, 1), (0, 0))
    sae, turned = feature_sae(made), feature_sae(made)
    weights = sae.weights()
    columns = {"W_enc": weights["W_enc"].flip(1), "W_dec": weights["W_dec"].flip(0)}
    turned.load_weights({**weights, **columns})
    ((one,), (other,)) = (chosen(made, {MID: each}, 1) for each in (sae, turned))
    assert one.latents.tolist() == [SUM]
    assert other.latents.tolist() == [sae.d_sae - 1 - SUM]
    assert one.sizes.tolist() == other.sizes.tolist()


@pytest.mark.parametrize("metric", ["logit_difference", "log_prob", "kl"])
def test_attributions_add_up_to_what_there_is_to_lose(metric: str) -> None:
    """Of all latents of an SAE without error: along the line, the cost changes by no more."""
    made = linear()
    pairs, how = pairs_of(made), ABLATIONS["corrupt"](len(made.clean), seed=0)
    bench = CircuitBench.of(Graph(made.model), pairs, how, metric=metric)
    sae = identity_sae(made.model.config.d_model).double()
    _, found = attributions(bench, LATE, sae, how, 1 if metric == "logit_difference" else 64)
    clean, corrupt = (made.model.run(t).logits[:, -1] for t in (made.clean, made.corrupt))
    expected = bench.costs(corrupt) - bench.costs(clean)
    assert expected.abs().min() > 1e-3
    # Exact where the metric is linear; otherwise a sum over 64 points of the line.
    atol = 1e-10 if metric == "logit_difference" else 1e-3
    torch.testing.assert_close(found.sum(0), expected, atol=atol, rtol=0)


def test_there_are_no_more_than_are_active() -> None:
    made = gate("and", (1, 1), (0, 0))
    d = made.model.config.d_model
    sae = ReLUConfig(d_sae=5).build(d, generator=torch.Generator().manual_seed(0))
    sae.load_weights(
        {
            "W_enc": torch.zeros(d, 5),
            "b_enc": torch.tensor([-1.0, 1.0, -1.0, -1.0, 1.0]),
            "W_dec": torch.eye(5, d),
            "b_dec": torch.zeros(d),
        }
    )
    (one,) = chosen(made, {MID: sae}, 4)
    assert one.latents.tolist() == [1, 4]
    assert one.sizes.tolist() == [0.0, 0.0]  # alike in both prompts


def test_a_site_without_an_sae_or_a_place_is_refused() -> None:
    model = linear().model
    saes = {LATE: identity_sae(model.config.d_model)}
    assert saes_at((LATE,), saes, model) == saes
    with pytest.raises(
        ValueError, match=r"no SAE reads '.*2.hook_resid_pre': those given read .*1"
    ):
        saes_at(("blocks.2.hook_resid_pre",), saes, model)
    with pytest.raises(ValueError, match=r"no SAE reads .*: none are given; give run or saes"):
        saes_at((LATE,), {}, model)
    with pytest.raises(ValueError, match=r"latent_sites: .*hook_z' is no place of the graph"):
        saes_at(("blocks.0.attn.hook_z",), saes, model)
