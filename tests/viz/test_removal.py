"""The figure of a run that removes LayerNorm."""

from sae_kit.viz.removal import losses


def test_every_kind_of_removal_has_a_mark_and_a_name():
    lines = [{"step": i, "loss": 4.0 - 0.1 * i} for i in range(1, 11)]
    lines[4]["heldout/docs"] = 3.5
    lines[9]["heldout/docs"] = 3.1
    names = (
        "blocks.0.ln2",
        "blocks.1.ln2",
        "blocks.0.ln1.qk",
        "ln_final",
        "first position's scale",
    )
    figure = losses(lines, list(enumerate(names)))
    (ax,) = figure.axes
    labels = ax.get_legend_handles_labels()[1]
    assert labels == [
        "training",
        "held out: docs",
        "removed: norm before the MLP",
        "removed: before queries and keys",
        "removed: before the unembedding",
        "removed: special scale",
    ]
    assert len(ax.lines) == 2 + len(names)
    assert ax.get_ylabel() == "cross-entropy (nats per token)"
