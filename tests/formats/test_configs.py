import math

import pytest

from sae_kit.formats.configs import config_of, length_of, positive_of, whole_of
from sae_kit.sae.topk import TopKConfig

HEADER = {"b": ("F32", (4,)), "w": ("F32", (4, 3)), "none": ("F32", (0,)), "one": ("F32", ())}


def test_configs_come_from_settings():
    assert config_of({"arch": "topk", "d_sae": 8, "k": 2}, "f") == TopKConfig(d_sae=8, k=2)


@pytest.mark.parametrize("k", [9, None, "2", [1]])
def test_settings_that_make_no_config_are_named(k):
    with pytest.raises(ValueError, match=r"^f: .*k: "):
        config_of({"arch": "topk", "d_sae": 8, "k": k}, "f")


def test_lengths_are_those_of_vectors():
    assert length_of(HEADER, "b", "f") == 4
    for name, message in (("w", r"shape \(4, 3\)"), ("none", r"\(0,\)"), ("one", r"\(\)")):
        with pytest.raises(ValueError, match=rf"f: {name} has .*{message}; it must be a vector"):
            length_of(HEADER, name, "f")
    with pytest.raises(ValueError, match="f: has no tensor c"):
        length_of(HEADER, "c", "f")


@pytest.mark.parametrize("value", [0, -1, True, 2.0, "2", None, 1 << 41, 10**400])
def test_whole_numbers_are_whole_and_positive(value):
    assert whole_of({"n": 2}, "n", "f") == 2
    with pytest.raises(ValueError, match=r"f: n is .*; it must be a positive whole number"):
        whole_of({"n": value}, "n", "f")


@pytest.mark.parametrize("value", [0, -1.0, True, "2", None, math.inf, math.nan, 10**400])
def test_numbers_are_positive_and_finite(value):
    assert positive_of({"x": 0.5}, "x", "f") == 0.5
    assert positive_of({"x": 2}, "x", "f") == 2.0
    with pytest.raises(ValueError, match=r"f: x is .*; it must be a positive number"):
        positive_of({"x": value}, "x", "f")
