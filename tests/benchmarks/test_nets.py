"""The batch that fills a card."""

import pytest

from benchmarks.nets import filling_batch


@pytest.mark.parametrize(
    ("batch", "share", "full"),
    [(12, 0.2, 48), (12, 0.5, 16), (16, 0.9, 16), (12, 0.8, 12), (12, 0.001, 192), (32, 0.1, 272)],
)
def test_the_batch_that_fills_the_card(batch, share, full):
    assert filling_batch(batch, share) == full
