"""What turns audio into features: for training, for stored features, for recognition."""
