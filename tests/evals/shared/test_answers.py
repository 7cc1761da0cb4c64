"""The metrics by hand, what they share, and pairs that cannot be measured."""

import math

import pytest
import torch
from torch import Tensor

from sae_kit.data.pairs import Column, Pairs
from sae_kit.evals.shared.answers import METRICS, Answers, check_metric, check_varies

P = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.7, 0.1, 0.1, 0.1]], dtype=torch.float64)
LOGITS = P.log() + torch.tensor([[5.0], [-3.0]])  # a constant of each row is no news


def pairs(answers: list[list[int]], wrong: list[list[int]], n_vocab: int = 4) -> Pairs:
    def mask(ids: list[list[int]]) -> Tensor:
        rows = torch.zeros(len(ids), n_vocab, dtype=torch.bool)
        for row, own in zip(rows, ids, strict=True):
            row[own] = True
        return rows

    tokens = torch.zeros(len(answers), 1, dtype=torch.long)
    column = Column("end", torch.zeros(len(answers), dtype=torch.long))
    return Pairs(
        clean=tokens, corrupt=tokens, answers=mask(answers), wrong=mask(wrong), columns=(column,)
    )


def measure(answers: list[list[int]], wrong: list[list[int]]) -> dict[str, list[float]]:
    values = Answers(pairs(answers, wrong), LOGITS).read(LOGITS).metrics()
    return dict(zip(METRICS, values.tolist(), strict=True))


def test_single_answers_by_hand() -> None:
    found = measure([[2], [1]], [[3], [0]])
    assert found["logit_difference"] == pytest.approx([math.log(3 / 4), math.log(1 / 7)])
    assert found["log_prob"] == pytest.approx([math.log(0.3), math.log(0.1)])
    assert found["prob"] == pytest.approx([0.3, 0.1])
    assert found["prob_difference"] == pytest.approx([-0.1, -0.6])
    assert found["rank"] == [1, 1]
    assert found["kl"] == [0, 0]


def test_several_answers_count_by_their_sum() -> None:
    found = measure([[0, 3], [0]], [[1, 2], [1, 2, 3]])
    assert found["prob"] == pytest.approx([0.5, 0.7])
    assert found["prob_difference"] == pytest.approx([0.0, 0.4])
    assert found["logit_difference"] == pytest.approx([0.0, math.log(7 / 3)], abs=1e-12)
    assert found["rank"] == [0, 0]


def test_a_single_answers_logit_difference_is_exact() -> None:
    logits = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
    reading = Answers(pairs([[2], [1]], [[3], [0]]), logits).read(logits)
    expected = torch.stack([logits[0, 2] - logits[0, 3], logits[1, 1] - logits[1, 0]])
    assert torch.equal(reading.metric("logit_difference"), expected)


def test_kl_is_from_the_clean_predictions() -> None:
    other = LOGITS.flip(1)
    kl = Answers(pairs([[2], [1]], [[3], [0]]), LOGITS).read(other).metric("kl")
    torch.testing.assert_close(kl, (P * (P / P.flip(1)).log()).sum(1))


@pytest.mark.parametrize("name", [name for name, m in METRICS.items() if m.has_gradient])
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    answers = Answers(pairs([[0, 3], [0]], [[1, 2], [1]]), LOGITS)
    start = LOGITS.roll(1, 1).clone().requires_grad_()
    torch.autograd.gradcheck(lambda x: answers.read(x).metric(name), start)


def test_names_are_checked() -> None:
    check_metric("kl")
    with pytest.raises(ValueError, match="'logit_diff' is unknown; give logit_difference"):
        check_metric("logit_diff")
    with pytest.raises(ValueError, match="rank has no gradient"):
        check_metric("rank")


def test_a_metric_that_does_not_vary_is_refused() -> None:
    a = torch.tensor([1.0, 3.0])
    check_varies("kl", a, a + 1e-3)
    with pytest.raises(ValueError, match="kl is 2 on the clean and 2 on the corrupted"):
        check_varies("kl", a, a.flip(0))
