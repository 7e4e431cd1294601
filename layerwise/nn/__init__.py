"""Layers and blocks: pure-functional Flax modules that take an initializer."""
