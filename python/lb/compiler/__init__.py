"""From a specification (configuration, overrides, health) to the snapshot that backends work from."""
