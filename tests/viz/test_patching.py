"""Figures of patching, from rows."""

import math

import pytest

from sae_kit.viz.patching import (
    ASKED,
    attribution,
    circuit,
    directions,
    heads,
    paths,
    positions,
    sizes,
    top,
)


def unit(units: str, name: str, direction: str, score: float, layer: int = 0, place: int = 0):
    ends = {"low": score - 0.1, "high": score + 0.1, "attribution": score / 2}
    about = {"kind": "unit", "units": units, "unit": name, "direction": direction}
    return {**about, "layer": layer, "place": place, "score": score, **ends}


def test_positions_are_labelled_by_their_tokens() -> None:
    names = ["BOS", "the.1", "S1", "the.3"]
    rows = [
        unit("residual", f"{layer}@{name}", direction, layer + place / 10, layer, place)
        for direction in ("denoising", "noising")
        for layer in range(2)
        for place, name in enumerate(names)
    ]
    figure = positions(rows, title="t")
    assert figure is not None
    ax = figure.axes[0]
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["BOS", "the", "S1", "the"]
    assert ax.images[0].get_array()[1][2] == pytest.approx(1.2)
    assert positions([unit("mlp", "m0", "noising", 0.1)], title="t") is None


def test_heads_stand_by_layer_and_number() -> None:
    rows = [
        unit("head_z", f"a{layer}.{head}", "noising", 10.0 * layer + head, layer, head)
        for layer in range(3)
        for head in range(2)
    ]
    figure = heads(rows, title="t")
    assert figure is not None
    assert figure.axes[0].get_title() == "outputs, noising"
    assert figure.axes[0].images[0].get_array().tolist() == [[0, 1], [10, 11], [20, 21]]
    assert heads([], title="t") is None


def test_top_lists_are_separated_by_sign() -> None:
    values = {"a": 0.2, "b": -0.7, "c": 0.9, "d": -0.1, "e": 0.0}
    rows = [
        {
            **unit("neuron", name, "noising", v),
            "heldout_score": v,
            "heldout_low": v,
            "heldout_high": v,
        }
        for name, v in values.items()
    ]
    (ax,) = top(rows, title="t").axes
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["c", "a", "d", "b"]
    widths = [patch.get_width() for patch in ax.patches]
    assert widths == pytest.approx([0.9, 0.2, -0.1, -0.7])
    assert ax.patches[1].get_facecolor() != ax.patches[2].get_facecolor()


def test_the_reading_aid_is_the_table_of_gates() -> None:
    """METHODS §11.3: noising finds AND's inputs and misses OR's, denoising the other way round."""
    rows = [
        unit(kind, name, direction, score)
        for kind, name, scores in (("head_z", "a0.0", (0.0, 1.0)), ("mlp", "m0", (1.0, 0.9)))
        for direction, score in zip(("denoising", "noising"), scores, strict=True)
    ]
    ax, table = directions(rows, title="t").axes
    assert {text.get_text() for text in ax.texts} >= {"a0.0", "m0"}
    columns = [tick.get_text() for tick in table.get_xticklabels()]
    kinds = [tick.get_text() for tick in table.get_yticklabels()]
    said = {
        (kinds[round(t.get_position()[1])], columns[round(t.get_position()[0])]): t.get_text()
        for t in table.texts
    }
    assert said == {
        ("A and B", "noising"): "1\nfound",
        ("A and B", "denoising"): "0\nmissed",
        ("A or B", "noising"): "0\nmissed",
        ("A or B", "denoising"): "1\nfound",
    }


def test_paths_are_matrices_of_senders_by_receivers() -> None:
    senders = {"a1.0.q": ["embed", "m0"], "logits": ["embed", "m0", "a1.0"]}
    rows = [
        {
            "path": path,
            "direction": "noising",
            "receiver": receiver,
            "sender": sender,
            "score": 0.1 * i,
        }
        for path in ("direct", "total")
        for receiver, own in senders.items()
        for i, sender in enumerate(own)
    ]
    figure = paths(rows, title="t")
    assert figure is not None
    panels = [ax for ax in figure.axes if ax.get_ylabel() == "sender"]
    assert len(panels) == 2
    assert [tick.get_text() for tick in panels[0].get_yticklabels()] == senders["logits"]
    values = panels[0].images[0].get_array().data.tolist()
    assert values[:2] == [[0.0, 0.0], [0.1, 0.1]]
    assert math.isnan(values[2][0])
    assert values[2][1] == pytest.approx(0.2)


def test_attribution_stands_against_exact() -> None:
    rows = [unit("head_z", f"a0.{i}", "noising", 0.1 * i) for i in range(3)]
    axes = attribution(rows, title="t").axes
    assert [ax.get_title() for ax in axes] == ["denoising", "noising"]
    points = axes[1].collections[0].get_offsets().tolist()
    assert points == [[0.0, 0.0], [0.1, 0.05], [0.2, 0.1]]


def answer(value: float) -> dict[str, float]:
    return {"answer": value, "low": value - 0.1, "high": value + 0.1}


def test_sizes_and_circuits_are_drawn() -> None:
    rows = [
        {"ranking": ranking, "question": question, "n_components": n, **answer(n / 4)}
        for ranking in ("by effect", "random 1", "random 2")
        for question in ("enough_denoised", "enough_noised")
        for n in (0, 2, 4)
    ]
    figure = sizes(rows, title="t")
    assert len(figure.axes) == 2
    assert figure.axes[0].lines[2].get_ydata().tolist() == [0.0, 0.5, 1.0]
    sets = [
        {"set": name, "pairs": pairs, "question": question, "n_components": 2, **answer(value)}
        for pairs in ("first", "heldout")
        for question in ASKED
        for name, value in (("circuit", 1.0), ("random 1", 0.1), ("random 2", 0.3))
    ]
    lost = [{"component": name, **answer(0.5)} for name in ("a0.0", "m0")]
    above, below = circuit(sets, lost, title="t").axes
    heights = [patch.get_height() for patch in above.patches]
    assert heights == pytest.approx([1.0] * 8 + [0.2] * 4)
    assert [tick.get_text() for tick in below.get_xticklabels()] == ["a0.0", "m0"]
