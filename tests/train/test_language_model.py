"""Training a language model: the loss by hand, who optimises what, exact resume, learning."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from counting import ARCHITECTURE, CONFIG, N_POS, VOCAB, Counting, fit, stream
from torch.testing import assert_close

from sae_kit import products
from sae_kit.models.gpt2 import GPT2
from sae_kit.train.language_model import LanguageModelConfig, LanguageModelTask


def make(config: LanguageModelConfig = CONFIG) -> LanguageModelTask:
    model = GPT2(ARCHITECTURE, generator=torch.Generator().manual_seed(config.seed))
    return LanguageModelTask(config, model, stream(), {"counting": stream(10**6)})


def test_the_loss_is_next_token_cross_entropy():
    task, tokens = make(), torch.stack([Counting()[i] for i in range(3)])
    logits = task.model.run(tokens).logits
    by_hand = [
        -F.log_softmax(logits[row, pos], -1)[tokens[row, pos + 1]]
        for row in range(3)
        for pos in range(N_POS - 1)
    ]
    assert_close(task.loss(tokens), torch.stack(by_hand).mean())
    assert float(task.loss(tokens).detach()) == pytest.approx(math.log(VOCAB), rel=0.05)


@pytest.mark.slow
def test_it_learns_to_count():
    task = make(replace(CONFIG, n_tokens=100 * 8 * N_POS))
    losses = [float(task.step(step, measure=False)["loss"]) for step in range(100)]
    assert losses[0] > 3
    assert losses[-1] < 0.5


def test_something_is_held_out():
    with pytest.raises(ValueError, match="heldout: empty"):
        LanguageModelTask(CONFIG, make().model, stream(), {})


def test_held_out_losses_come_on_schedule_and_at_the_end():
    task = make(replace(CONFIG, n_tokens=12 * 8 * N_POS))
    assert task.n_steps == 12
    reports = [task.step(step, measure=False) for step in range(12)]
    assert [i for i, report in enumerate(reports) if "heldout/counting" in report] == [4, 9, 11]
    contexts = torch.stack([Counting(10**6)[i] for i in range(10)])
    with torch.no_grad():
        expected = task.loss(contexts)
    assert reports[-1]["heldout/counting"] == pytest.approx(float(expected), rel=1e-5)


def test_stopped_and_resumed_is_never_stopped(tmp_path):
    whole = make()
    fit(whole, tmp_path / "whole")

    class Stop(Exception):
        pass

    cut = make()
    step = cut.step

    def breaking(number: int, *, measure: bool):
        if number == 8:
            raise Stop
        return step(number, measure=measure)

    cut.step = breaking
    with pytest.raises(Stop):
        fit(cut, tmp_path / "cut")
    resumed = make()
    assert fit(resumed, tmp_path / "cut", resume=True).n_done == 10
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], tensor), name
    lines = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("whole", "cut")]
    assert lines[0] == lines[1]


def parameters(task: LanguageModelTask, choose: Callable[[dict], bool]) -> set[str]:
    """Names of the parameters in the groups that `choose` picks."""
    names = {id(p): name for name, p in task.model.named_parameters()}
    groups = [group for optimizer in task.optimizers for group in optimizer.param_groups]
    return {names[id(p)] for group in groups if choose(group) for p in group["params"]}


@pytest.mark.parametrize("word", ["muon", "adamw"])
def test_every_parameter_has_one_optimiser_and_the_right_rate(word):
    config = replace(CONFIG, matrices=word, lr_matrix=0.5, lr_other=0.25, weight_decay=0.125)
    task = make(config)
    kinds = [type(optimizer).__name__ for optimizer in task.optimizers]
    assert kinds == (["Muon", "AdamW"] if word == "muon" else ["AdamW"])
    every = {name for name, _ in task.model.named_parameters()}
    matrices = {f"blocks.{i}.{m}" for i in (0, 1) for m in ("attn.W_qkv", "attn.W_O")}
    matrices |= {f"blocks.{i}.mlp.{m}" for i in (0, 1) for m in ("W_in", "W_out")}
    assert parameters(task, lambda group: group["peak_lr"] == 0.5) == matrices
    assert parameters(task, lambda group: group["peak_lr"] == 0.25) == every - matrices
    undecayed = parameters(task, lambda group: group["weight_decay"] == 0)
    assert undecayed == {name for name, p in task.model.named_parameters() if p.ndim == 1}
    assert sum(len(g["params"]) for o in task.optimizers for g in o.param_groups) == len(every)


def test_several_passes_of_a_step_are_one():
    whole, parts = make(), make(replace(CONFIG, contexts_per_pass=3))
    for step in range(2):
        losses = [task.step(step, measure=True)["loss"] for task in (whole, parts)]
        assert_close(*losses)
    for a, b in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_the_rate_follows_the_schedule():
    task = make()
    scales = []
    for step in range(10):
        scales.append(task.step(step, measure=False)["lr_scale"])
        rates = {g["lr"] / g["peak_lr"] for o in task.optimizers for g in o.param_groups}
        assert all(rate == pytest.approx(scales[-1]) for rate in rates)
    assert scales == pytest.approx([0.5, 1, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2])


def test_large_gradients_are_clipped():
    """The update is Adam's, whatever its size; what is seen is the gradient left behind."""
    task = make(replace(CONFIG, grad_clip=1e-3))
    for optimizer in task.optimizers:
        optimizer.zero_grad = lambda: None
    norm = task.step(0, measure=False)["grad_norm"]
    left = torch.stack([p.grad.norm() for p in task.model.parameters()]).norm()
    assert float(norm) > 0.1
    assert float(left) == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize("available", [True, False])
def test_half_precision_is_used_where_it_is_fast(monkeypatch, available):
    monkeypatch.setattr(products, "_has_bf16_instructions", lambda: available)
    task, exact = make(replace(CONFIG, bf16=True)), make()
    tokens = torch.stack([Counting()[i] for i in range(3)])
    assert (task.loss(tokens) == exact.loss(tokens)).item() is not available
    assert_close(task.loss(tokens), exact.loss(tokens), atol=0.02, rtol=0)
    assert task.loss(tokens).dtype == torch.float32


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"n_tokens": 0}, "n_tokens: 0"),
        ({"batch_contexts": 0}, "batch_contexts: 0"),
        ({"eval_every": 25, "log_every": 10}, "eval_every: 25 is no multiple of log_every=10"),
        ({"decay_fraction": -0.1}, "decay_fraction: -0.1"),
        ({"lr_matrix": 0.0}, "lr_matrix: 0"),
        ({"weight_decay": -1.0}, "weight_decay: -1"),
        ({"n_warmup_steps": -1}, "n_warmup_steps: -1"),
    ],
)
def test_impossible_settings_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        LanguageModelConfig(**{"n_tokens": 1000, **fields})
