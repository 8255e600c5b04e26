"""Container images, built and imported without a container engine or a registry."""
