"""Blocks: what architectures are made of, one family of definitions per file."""
