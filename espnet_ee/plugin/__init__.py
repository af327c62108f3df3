"""Where espnet_ee meets ESPnet: versions, registration, tasks, checkpoints."""
