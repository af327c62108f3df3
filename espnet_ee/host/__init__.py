"""The one place that knows ESPnet's versions and how it builds classes."""
