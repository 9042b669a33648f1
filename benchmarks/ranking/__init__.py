"""What the benchmarks of ranking share: true removals, the list of estimators, comparison partners, statistics."""
