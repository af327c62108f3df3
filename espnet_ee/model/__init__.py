"""Exit heads, the joint loss and the ESPnet model class that trains them."""
