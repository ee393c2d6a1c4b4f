import pytest

from gistjax.config import CompressionConfig, DataConfig
from gistjax.estimate.planning import nominal_ratio

FIRST = DataConfig(select="first")


@pytest.mark.parametrize(
    ("settings", "ratio"),
    [
        ({"target_length": 64}, 8),
        ({"target_length": 512, "ratio": 4.0}, 4),
        ({"target_length": 64, "ratio": 2.0}, 8),  # M is the most
        ({"architecture": "none"}, 1),
        ({"architecture": "none", "target_length": 32, "data": FIRST}, 16),
        ({"architecture": "none", "target_length": 512, "ratio": 2.0, "data": FIRST}, 2),
        ({"architecture": "closed_book"}, 1),
    ],
)
def test_nominal_ratio(settings, ratio):
    assert nominal_ratio(CompressionConfig(**settings)) == ratio
