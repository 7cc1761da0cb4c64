"""States come apart into JSON and tensors, and together again."""

import json

import pytest
import torch

from sae_kit.state import put_together, take_apart


def test_what_is_taken_apart_is_put_together_again():
    x = torch.arange(6.0).view(2, 3)
    state = {"a": [1, (x, None)], 3: {"__tensor__": "no reference"}, "b": {"deep": x[0]}, "t": ()}
    tensors: dict[str, torch.Tensor] = {}
    skeleton = json.loads(json.dumps(take_apart(state, tensors, "state")))
    again = put_together(skeleton, tensors)
    assert again["a"][0] == 1
    assert torch.equal(again["a"][1][0], x)
    assert again["a"][1][1] is None
    assert again[3] == {"__tensor__": "no reference"}
    assert torch.equal(again["b"]["deep"], x[0])
    assert again["t"] == ()
    assert len(tensors) == 2


@pytest.mark.parametrize(
    ("state", "where"),
    [
        ({"a": {1.5: 0}}, "state['a']: key 1.5"),
        ({"a": [0, object()]}, "state['a'][1]: object"),
        ({"a": torch.zeros(2, dtype=torch.complex64)}, "state['a']"),
    ],
)
def test_what_cannot_be_stored_is_named(state, where):
    with pytest.raises(TypeError) as raised:
        take_apart(state, {}, "state")
    assert where in str(raised.value)
