"""From a trained model to text: greedy CTC, and the recogniser that stops."""
