"""Programs by hand (METHODS §11, F17): reverse, and the fraction of tokens so far that were x.

Reverse: behind a sequence of n tokens and n places to fill in, place i predicts token n - 1 - i.
The MLP of block 0 finds from the position which one that is, head 0 of block 1 goes and copies it.

Fraction: the MLP of block 0 finds whether a token is x, head 0 of block 1 takes the mean over all
positions so far; that is the logit of "x".

Heads of block 0 and the second head of block 1 write what nobody reads.
"""

from collections.abc import Iterable

import torch

from circuits.compiler import Compiled, Compiler, Weights

N_LETTERS, LENGTH = 3, 5
N_COUNTED = 4  # tokens of a prompt for `fraction`: quarters are exact
BLANK = N_LETTERS  # stands at the places to fill in
X, OTHER = 0, 1


def reverse(*, n_filled: int = 1, n_pairs: int = 6, seed: int = 0) -> Compiled:
    """Prompts end at the place that asks for token `LENGTH - n_filled` of the sequence."""
    letters, n_ctx = range(N_LETTERS), 2 * LENGTH
    compiler = Compiler(
        [
            *(f"{what} {i}" for what in ("at", "opposite") for i in range(n_ctx)),
            *(f"{what} {t}" for what in ("is", "out") for t in letters),
            "junk",
        ],
        n_layer=2,
        n_head=2,
        n_ctx=n_ctx,
        n_vocab=N_LETTERS + 1,
        d_head=n_ctx,
        n_neurons=LENGTH,
    )
    for t in letters:
        compiler.token(t, {f"is {t}": 1.0})
        compiler.logit(t, {f"out {t}": 1.0})
    for i in range(n_ctx):
        compiler.position(i, {f"at {i}": 1.0})
    opposites = [(LENGTH + i, LENGTH - 1 - i) for i in range(LENGTH)]
    for here, there in opposites:
        compiler.neuron(0, {f"at {here}": 1.0}, {f"opposite {there}": 1.0})
    compiler.head(
        1,
        0,
        matches=[({f"opposite {i}": 1.0}, {f"at {i}": 1.0}) for _, i in opposites],
        moves=[(f"is {t}", {f"out {t}": 1.0}) for t in letters],
    )
    here = [({f"at {i}": 1.0}, {f"at {i}": 1.0}) for i in range(n_ctx)]
    _add_idle_heads(compiler, matches=here)
    generator = torch.Generator().manual_seed(seed)
    clean = torch.randint(N_LETTERS, (n_pairs, LENGTH), generator=generator)
    shift = torch.randint(1, N_LETTERS, (n_pairs, LENGTH), generator=generator)
    corrupt = (clean + shift) % N_LETTERS  # another letter at every place
    blanks = torch.full((n_pairs, n_filled), BLANK)
    asked = LENGTH - n_filled
    return Compiled(
        model=compiler.model,
        clean=torch.cat([clean, blanks], 1),
        corrupt=torch.cat([corrupt, blanks], 1),
        answers=tuple(clean[:, asked].tolist()),
        wrong=tuple(corrupt[:, asked].tolist()),
        edges=frozenset(
            {
                ("embed", "m0"),
                ("m0", "a1.0.q"),
                ("embed", "a1.0.k"),
                ("embed", "a1.0.v"),
                ("a1.0", "logits"),
            }
        ),
    )


def fraction(*, n_pairs: int = 6, seed: int = 0) -> Compiled:
    """The logit of X is the share of X among the tokens of a prompt, that of the others 0."""
    compiler = Compiler(
        [*(f"is {t}" for t in range(N_LETTERS)), "is x", "share", "junk"],
        n_layer=2,
        n_head=2,
        n_ctx=N_COUNTED,
        n_vocab=N_LETTERS,
        d_head=1,
    )
    for t in range(N_LETTERS):
        compiler.token(t, {f"is {t}": 1.0})
    compiler.neuron(0, {f"is {X}": 1.0}, {"is x": 1.0})
    compiler.head(1, 0, moves=[("is x", {"share": 1.0})])
    _add_idle_heads(compiler)
    compiler.logit(X, {"share": 1.0})
    generator = torch.Generator().manual_seed(seed)
    clean = torch.randint(N_LETTERS, (n_pairs, N_COUNTED), generator=generator)
    clean[:, 1] = X
    corrupt = torch.where(clean == X, OTHER, clean)
    return Compiled(
        model=compiler.model,
        clean=clean,
        corrupt=corrupt,
        answers=(X,) * n_pairs,
        wrong=(OTHER,) * n_pairs,
        edges=frozenset({("embed", "m0"), ("m0", "a1.0.v"), ("a1.0", "logits")}),
    )


def _add_idle_heads(compiler: Compiler, matches: Iterable[tuple[Weights, Weights]] = ()) -> None:
    matches = list(matches)
    for layer, head in ((0, 0), (0, 1), (1, 1)):
        compiler.head(layer, head, matches=matches, moves=[("is 1", {"junk": 1.0})])
