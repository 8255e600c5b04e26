"""The plugin that `make plugin` built, installed by a real krew and run by a real kubectl."""
