"""Gates of what heads find (METHODS §11, F16): AND, OR, XOR.

The prompt is one bit for each head, then "end". At the end, head i copies bit i; the MLP computes
the gate of their sum, and the logit of "1" less that of "0" is its output, 0 or 1.

    AND = relu(S - (n - 1))     OR = 1 - relu(1 - S)     XOR = S - 2 relu(S - 1), of two inputs
"""

import torch

from circuits.compiler import Compiled, Compiler, Edge

ZERO, ONE, END = 0, 1, 2
GATES = ("and", "or", "xor")


def gate(kind: str, clean: tuple[int, ...], corrupt: tuple[int, ...]) -> Compiled:
    """The gate of len(clean) inputs, with one pair of prompts."""
    n = len(clean)
    places = [f"at {i}" for i in range(n + 1)]
    compiler = Compiler(
        [*places, "bit", "sum", "out"],
        n_layer=1,
        n_head=n,
        n_ctx=n + 1,
        n_vocab=3,
        d_head=1,
    )
    compiler.token(ONE, {"bit": 1.0})
    for i, place in enumerate(places):
        compiler.position(i, {place: 1.0})
    for i, place in enumerate(places[:n]):
        at_end = ({places[n]: 1.0}, {place: 1.0})
        compiler.head(0, i, matches=[at_end], moves=[("bit", {"sum": 1.0})])
    match kind:
        case "and":
            compiler.neuron(0, {"sum": 1.0}, {"out": 1.0}, bias=1.0 - n)
        case "or":
            compiler.neuron(0, {"sum": -1.0}, {"out": -1.0}, bias=1.0)
            compiler.constant(0, {"out": 1.0})
        case "xor":
            assert n == 2
            compiler.neuron(0, {"sum": 1.0}, {"out": -2.0}, bias=-1.0)
    # XOR's sum reaches the output past the MLP.
    read = {"out": 1.0, "sum": 1.0} if kind == "xor" else {"out": 1.0}
    compiler.logit(ONE, read)
    heads = [f"a0.{i}" for i in range(n)]
    edges: set[Edge] = {("m0", "logits")}
    for head in heads:
        edges |= {("embed", f"{head}.{part}") for part in "qkv"} | {(head, "m0")}
        edges |= {(head, "logits")} if kind == "xor" else set()
    return Compiled(
        model=compiler.model,
        clean=torch.tensor([[*clean, END]]),
        corrupt=torch.tensor([[*corrupt, END]]),
        answers=(ONE,),
        wrong=(ZERO,),
        edges=frozenset(edges),
    )
