"""Benchmarks; ``cases`` is the table that they share with the tests."""
