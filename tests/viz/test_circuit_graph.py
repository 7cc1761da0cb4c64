"""A drawn circuit: nodes in order, edges by their size and kind."""

from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch

from sae_kit.viz.circuit_graph import COLOURS, THINNEST, WIDEST, graph

EDGES = [
    {"sender": "embed", "receiver": "a0.1.k", "effect": 4.0},
    {"sender": "a0.1", "receiver": "m2", "effect": -1.0},
    {"sender": "m2", "receiver": "logits", "effect": 0.0},
]


def drawn(edges: list[dict]) -> Figure:
    return graph(edges, unit="nats", title="A circuit")


def arrows(figure: Figure) -> list[FancyArrowPatch]:
    return [p for p in figure.axes[0].patches if isinstance(p, FancyArrowPatch)]


def test_levels_stand_in_order_and_only_those_of_the_circuit() -> None:
    labels = [tick.get_text() for tick in drawn(EDGES).axes[0].get_yticklabels()]
    assert labels == ["embed", "heads 0", "MLP 2", "logits"]


def test_every_node_has_its_name() -> None:
    texts = {text.get_text() for text in drawn(EDGES).axes[0].texts}
    assert texts == {"embed", "a0.1", "m2", "logits"}


def test_widths_go_by_the_size_of_the_effect_and_colours_by_the_part() -> None:
    least, middle, most = arrows(drawn(EDGES))
    assert most.get_linewidth() == WIDEST
    assert least.get_linewidth() == THINNEST < middle.get_linewidth() < WIDEST
    assert to_hex(most.get_edgecolor()) == COLOURS["k"].lower()
    assert to_hex(middle.get_edgecolor()) == to_hex(least.get_edgecolor()) == COLOURS[""].lower()


def test_heads_of_a_block_stand_side_by_side_by_number() -> None:
    heads = (10, 2, 7)
    edges = [{"sender": f"a3.{h}", "receiver": "logits", "effect": 1.0} for h in heads]
    at = {text.get_text(): text.get_position() for text in drawn(edges).axes[0].texts}
    assert at["a3.2"][0] < at["a3.7"][0] < at["a3.10"][0]
    assert at["a3.2"][1] == at["a3.7"][1] == at["a3.10"][1]


def test_latents_stand_where_their_site_is() -> None:
    edges = [
        {"sender": "blocks.1.hook_resid_pre/7", "receiver": "a1.0.q", "effect": 1.0},
        {"sender": "m0", "receiver": "blocks.1.hook_resid_pre/7", "effect": 1.0},
        {"sender": "blocks.1.hook_resid_pre/rest", "receiver": "m1", "effect": 1.0},
    ]
    labels = [tick.get_text() for tick in drawn(edges).axes[0].get_yticklabels()]
    assert labels == ["embed", "MLP 0", "latents 1 resid_pre", "heads 1", "MLP 1", "logits"]


def test_an_empty_circuit_is_its_two_ends() -> None:
    figure = drawn([])
    assert not arrows(figure)
    assert {text.get_text() for text in figure.axes[0].texts} == {"embed", "logits"}
