"""Scores: 0 and 1 where they must be, ratios of means, intervals over pairs."""

import logging

import pytest
import torch
from circuits.gates import ONE, ZERO, gate
from torch import Tensor
from toy_pairs import pairs, pairs_of, random_model, random_pairs, scenes

from sae_kit.evals.patches.patch_scores import Scorer
from sae_kit.evals.patches.scenes import DIRECTIONS, Recorded, Runs, Stage
from sae_kit.evals.shared.resampling import Resamples
from sae_kit.models.hooks import Prefix


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def scorer(metric: str = "logit_difference") -> tuple[Scorer, Runs]:
    stage, runs, _ = scenes(random_model(double=True), random_pairs())
    return Scorer(stage, runs, metric=metric, seed=0), runs


@pytest.mark.parametrize("word", DIRECTIONS)
def test_unpatched_runs_are_at_0_and_1(word: str) -> None:
    """By every metric; by the chosen one also in every draw of pairs."""
    made, runs = scorer()
    direction = DIRECTIONS[word]()
    other = runs.clean if word == "denoising" else runs.broken
    measured = [made.measure(run.logits) for run in (direction.base(runs), other)]
    draws = made.scored(direction, measured).draws
    for found in (draws[0].T, draws[..., made.place]):
        assert (found[:, 0] == 0).all()
        torch.testing.assert_close(found[:, 1], torch.ones_like(found[:, 1]))
    assert draws.shape[1:] == (2, len(made.metrics))


def test_a_score_is_a_ratio_of_means() -> None:
    """§8(e): a pair whose own gap is close to zero does not decide it."""
    own = pairs(torch.zeros(3, 2).long(), torch.ones(3, 2).long(), [0] * 3, [1] * 3, 2)

    def run(differences: list[float]) -> Recorded:
        logits = torch.tensor([[d, 0.0] for d in differences], dtype=torch.float64)
        return Recorded(acts={}, prefix=Prefix({}), logits=logits)

    clean, broken = run([4.0, 3.0, 0.001]), run([0.0, 1.0, 0.0])
    runs = Runs(clean=clean, corrupt=broken, broken=broken)
    stage = Stage(random_model(), own)
    made = Scorer(stage, runs, metric="logit_difference", seed=3)
    patched = run([1.0, 2.0, 1.0])
    scored = made.scored(DIRECTIONS["denoising"](), [made.measure(patched.logits)])
    assert scored.raw[0, made.place] == pytest.approx(4 / 3)
    assert scored.score[0, made.place].item() == pytest.approx(3.0 / 6.001)
    # Draws are of pairs: numerator and denominator of the same ones.
    values = torch.tensor([[1.0, 2.0, 1.0], [4.0, 3.0, 0.001], [0.0, 1.0, 0.0]]).double()
    means = Resamples(3, seed=3).means(values.T[..., None], torch.ones(3, 1).bool())
    expected = (means[:, 0] - means[:, 2]) / (means[:, 1] - means[:, 2])
    torch.testing.assert_close(scored.draws[:, 0, made.place], expected)
    noised = made.scored(DIRECTIONS["noising"](), [made.measure(patched.logits)])
    torch.testing.assert_close(noised.draws, 1 - scored.draws)


def test_first_order_scores_are_on_the_same_scale() -> None:
    made, runs = scorer()
    before, after = (made.measure(run.logits)[made.place] for run in (runs.broken, runs.clean))
    for word, change in (("denoising", after - before), ("noising", before - after)):
        found = made.to_first_order(DIRECTIONS[word](), change[None])
        assert found.tolist() == pytest.approx([1.0])


def changed(clean: list[int], corrupt: list[int]) -> tuple[Stage, Runs]:
    made = gate("xor", (1, 0), (0, 0))
    own = pairs(torch.tensor([clean]), torch.tensor([corrupt]), [ONE], [ZERO], 3)
    stage, runs, _ = scenes(made.model, own)
    return stage, runs


def test_a_metric_that_the_corruption_leaves_alone_is_refused() -> None:
    """Both inputs of XOR changed: the answer is the same."""
    stage, runs = changed([1, 0, 2], [0, 1, 2])
    with pytest.raises(ValueError, match="logit_difference is 1 on the clean and 1 on the corr"):
        Scorer(stage, runs, metric="logit_difference", seed=0)


def test_other_metrics_that_do_not_vary_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    """A logit that rises without changing the order leaves ranks as they are."""
    own = pairs(torch.tensor([[0, 0]]), torch.tensor([[1, 1]]), [0], [1], 3)

    def run(logits: list[float]) -> Recorded:
        return Recorded(acts={}, prefix=Prefix({}), logits=torch.tensor([logits]))

    clean, broken = run([3.0, 1.0, 0.0]), run([2.0, 1.0, 0.0])
    runs = Runs(clean=clean, corrupt=broken, broken=broken)
    with caplog.at_level(logging.WARNING):
        made = Scorer(Stage(random_model(), own), runs, metric="logit_difference", seed=0)
    assert "rank is left out" in caplog.text
    assert "rank" not in made.metrics
    assert made.gap == pytest.approx(1.0)
    measured: Tensor = made.measure(clean.logits)
    assert measured.shape == (len(made.metrics), 1)


def test_the_gate_of_one_pair_has_intervals_of_no_width() -> None:
    made = gate("and", (1, 1), (0, 0))
    stage, runs, both = scenes(made.model, pairs_of(made))
    own = Scorer(stage, runs, metric="logit_difference", seed=0)
    scored = own.scored(both["noising"].direction, [own.measure(runs.broken.logits)])
    assert (scored.draws[:, 0, own.place] == 1.0).all()
