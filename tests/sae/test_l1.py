import pytest

from sae_kit.sae import Moment
from sae_kit.sae.l1 import L1Config
from sae_kit.sae.relu import ReLUConfig


def test_the_coefficient_rises_over_its_share_of_the_run():
    config = ReLUConfig(l1_coefficient=3.0, l1_warmup=0.5)
    found = [config.coefficient(Moment(step, 100)) for step in (0, 25, 50, 99)]
    assert found == [0.0, 1.5, 3.0, 3.0]
    assert ReLUConfig(l1_coefficient=3.0, l1_warmup=0.0).coefficient(Moment(0, 100)) == 3.0


@pytest.mark.parametrize(
    ("field", "value"), [("l1_coefficient", -1.0), ("l1_warmup", -0.5), ("l1_warmup", 1.5)]
)
def test_bad_fields_are_named(field, value):
    assert issubclass(ReLUConfig, L1Config)
    with pytest.raises(ValueError, match=f"^{field}: {value}"):
        ReLUConfig(**{field: value})
