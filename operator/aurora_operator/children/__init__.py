"""Builders: one per child, from the custom resource to the object that should exist. Pure, but for the keys."""
