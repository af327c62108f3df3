"""Exit policies: plain Python on the evidence, so that an edge runtime needs no torch."""
