"""Recurrences of discretized state spaces, one a feature: diagonal, diagonal plus low rank, and dense."""
