"""Load on `ddit serve`: closed and open loops, every answer checked against the pipeline's own."""
