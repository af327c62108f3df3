"""From log-probabilities to hypotheses; no torch."""
