"""Predictions, made without drawing a weight. Never imports Flax."""
