"""Activations that are computed in all processes and used in one."""

import pytest
import torch
from ranks import in_ranks
from torch import Tensor

from sae_kit.data.activations import ActivationSource, Batch
from sae_kit.data.spread import SpreadSource
from sae_kit.dist import World

WIDTHS = {"a": 3, "b": 5, "c": 2}
NEEDED = [["a", "c"], ["b", "c"]]  # c is read by one and written by another


def rows(site: str, index: int, rank: int) -> Tensor:
    seed = torch.Generator().manual_seed(100 * index + 10 * rank + len(site) + ord(site))
    return torch.randn(4, WIDTHS[site], generator=seed)


class Part(ActivationSource):
    drop_first_position, drop_special_tokens = True, False

    def __init__(self, rank: int) -> None:
        self.rank, self.position = rank, 0
        self.widths, self.scales = dict(WIDTHS), {}

    def prepare(self) -> None:
        self.scales = dict.fromkeys(WIDTHS, 2.0)

    def sample(self, site: str, n_rows: int) -> Tensor:
        return rows(site, 99, self.rank)[:n_rows]

    def __next__(self) -> Batch:
        self.position += 1
        return Batch({s: rows(s, self.position, self.rank) for s in WIDTHS}, 3 + self.rank)

    def state_dict(self):
        return {"position": self.position}

    def load_state_dict(self, state) -> None:
        self.position = state["position"]


def read(here: World):
    source = SpreadSource(Part(here.rank), NEEDED, here)
    source.prepare()
    next(source)
    again = SpreadSource(Part(here.rank), NEEDED, here)
    again.load_state_dict(source.state_dict())
    one, same = next(source), next(again)
    for site, acts in one.acts.items():
        assert torch.equal(acts, same.acts[site])
    third = SpreadSource(Part(here.rank), NEEDED, here)
    third.continue_from([source.state_dict()] * 3)
    assert third.state_dict() == {"position": 2}
    return dict(one.acts), one.n_contexts, source.widths, source.scales, source.sample("c", 2)


@pytest.mark.slow
def test_the_owner_gets_every_process_s_rows():
    for rank, (acts, n_contexts, widths, scales, sample) in enumerate(in_ranks(read)):
        assert list(acts) == NEEDED[rank]
        for site, found in acts.items():
            assert torch.equal(found, torch.cat([rows(site, 2, 0), rows(site, 2, 1)]))
        assert n_contexts == 7
        assert widths == {site: WIDTHS[site] for site in NEEDED[rank]}
        assert scales == dict.fromkeys(WIDTHS, 2.0)
        assert torch.equal(sample, rows("c", 99, rank)[:2])
