"""The field's benchmarks: official file formats in, official scores out, on real data and on the small world."""
