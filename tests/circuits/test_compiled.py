"""The compiled models do what they were compiled for, to the last bit."""

import itertools

import pytest
import torch

from circuits.compiler import Compiled
from circuits.gates import GATES, ONE, ZERO, gate
from circuits.induction import induction
from circuits.linear import linear
from circuits.programs import LENGTH, N_COUNTED, OTHER, X, fraction, reverse


def last_logits(compiled: Compiled, tokens: torch.Tensor) -> torch.Tensor:
    logits = compiled.model.run(tokens).logits
    assert logits is not None
    return logits[:, -1]


TRUTH = {"and": all, "or": any, "xor": lambda bits: sum(bits) == 1}


@pytest.mark.parametrize(("kind", "n"), [*((kind, 2) for kind in GATES), ("and", 3), ("or", 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gates_are_exact(kind: str, n: int, dtype: torch.dtype) -> None:
    for bits in itertools.product((0, 1), repeat=n):
        made = gate(kind, bits, (0,) * n)
        made.model.to(dtype)
        logits = last_logits(made, made.clean)[0]
        assert logits[ONE] - logits[ZERO] == float(TRUTH[kind](bits))


def test_induction_copies_what_followed() -> None:
    made = induction()
    logits = last_logits(made, made.clean)
    assert logits.argmax(-1).tolist() == list(made.answers)
    assert torch.equal(logits.gather(1, torch.tensor(made.answers)[:, None]), torch.ones(8, 1))
    # Nothing to be copied: all positions are attended to alike.
    rest = last_logits(made, made.corrupt)
    assert rest.max() < 0.3
    assert (made.clean != made.corrupt).sum(1).tolist() == [1] * 8


@pytest.mark.parametrize("n_filled", range(1, LENGTH + 1))
def test_reverse_says_the_sequence_backwards(n_filled: int) -> None:
    made = reverse(n_filled=n_filled)
    asked = made.clean[:, LENGTH - n_filled]
    assert torch.equal(last_logits(made, made.clean).argmax(-1), asked)
    assert torch.equal(last_logits(made, made.corrupt).argmax(-1), torch.tensor(made.wrong))


@pytest.mark.slow
def test_fraction_is_the_share_of_x() -> None:
    made = fraction()
    logits = made.model.run(made.clean).logits
    assert logits is not None
    share = (made.clean == X).cumsum(1) / torch.arange(1, N_COUNTED + 1)
    torch.testing.assert_close(logits[..., X], share)
    assert torch.equal(logits[..., OTHER], torch.zeros_like(share))
    assert not (made.corrupt == X).any()


def test_the_linear_net_is_linear() -> None:
    made = linear()
    embedded = torch.randn(
        3, 4, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )

    def out(x: torch.Tensor) -> torch.Tensor:
        logits = made.model.run(start=("blocks.0.hook_resid_pre", x)).logits
        assert logits is not None
        return logits - offset

    offset = torch.zeros(())
    offset = out(torch.zeros_like(embedded))
    a, b = embedded, embedded.flip(0)
    torch.testing.assert_close(out(2 * a - 3 * b), 2 * out(a) - 3 * out(b))
    assert out(a).abs().min() > 0


@pytest.mark.parametrize("make", [induction, reverse, fraction])
def test_heads_outside_the_circuit_change_nothing(make) -> None:
    made = make()
    senders = {sender for sender, _ in made.edges}
    clean = last_logits(made, made.clean)
    for layer, head in itertools.product(range(2), range(2)):
        site, at = f"blocks.{layer}.attn.hook_z", torch.tensor([head])
        edit = {site: lambda z, at=at: z.index_fill(2, at, 0.0)}
        zero = made.model.run(made.clean, edit=edit).logits
        assert zero is not None
        same = torch.equal(zero[:, -1], clean)
        assert same == (f"a{layer}.{head}" not in senders)
