"""Packing sequences."""

import numpy as np

from fastrnn.recurrence import pack


def test_pack():
    packed = pack(np.array([1, 3, 0, 3]), T=4)
    assert packed.order.tolist() == [1, 3, 0, 2]
    assert packed.batch_sizes.tolist() == [3, 2, 2]
    assert packed.positions.tolist() == [4, 12, 0, 5, 13, 6, 14]  # n * T + t, step after step


def test_equal_lengths_keep_their_order():
    packed = pack(np.full(100, 2), T=2)
    assert packed.order.tolist() == list(range(100))
    assert packed.batch_sizes.tolist() == [100, 100]


def test_nothing_to_pack():
    for lengths in (np.zeros(3, int), np.zeros(0, int)):
        packed = pack(lengths, T=5)
        assert len(packed.batch_sizes) == len(packed.positions) == 0
        assert len(packed.order) == len(lengths)
