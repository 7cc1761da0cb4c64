"""Induction by hand (METHODS §11, F18): a previous-token head, and a head that reads what it found.

Prompts are BOS, random tokens, and the first of these again: the answer is the second. Head 0 of
block 0 writes to every position which token was before it. Head 0 of block 1 attends from a token
to where the token before was the same, and copies the token there. Heads 1 of both blocks write
what nobody reads.
"""

import torch

from circuits.compiler import Compiled, Compiler

N_TOKENS, LENGTH = 7, 5
BOS = 0


def induction(*, n_pairs: int = 8, seed: int = 0) -> Compiled:
    """Tokens of a prompt differ from one another, and between clean and corrupt at one place: what
    stands before the answer.
    """
    tokens, places = range(1, N_TOKENS + 1), range(LENGTH + 2)
    compiler = Compiler(
        [
            *(f"at {i}" for i in places),
            *(f"{what} {t}" for what in ("is", "after", "next") for t in tokens),
            "junk",
        ],
        n_layer=2,
        n_head=2,
        n_ctx=len(places),
        n_vocab=N_TOKENS + 1,
        d_head=len(places),
    )
    for t in tokens:
        compiler.token(t, {f"is {t}": 1.0})
        compiler.logit(t, {f"next {t}": 1.0})
    for i in places:
        compiler.position(i, {f"at {i}": 1.0})
    compiler.head(
        0,
        0,
        matches=[({f"at {i}": 1.0}, {f"at {i - 1}": 1.0}) for i in places[1:]],
        moves=[(f"is {t}", {f"after {t}": 1.0}) for t in tokens],
    )
    compiler.head(
        1,
        0,
        matches=[({f"is {t}": 1.0}, {f"after {t}": 1.0}) for t in tokens],
        moves=[(f"is {t}", {f"next {t}": 1.0}) for t in tokens],
    )
    here = [({f"at {i}": 1.0}, {f"at {i}": 1.0}) for i in places]
    for layer in (0, 1):
        compiler.head(layer, 1, matches=here, moves=[("is 1", {"junk": 1.0})])
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.stack([torch.randperm(N_TOKENS, generator=generator) for _ in range(n_pairs)]) + 1
    clean = torch.cat([torch.full((n_pairs, 1), BOS), drawn[:, :LENGTH], drawn[:, :1]], 1)
    corrupt = clean.clone()
    corrupt[:, 1] = drawn[:, LENGTH]  # the last token was nowhere before
    return Compiled(
        model=compiler.model,
        clean=clean,
        corrupt=corrupt,
        answers=tuple(clean[:, 2].tolist()),
        wrong=tuple(clean[:, 3].tolist()),
        edges=frozenset(
            {
                *(("embed", f"a0.0.{part}") for part in "qkv"),
                ("embed", "a1.0.q"),
                ("embed", "a1.0.v"),
                ("a0.0", "a1.0.k"),
                ("a1.0", "logits"),
            }
        ),
    )
