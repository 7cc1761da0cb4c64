"""The engine against full runs with edits; groups, pieces, memory, interruption, bad places."""

from collections.abc import Callable
from pathlib import Path as FilePath

import pytest
import torch
from conftest import random_gpt2

from sae_kit.evals.perturb.hosts import Hosts, OnePosition, Place, WholeContext
from sae_kit.evals.perturb.paths import Fixed, Ray
from sae_kit.evals.perturb.perturbation import Plan, Probe, respond
from sae_kit.evals.perturb.responses import KL, L2, CEIncrease
from sae_kit.evals.shared.kept import Part
from sae_kit.models.gpt2 import GPT2, GPT2Config

N_HOSTS, N_POS = 5, 9
MODEL = random_gpt2(GPT2Config(n_layer=3, n_head=4, d_model=32, d_mlp=80, n_ctx=16, n_vocab=300))
TOKENS = torch.randint(300, (N_HOSTS, N_POS), generator=torch.Generator().manual_seed(1))
READ = "blocks.2.hook_resid_post"
LENGTHS = torch.tensor([0.0, 0.5, 2.0])
NOTHING = Part(None)
STREAM = [site for site in MODEL.sites() if ".hook_resid_" in site]


def directions(n_pos: int) -> torch.Tensor:
    """One for every host and position."""
    return torch.randn(N_HOSTS, n_pos, 32, generator=torch.Generator().manual_seed(2))


def rays(hosts: Hosts) -> dict[str, Probe]:
    """What most tests ask for."""
    ray = Ray(hosts.base, directions(hosts.base.shape[1])[hosts.index], LENGTHS)
    return {"ray": Probe(ray, (L2(READ), KL(), CEIncrease(hosts.targets())))}


def run(place: Place, probes: Callable = rays, *, model: GPT2 = MODEL, **settings):
    settings = {"memory_mb": 64, "kept": NOTHING, **settings}
    return respond(model, TOKENS, place, probes, **settings)


def by_editing(place: Place, host: int, length: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The read activation and the log-probabilities of a full run with the site edited."""
    where = slice(None) if place.position is None else [place.position]
    direction = directions(N_POS if place.position is None else 1)[host]
    step = length * direction / direction.norm(dim=-1, keepdim=True)

    def add(x: torch.Tensor) -> torch.Tensor:
        x = x.clone()
        x[0, where] += step
        return x

    run = MODEL.run(TOKENS[host : host + 1], edit={place.write: add}, capture=[READ])
    return run.acts[READ][0, where], run.logits[0, where].log_softmax(-1)


@pytest.mark.parametrize("position", [None, -1, 4, 0])
@pytest.mark.parametrize("write", STREAM)
def test_responses_are_those_of_full_runs_with_the_site_edited(write, position):
    place = Place(write=write, position=position)
    curves = run(place)["ray"]
    for host in (0, 3):
        clean_act, clean = by_editing(place, host, 0.0)
        for i, length in enumerate(LENGTHS.tolist()):
            act, log_q = by_editing(place, host, length)
            kl = (clean.exp() * (clean - log_q)).sum(-1)
            l2 = (act - clean_act).norm(dim=-1)
            torch.testing.assert_close(curves["kl"][host, i], kl, rtol=1e-4, atol=2e-6)
            torch.testing.assert_close(curves["l2"][host, i], l2, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("position", [None, -1, 4])
def test_a_length_of_zero_does_exactly_nothing(position):
    curves = run(Place(write="blocks.1.hook_resid_pre", position=position))["ray"]
    for response, values in curves.items():
        assert (values[:, 0] == 0).all(), response
        assert (values[:, 1:] != 0).any(), response


def test_ce_increases_are_of_the_tokens_that_come_next():
    place = Place(write="blocks.1.hook_resid_pre", position=3)
    increase = run(place)["ray"]["delta_ce"][2, 1, 0]
    target = TOKENS[2, 4]
    (_, clean), (_, perturbed) = (by_editing(place, 2, length) for length in (0.0, 0.5))
    torch.testing.assert_close(increase, clean[0, target] - perturbed[0, target])


@pytest.mark.parametrize("position", [None, -1])
def test_memory_cuts_the_work_up_without_changing_it(position, monkeypatch):
    place = Place(write="blocks.1.hook_resid_mid", position=position)
    whole = run(place)
    cut = Plan(place=place, n_pos=N_POS, n_hosts=2, n_rows=1, flop_per_row=1.0, flop_per_pass=1.0)
    monkeypatch.setattr(Plan, "of", lambda *_: cut)
    for response, values in run(place)["ray"].items():
        torch.testing.assert_close(values, whole["ray"][response], rtol=1e-4, atol=1e-5)


def test_a_plan_keeps_within_its_memory():
    place = Place(write="blocks.6.hook_resid_pre", position=-1)
    small = GPT2(GPT2Config(n_layer=8, n_vocab=5000))
    plans = [Plan.of(small, place, 128, memory) for memory in (256, 512, 1024)]
    assert [plan.n_hosts for plan in plans] == sorted(plan.n_hosts for plan in plans)
    assert plans[2].n_rows == pytest.approx(2 * plans[1].n_rows, abs=2)
    for plan in plans:
        assert plan.n_points(plan.n_hosts) >= 16
        # logits alone, of a group's points
        assert plan.n_rows * 5000 * 4 < 1024 << 19


def test_probes_have_responses_of_their_own():
    def probes(hosts: Hosts) -> dict[str, Probe]:
        far = Fixed(hosts.base[:, None] + torch.arange(4.0)[:, None, None])
        return {"a/b": Probe(far, (L2(READ),)), **rays(hosts)}

    curves = run(Place(write="blocks.0.hook_resid_pre", position=-1), probes)
    assert {name: set(found) for name, found in curves.items()} == {
        "a/b": {"l2"},
        "ray": {"l2", "kl", "delta_ce"},
    }
    assert curves["a/b"]["l2"].shape == (N_HOSTS, 4, 1)


@pytest.mark.parametrize("position", [None, -1])
def test_outcomes_can_be_compared_with_that_of_another_activation(position):
    place = Place(write="blocks.1.hook_resid_pre", position=position)
    elsewhere = torch.randn(N_HOSTS, 1, 32, generator=torch.Generator().manual_seed(4))

    def probes(hosts: Hosts) -> dict[str, Probe]:
        origin = hosts.base + elsewhere[hosts.index]
        path = Fixed(torch.stack([origin, hosts.base], 1))
        both = Fixed(torch.stack([hosts.base, origin], 1))
        return {
            "from there": Probe(path, (L2(READ), KL()), origin),
            "from here": Probe(both, (L2(READ), KL())),
        }

    curves = run(place, probes)
    for name in ("from there", "from here"):
        assert all((values[:, 0] == 0).all() for values in curves[name].values())
    there, here = (curves[name]["l2"][:, 1] for name in ("from there", "from here"))
    torch.testing.assert_close(there, here)
    assert (curves["from there"]["kl"][:, 1] - curves["from here"]["kl"][:, 1]).abs().max() > 1e-3


def test_finished_groups_are_not_run_again(tmp_path: FilePath, monkeypatch):
    place = Place(write="blocks.1.hook_resid_pre", position=-1)
    cut = Plan(place=place, n_pos=1, n_hosts=2, n_rows=6, flop_per_row=1.0, flop_per_pass=1.0)
    monkeypatch.setattr(Plan, "of", lambda *_: cut)
    whole = run(place)
    seen: list[list[int]] = []

    def interrupted(hosts: Hosts) -> dict[str, Probe]:
        seen.append(hosts.index.tolist())
        if len(seen) == 2:
            raise KeyboardInterrupt
        return rays(hosts)

    with pytest.raises(KeyboardInterrupt):
        run(place, interrupted, kept=Part(tmp_path))
    again = run(place, interrupted, kept=Part(tmp_path))
    assert seen == [[0, 1], [2, 3], [2, 3], [4]]
    for response, values in again["ray"].items():
        assert torch.equal(values, whole["ray"][response])
    # All there: nothing is run, nothing is asked for.
    assert run(place, interrupted, kept=Part(tmp_path)).keys() == whole.keys()
    assert len(seen) == 4


def test_a_model_in_double_precision_is_compared_in_double_precision():
    model = random_gpt2(MODEL.config).double()
    curves = run(Place(write="blocks.1.hook_resid_pre", position=-1), model=model)["ray"]
    single = run(Place(write="blocks.1.hook_resid_pre", position=-1))["ray"]
    torch.testing.assert_close(curves["kl"], single["kl"], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("place", "reads", "message"),
    [
        (Place(write="blocks.9.hook_resid_pre", position=-1), [], "write: .*no site"),
        (Place(write="blocks.1.attn.hook_z", position=-1), [], "write: .*whole residual stream"),
        (Place(write="blocks.1.hook_resid_pre", position=9), [], "position: 9 is outside"),
        (Place(write="blocks.1.hook_resid_pre", position=-10), [], "position: -10 is outside"),
        (
            Place(write="blocks.1.hook_resid_pre", position=-1),
            ["blocks.0.hook_resid_pre"],
            "read: .*comes before",
        ),
        (Place(write="blocks.1.hook_resid_pre", position=-1), ["final"], "read: .*no site"),
    ],
)
def test_places_that_do_not_exist_are_refused(place, reads, message):
    with pytest.raises(ValueError, match=message):
        place.check(MODEL, N_POS, reads)


def test_prompts_longer_than_the_context_are_refused():
    with pytest.raises(ValueError, match="prompts: 17 tokens"):
        Place(write="blocks.1.hook_resid_pre", position=None).check(MODEL, 17)


def test_too_little_memory_is_refused_and_says_how_much_is_enough():
    place = Place(write="blocks.0.hook_resid_pre", position=None)
    big = GPT2(GPT2Config(n_layer=1, d_model=96, d_mlp=96))
    with pytest.raises(ValueError, match="memory_mb: 10 is too little") as refused:
        Plan.of(big, place, 128, 10)
    enough = int(str(refused.value).rsplit("give ", 1)[1].split()[0])
    assert Plan.of(big, place, 128, enough).n_hosts == 1


def test_a_place_makes_the_hosts_it_describes():
    index = torch.arange(N_HOSTS)
    one = Place(write="blocks.1.hook_resid_pre", position=-1).hosts(MODEL, TOKENS, index)
    every = Place(write="blocks.1.hook_resid_pre", position=None).hosts(MODEL, TOKENS, index)
    assert isinstance(one, OnePosition)
    assert isinstance(every, WholeContext)
    torch.testing.assert_close(one.base[:, 0], every.base[:, -1])


def test_what_probes_are_compared_with_is_run_once_for_all_of_them(monkeypatch):
    """A path of one point is one run."""
    n_runs = []
    outcome = OnePosition.outcome

    def counted(self, x, **asked):
        n_runs.append(x.shape[1])
        return outcome(self, x, **asked)

    monkeypatch.setattr(OnePosition, "outcome", counted)

    def probes(hosts: Hosts) -> dict[str, Probe]:
        moved = hosts.base[:, None] + 1
        same = {name: Probe(Fixed(moved), (KL(), L2(READ))) for name in "ab"}
        return {**same, "other": Probe(Fixed(moved), (KL(),), origin=hosts.base + 2)}

    found = run(Place(write="blocks.1.hook_resid_pre", position=-1), probes)
    assert len(n_runs) == 1 + 2 + 2  # own, two probes; the third's origin and itself
    assert torch.equal(found["a"]["kl"], found["b"]["kl"])
    assert not torch.equal(found["a"]["kl"], found["other"]["kl"])
