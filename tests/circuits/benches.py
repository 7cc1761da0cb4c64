"""Compiled models as graphs with pairs, ready for circuits to be found in."""

import torch

from circuits.compiler import Compiled
from sae_kit.data.pairs import Pairs
from sae_kit.evals.circuits.circuit import Graph
from sae_kit.evals.circuits.circuit_bench import CircuitBench
from sae_kit.evals.shared.ablations import ABLATIONS
from sae_kit.models.gpt2 import GPT2
from sae_kit.sae.relu import ReLUConfig, ReLUSAE


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


def feature_sae(made: Compiled) -> ReLUSAE:
    """Latent i is feature i of the compiler: it reads the first of its channels, writes both."""
    d = made.model.config.d_model
    sae = ReLUConfig(d_sae=d // 2).build(d, generator=torch.Generator().manual_seed(0))
    first, second = torch.eye(d).chunk(2)
    zeros = {"b_enc": torch.zeros(d // 2), "b_dec": torch.zeros(d)}
    sae.load_weights({"W_enc": first.T, "W_dec": first - second, **zeros})
    return sae


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
