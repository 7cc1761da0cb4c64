"""Patched runs are what full passes with hooks give, whatever was left out on the way; and what
patching says of models whose circuits are known.
"""

import pytest
import torch
from circuits.compiler import Compiled
from circuits.gates import ONE, ZERO, gate
from circuits.induction import induction
from circuits.linear import linear
from circuits.programs import fraction, reverse
from torch import Tensor
from toy_pairs import N_POS, pairs, pairs_of, random_model, random_pairs, random_saes, scenes

from sae_kit.data.pairs import Pairs
from sae_kit.evals.patches import scenes as scenes_module
from sae_kit.evals.patches.scenes import Part, Scene
from sae_kit.evals.patches.units import KINDS, Units
from sae_kit.models.gpt2 import GPT2

DIRECTIONS = ("denoising", "noising")


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def full_pass(scene: Scene, units: Units, chosen: list[int]) -> Tensor:
    """The same by a hooked run of the whole prompts."""
    source = scene.source(units)
    logits = scene.stage.model.run(
        scene.stage.pairs.clean,
        edit={
            "hook_embed": lambda _: scene.base.acts["hook_embed"],
            units.site: lambda x: units.patched(x, source, chosen),
        },
    ).logits
    assert logits is not None
    return logits[:, -1]


def patched(scene: Scene, units: Units) -> Tensor:
    """`[units pairs vocab]`"""
    found = dict(scene.each(units, range(len(units))))
    return torch.stack([found[unit] for unit in range(len(units))])


@pytest.mark.slow
@pytest.mark.parametrize("ablation", ["corrupt", "gaussian"])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_every_kind_is_as_by_full_passes(ablation: str, direction: str) -> None:
    model, own = random_model(double=True), random_pairs()
    saes = {site: sae.double() for site, sae in random_saes().items()}
    _, _, both = scenes(model, own, ablation=ablation)
    scene = both[direction]
    for word, kind in KINDS.items():
        for units in kind.of(model, own, saes):
            chosen = list(range(len(units)))[-2:]
            found = dict(scene.each(units, chosen))
            assert sorted(found) == chosen
            for unit in chosen:
                expected = full_pass(scene, units, [unit])
                torch.testing.assert_close(found[unit], expected, msg=f"{word} {unit}")


def test_the_broken_run_is_the_corrupted_prompts() -> None:
    """For ablation "corrupt", to the last bit."""
    _, runs, _ = scenes(random_model(), random_pairs())
    assert torch.equal(runs.broken.logits, runs.corrupt.logits)
    for site, act in runs.corrupt.acts.items():
        assert torch.equal(runs.broken.acts[site], act), site


def test_an_exchange_with_itself_changes_nothing() -> None:
    """§8(f): clean into clean, bit for bit, at every site; behind kept keys, to rounding."""
    stage, _, both = scenes(random_model(), random_pairs())
    scene = both["noising"]
    for site, act in scene.base.acts.items():
        if site.startswith("blocks."):
            same = scene.run_with(site, act, first=0)
            if site.endswith("pattern"):  # where a pattern is looked at, attention rounds otherwise
                torch.testing.assert_close(same, scene.base.logits)
            else:
                assert torch.equal(same, scene.base.logits), site
            late = scene.run_with(site, stage.since(site, act, 3), first=3)
            torch.testing.assert_close(late, scene.base.logits)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_all_positions_at_once_make_it_the_other_run(direction: str) -> None:
    """§8(f): the whole residual stream at any layer scores exactly 1."""
    model, own = random_model(), random_pairs()
    _, runs, both = scenes(model, own)
    scene = both[direction]
    other = runs.clean if direction == "denoising" else runs.broken
    for units in KINDS["residual"].of(model, own, {}):
        part = Part(units, scene.source(units), range(N_POS))
        assert torch.equal(scene.jointly([part]), other.logits), units.site


def test_units_of_several_sites_are_exchanged_together() -> None:
    """Later ones in what the run has made of the earlier ones, as hooks would."""
    model, own = random_model(double=True), random_pairs()
    _, _, both = scenes(model, own)
    scene = both["noising"]
    heads, mlps = (KINDS[word].of(model, own, {}) for word in ("head_z", "mlp"))
    chosen = [(heads[0], [1]), (heads[2], [0, 1]), (mlps[1], [0]), (mlps[0], [])]
    parts = [Part(units, scene.source(units), which) for units, which in chosen]
    edit = {
        part.units.site: (lambda x, part=part: part.exchange(x)) for part in parts if part.chosen
    }
    expected = model.run(own.clean, edit=edit).logits
    assert expected is not None
    torch.testing.assert_close(scene.jointly(parts), expected[:, -1])
    assert torch.equal(scene.jointly([]), scene.base.logits)


def test_how_many_run_at_once_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    model, own = random_model(double=True), random_pairs()
    found = []
    for limit in (1, 40, 10_000):
        monkeypatch.setattr(scenes_module, "MAX_POSITIONS", limit)
        _, _, both = scenes(model, own)
        found.append(patched(both["noising"], KINDS["head_z"].of(model, own, {})[1]))
    torch.testing.assert_close(found[0], found[1])
    torch.testing.assert_close(found[0], found[2])


def test_what_the_prompts_share_is_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the first position that differs nothing is computed, and units there not at all."""
    model, own = random_model(), random_pairs()  # differ from position 2 on
    _, _, both = scenes(model, own)
    entered = []
    run = model.run

    def counted(*args, **kwargs):
        entered.append(kwargs["start"][1].shape[1])
        return run(*args, **kwargs)

    monkeypatch.setattr(model, "run", counted)
    units = KINDS["residual"].of(model, own, {})[1]
    found = patched(both["noising"], units)
    assert torch.equal(found[1], both["noising"].base.logits)
    assert [n for n in entered if n > 1] == [5, 4, 3, 2]  # the last position is 1 long, as logits


# --- known answers --------------------------------------------------------------------------------


def score(made: Compiled, direction: str, word: str) -> dict[str, float]:
    """The normalised logit difference of every unit of a kind."""
    own = pairs_of(made)
    _, runs, both = scenes(made.model, own)
    scene = both[direction]

    def difference(logits: Tensor) -> Tensor:
        return (logits * own.answers - logits * own.wrong).sum(-1).mean()

    clean, broken = difference(runs.clean.logits), difference(runs.broken.logits)
    return {
        units.names[unit]: scene.direction.score(difference(logits), clean, broken).item()
        for units in KINDS[word].of(made.model, own, {})
        for unit, logits in scene.each(units, range(len(units)))
    }


@pytest.mark.parametrize(
    ("kind", "direction", "found"),
    [("and", "noising", 1), ("and", "denoising", 0), ("or", "noising", 0), ("or", "denoising", 1)],
)
def test_the_gate_table(kind: str, direction: str, found: float) -> None:
    """§11.3, F16: which inputs of a gate are seen in which direction, exactly."""
    made = gate(kind, (1, 1), (0, 0))
    assert score(made, direction, "head_z") == {"a0.0": found, "a0.1": found}


def test_induction_needs_its_two_heads_and_no_other() -> None:
    """§11, F18."""
    for direction in DIRECTIONS:
        heads = score(induction(), direction, "head_z")
        assert heads["a0.0"] == pytest.approx(1.0, abs=1e-6)
        assert heads["a1.0"] == pytest.approx(1.0, abs=1e-6)
        assert heads["a0.1"] == heads["a1.1"] == 0.0
        keys, queries, values = (score(induction(), direction, f"head_{x}") for x in "kqv")
        assert keys["a1.0.k"] == pytest.approx(1.0, abs=1e-6)
        assert queries["a1.0.q"] == values["a1.0.v"] == 0.0  # alike in both prompts
        assert values["a0.0.v"] == pytest.approx(1.0, abs=1e-6)
        assert keys["a0.0.k"] == queries["a0.0.q"] == 0.0  # positions are, too


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_programs_have_their_components(direction: str) -> None:
    """§8(f), F17: reverse copies what is moved by value; the fraction comes through the MLP."""
    heads, mlps = (score(reverse(), direction, word) for word in ("head_z", "mlp"))
    assert heads == {"a0.0": 0, "a0.1": 0, "a1.0": 1, "a1.1": 0}
    assert mlps == {"m0": 0, "m1": 0}  # which token to fetch is alike in both prompts
    assert score(reverse(), direction, "head_v")["a1.0.v"] == 1
    heads, mlps = (score(fraction(), direction, word) for word in ("head_z", "mlp"))
    assert heads == pytest.approx({"a0.0": 0, "a0.1": 0, "a1.0": 1, "a1.1": 0}, abs=1e-6)
    assert mlps == pytest.approx({"m0": 1, "m1": 0}, abs=1e-6)


@pytest.mark.parametrize("word", ["residual", "mlp_out", "mlp"])
def test_in_a_linear_net_both_directions_agree(word: str) -> None:
    """§8(f), F19: noising = denoising, for every unit, exactly."""
    denoised, noised = (score(linear(), direction, word) for direction in DIRECTIONS)
    assert denoised == pytest.approx(noised, abs=1e-10)
    assert max(map(abs, denoised.values())) > 0.1


def test_in_a_linear_net_disjoint_parts_add_up() -> None:
    """§8(f): positions of one layer together do what they do one by one."""
    for direction in DIRECTIONS:
        for layer in range(4):
            scores = score(linear(), direction, "residual")
            own = [value for name, value in scores.items() if name.startswith(f"{layer}@")]
            assert sum(own) == pytest.approx(1.0, abs=1e-10)


def rotated(model: GPT2) -> GPT2:
    """The same model with its residual stream rotated about the all-ones direction, which the
    LayerNorms leave alone; their gains and biases must be trivial.
    """
    d = model.config.d_model
    generator = torch.Generator().manual_seed(5)
    basis = torch.randn(d, d, generator=generator, dtype=torch.float64)
    basis[:, 0] = 1.0
    frame = torch.linalg.qr(basis).Q
    turn = torch.eye(d, dtype=torch.float64)
    turn[1:, 1:] = torch.linalg.qr(torch.randn(d - 1, d - 1, generator=generator).double()).Q
    q = frame @ turn @ frame.T
    other = GPT2(model.config).double().requires_grad_(False)
    other.load_state_dict(model.state_dict())
    for name, parameter in other.named_parameters():
        if name in ("W_E", "W_pos", "W_U") or name.endswith(("W_O", "W_out", "b_O", "b_out")):
            parameter.copy_(parameter @ q)
        elif name.endswith(("W_qkv", "W_in")):
            parameter.copy_(q.T @ parameter)
    return other


def plain_norms(model: GPT2) -> GPT2:
    for name, parameter in model.named_parameters():
        if ".ln" in name or name.startswith("ln"):
            parameter.fill_(1.0 if name.endswith(".w") else 0.0)
    return model


@pytest.mark.slow
@pytest.mark.parametrize("ablation", ["corrupt", "mean"])
def test_a_rotated_copy_has_the_same_numbers(ablation: str) -> None:
    """§8(f), §11.4: of every kind of unit that does not depend on the stream's basis."""
    model, own = plain_norms(random_model(double=True)), random_pairs()
    other = rotated(model)
    _, _, first = scenes(model, own, ablation=ablation)
    _, _, second = scenes(other, own, ablation=ablation)
    for direction in DIRECTIONS:
        for word in ("residual", "attn_out", "mlp_out", "head_z", "head_q", "head_pattern"):
            for units in KINDS[word].of(model, own, {}):
                a, b = (patched(both[direction], units) for both in (first, second))
                torch.testing.assert_close(a, b, msg=f"{word} {units.site}")


def test_shuffled_answers_leave_no_signal() -> None:
    """§11.4, shuffled pairing: with the answers of other pairs there is nothing to recover."""
    made = induction(n_pairs=64)
    own = pairs_of(made)
    _, runs, _ = scenes(made.model, own)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))

    def gap(answers: Tensor, wrong: Tensor) -> float:
        change = runs.clean.logits - runs.broken.logits
        return (change * answers - change * wrong).sum(-1).mean().item()

    assert gap(own.answers, own.wrong) > 0.9
    assert abs(gap(own.answers[order], own.wrong[order])) < 0.3


def test_gates_of_three_are_seen_the_same_way() -> None:
    for kind, direction in (("and", "noising"), ("or", "denoising")):
        assert set(score(gate(kind, (1, 1, 1), (0, 0, 0)), direction, "head_z").values()) == {1.0}


def test_xor_is_seen_where_one_input_changes() -> None:
    """Both inputs changed leave XOR as it is: nothing to recover there; one is found alone."""
    made = gate("xor", (1, 0), (0, 0))
    for direction in DIRECTIONS:
        assert score(made, direction, "head_z") == {"a0.0": 1.0, "a0.1": 0.0}
    both = pairs(torch.tensor([[1, 0, 2]]), torch.tensor([[0, 1, 2]]), [ONE], [ZERO], 3)
    _, runs, _ = scenes(made.model, both)
    assert torch.equal(runs.clean.logits, runs.broken.logits)


def test_pairs_can_be_batched_in_any_order() -> None:
    model, own = random_model(double=True), random_pairs()
    order = torch.tensor([2, 0, 3, 1])
    turned: Pairs = own.select(order)
    _, _, first = scenes(model, own)
    _, _, second = scenes(model, turned)
    units, same = (KINDS["attn_out"].of(model, which, {})[1] for which in (own, turned))
    a, b = patched(first["denoising"], units), patched(second["denoising"], same)
    torch.testing.assert_close(a[:, order], b)
