import pytest

from sae_kit.viz.layer_flow import GONE, NEW, PASSED, Step, flow


def bands(ax, colour: str) -> list[tuple[float, float, float, float]]:
    """Low and high of every band's left and right edge."""
    from matplotlib.colors import to_rgba

    own = [patch for patch in ax.patches if patch.get_facecolor() == to_rgba(colour)]
    vertices = [patch.get_path().vertices for patch in own if len(patch.get_path().vertices) == 9]
    return [(v[0][1], v[7][1], v[3][1], v[4][1]) for v in vertices]


def test_bands_are_as_wide_as_the_latents_are_many():
    step = Step(("blocks.0.x", "blocks.1.x"), (100.0, [20.0, 50.0]), (80.0, [10.0, 60.0]))
    (ax,) = flow([step], ["0.9", "0.5"], title="t").axes
    assert bands(ax, PASSED[0]) == [(0, 20, 0, 10)]
    assert bands(ax, PASSED[1]) == [(20, 50, 10, 60)]
    assert bands(ax, GONE)[0][:2] == (50, 100)
    assert bands(ax, NEW)[0][2:] == (60, 80)
    assert [text.get_text() for text in ax.texts] == ["50%", "25%"]


def test_sites_that_do_not_follow_one_another_have_no_band():
    sites = [f"blocks.{i}.x" for i in range(3)]
    steps = [
        Step((sites[a], sites[b]), (10.0, [5.0]), (10.0, [5.0]))
        for a, b in ((0, 1), (1, 2), (0, 2))
    ]
    (ax,) = flow(steps, ["0.9"], title="t").axes
    assert len(bands(ax, PASSED[0])) == 2
    assert [label.get_text() for label in ax.get_xticklabels()] == ["0", "1", "2"]


@pytest.mark.parametrize("n", [0.0, 5.0])
def test_a_site_without_latents_is_drawn(n):
    step = Step(("a", "b"), (0.0, [0.0]), (n, [0.0]))
    (ax,) = flow([step], ["0.9"], title="t").axes
    assert ax.get_ylim()[1] > 0
