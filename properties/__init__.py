"""Default settings, as YAML: what a key means stands beside it."""
