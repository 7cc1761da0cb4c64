"""What goes from one component to another: METHODS 8(f), on random and on compiled models."""

import pytest
import torch
from circuits.compiler import Compiled
from circuits.gates import gate
from circuits.induction import induction
from circuits.linear import linear
from circuits.programs import fraction, reverse
from torch import Tensor
from toy_pairs import pairs_of, random_model, random_pairs, scenes

from sae_kit.evals.patches.path_patching import (
    EMBEDDING,
    Direct,
    Path,
    Senders,
    Total,
    check_receivers,
    effects,
    read,
    received,
    receivers,
)
from sae_kit.evals.patches.scenes import Scene

DIRECTIONS = ("denoising", "noising")


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def logits_of(scene: Scene, receiver: str, path: Path) -> dict[str, Tensor]:
    return dict(effects(Senders(scene), receivers(scene.stage.model)[receiver], path))


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("name", ["a2.1.q", "a1.0.v", "m1", "logits"])
def test_all_senders_of_a_receiver_are_its_input(name: str, direction: str) -> None:
    """§8(f): all of them exchanged is the receiver's input exchanged."""
    model = random_model(double=True)
    _, runs, both = scenes(model, random_pairs())
    scene, receiver = both[direction], receivers(model)[name]
    senders = Senders(scene)
    stream = scene.base.acts[receiver.reads]
    every = sum((senders.change(sender) for sender in senders.of(receiver)), stream)
    other = (runs.clean if direction == "denoising" else runs.broken).acts[receiver.reads]
    torch.testing.assert_close(every, other)
    exchanged, expected = (
        received(scene, receiver, read(scene, receiver, x)) for x in (every, other)
    )
    torch.testing.assert_close(exchanged, expected)
    assert not torch.allclose(exchanged, scene.base.logits)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_path_is_as_by_hooks(direction: str) -> None:
    """By runs of whole prompts: the sender's change is added to what one receiver reads."""
    model, own = random_model(double=True), random_pairs()
    _, _, both = scenes(model, own)
    scene = both[direction]
    senders = Senders(scene)
    site, head = "blocks.2.attn.hook_k", 1
    stream = "blocks.2.hook_resid_pre"
    for sender in (EMBEDDING, "a0.1", "m1"):
        x = scene.base.acts[stream] + senders.change(sender)
        keys = model.run(start=(stream, x), capture=[site], stop=site).acts[site]

        def exchange(k: Tensor, keys: Tensor = keys) -> Tensor:
            k = k.clone()
            k[:, :, head] = keys[:, :, head]
            return k

        edit = {"hook_embed": lambda _: scene.base.acts["hook_embed"], site: exchange}
        expected = model.run(own.clean, edit=edit).logits
        assert expected is not None
        found = logits_of(scene, "a2.1.k", Direct())[sender]
        torch.testing.assert_close(found, expected[:, -1])


def test_the_total_effect_on_the_final_stream_is_that_of_exchanging_the_sender() -> None:
    _, _, both = scenes(random_model(double=True), random_pairs())
    for scene in both.values():
        senders = Senders(scene)
        for name, logits in logits_of(scene, "logits", Total()).items():
            units, unit = senders.units(name)
            expected = dict(scene.each(units, [unit]))[unit]
            torch.testing.assert_close(logits, expected, msg=name)


def test_where_nothing_is_between_direct_is_total() -> None:
    """The MLP of the last block and the final stream; heads and their own block's MLP."""
    _, _, both = scenes(random_model(double=True), random_pairs())
    for scene in both.values():
        for receiver, names in (("logits", ["m2"]), ("m1", ["a1.0", "a1.1"])):
            direct, total = (logits_of(scene, receiver, path) for path in (Direct(), Total()))
            for name in names:
                torch.testing.assert_close(direct[name], total[name])


def test_a_receiver_hears_what_comes_before_it() -> None:
    _, _, both = scenes(random_model(), random_pairs())
    senders = Senders(both["noising"])
    known = receivers(random_model())
    assert senders.of(known["a0.0.q"]) == [EMBEDDING]
    assert senders.of(known["m0"]) == [EMBEDDING, "a0.0", "a0.1"]
    assert senders.of(known["a1.0.k"]) == [EMBEDDING, "a0.0", "a0.1", "m0"]
    assert senders.of(known["logits"])[-3:] == ["a2.0", "a2.1", "m2"]


@pytest.mark.parametrize(
    "make", [induction, reverse, fraction, lambda: gate("and", (1, 1), (0, 0))]
)
def test_compiled_models_have_no_paths_but_their_edges(make) -> None:
    """§8(f), F16 to F18: direct paths that are no edge of the circuit carry nothing."""
    made: Compiled = make()
    _, _, both = scenes(made.model, pairs_of(made))
    n_alive = 0
    for scene in both.values():
        for name in receivers(made.model):
            for sender, logits in logits_of(scene, name, Direct()).items():
                if (sender, name) in made.edges:
                    n_alive += not torch.equal(logits, scene.base.logits)
                else:
                    torch.testing.assert_close(
                        logits, scene.base.logits, rtol=0, atol=1e-7, msg=f"{sender} -> {name}"
                    )
    assert n_alive >= 2


def test_induction_reads_the_previous_token_by_its_keys() -> None:
    """§11, F18: previous-token head -> induction head, by K; not by Q, not by V."""
    made = induction()
    own = pairs_of(made)
    _, runs, both = scenes(made.model, own)
    asked = own.answers | own.wrong
    for direction, other in (("denoising", runs.clean), ("noising", runs.broken)):
        scene = both[direction]
        by = {part: logits_of(scene, f"a1.0.{part}", Direct())["a0.0"] for part in "qkv"}
        torch.testing.assert_close(by["k"][asked], other.logits[asked])
        for part in "qv":
            assert torch.equal(by[part], scene.base.logits)


def test_in_a_linear_net_direct_paths_to_the_end_add_up() -> None:
    """§8(f), F19."""
    made = linear()
    _, _, both = scenes(made.model, pairs_of(made))
    for scene in both.values():
        parts = logits_of(scene, "logits", Direct()).values()
        change = sum((logits - scene.base.logits for logits in parts), torch.zeros(()))
        other = both["noising" if scene is both["denoising"] else "denoising"]
        torch.testing.assert_close(scene.base.logits + change, other.base.logits)


def test_names_are_checked() -> None:
    model = random_model()
    check_receivers(["a2.1.q", "m0", "logits"], model)
    with pytest.raises(ValueError, match=r"no receiver 'a2\.1'; give a2"):
        check_receivers(["a2.1"], model)
    with pytest.raises(ValueError, match="has one twice"):
        check_receivers(["m0", "m0"], model)
