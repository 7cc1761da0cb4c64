import torch

from sae_kit.viz.scatter import Cloud, clouds


def test_every_cloud_is_drawn_and_named():
    x, y = torch.tensor([0.001, 0.1]), torch.tensor([0.2, 0.9])
    parts = [Cloud("one", x, y), Cloud("other", x[:1], y[:1])]
    (ax,) = clouds(parts, x="frequency", y="cosine", title="t").axes
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_xscale()) == ("frequency", "cosine", "log")
    assert [len(points.get_offsets()) for points in ax.collections] == [2, 1]
    assert ax.get_ylim()[0] < 0 < 1 < ax.get_ylim()[1]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["one", "other"]
