"""Compiled models as graphs with pairs, ready for circuits to be found in."""

import torch

from circuits.compiler import Compiled
from sae_kit.data.pairs import Pairs
from sae_kit.evals.circuits.circuit import Graph
from sae_kit.evals.circuits.circuit_bench import CircuitBench
from sae_kit.evals.shared.ablations import ABLATIONS
from sae_kit.models.gpt2 import GPT2


def pairs_of(made: Compiled) -> Pairs:
    """The prompts it was made for."""
    size = len(made.clean), made.model.config.n_vocab
    answers, wrong = (torch.zeros(size, dtype=torch.bool) for _ in range(2))
    answers[range(size[0]), list(made.answers)] = True
    wrong[range(size[0]), list(made.wrong)] = True
    return Pairs(clean=made.clean, corrupt=made.corrupt, answers=answers, wrong=wrong, columns=())


def bench_of(made: Compiled, *, ablation: str = "zero", metric: str = "kl") -> CircuitBench:
    """A graph of it."""
    pairs = pairs_of(made)
    how = ABLATIONS[ablation](len(pairs), seed=0)
    return CircuitBench.of(Graph(made.model), pairs, how, metric=metric)


def random_pairs(n: int, n_pos: int, n_vocab: int, *, seed: int = 0) -> Pairs:
    """Prompts that have nothing in common; the answer is token 3, not 4."""
    generator = torch.Generator().manual_seed(seed)
    clean, corrupt = torch.randint(n_vocab, (2, n, n_pos), generator=generator)
    answers, wrong = (torch.zeros(n, n_vocab, dtype=torch.bool) for _ in range(2))
    answers[:, 3], wrong[:, 4] = True, True
    return Pairs(clean=clean, corrupt=corrupt, answers=answers, wrong=wrong, columns=())


def random_bench(
    model: GPT2, *, ablation: str = "corrupt", metric: str = "kl", n: int = 4, n_pos: int = 5
) -> CircuitBench:
    """Random prompts for a random model."""
    pairs = random_pairs(n, n_pos, model.config.n_vocab)
    how = ABLATIONS[ablation](len(pairs), seed=0)
    return CircuitBench.of(Graph(model), pairs, how, metric=metric)
