"""Arrays side by side in one piece of memory."""

import threading

import numpy as np

from fastrnn import backend
from fastrnn.arrays import fresh_memory, in_one_piece, views_of_one


def test_arrays_in_one_piece_are_apart_and_begin_at_cache_lines():
    shapes = [(3, 5), (0, 4), (1,), (7, 1, 3)]
    for dtype in (np.float32, np.float64):
        arrays = in_one_piece(fresh_memory, dtype, *shapes)
        assert [(a.shape, a.dtype) for a in arrays] == [(shape, dtype) for shape in shapes]
        assert all(a.ctypes.data % 64 == 0 and a.flags.c_contiguous for a in arrays if a.size)
        for i, array in enumerate(arrays):
            array.fill(i)
        for i, array in enumerate(arrays):
            np.testing.assert_array_equal(array, i)


def test_views_are_in_the_same_places_wherever_the_memory_is():
    """Ranks add up these arrays as they lie."""
    shapes = [(3, 5), (0, 4), (1,), (7, 1, 3)]
    kept, places = [], set()
    for size in range(50):
        kept.append(np.empty(size, np.uint8))  # so that the next piece begins elsewhere
        whole, views = views_of_one(np.float32, *shapes)
        kept.append(whole)
        assert not whole.any()
        assert whole.dtype == np.float32
        places.add(tuple(view.ctypes.data - whole.ctypes.data for view in views if view.size))
        for view in views:
            view[...] = 1
        assert whole.sum() == 15 + 1 + 21
    assert places == {(0, 64, 128)}


def test_kept_memory_is_each_threads_own_and_grows():
    memory = backend.kept_memory("test")
    first = memory(100)
    assert memory(50) is first
    assert backend.kept_memory("test")(100) is first
    assert backend.kept_memory("other")(100) is not first
    assert memory(10_000).nbytes >= 10_000
    elsewhere = []
    thread = threading.Thread(target=lambda: elsewhere.append(memory(100)))
    thread.start()
    thread.join()
    assert not np.shares_memory(elsewhere[0], memory(100))
