"""The plugin that `make plugin` built, run by a real kubectl."""
