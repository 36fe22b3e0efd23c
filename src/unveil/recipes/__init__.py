"""Recipes: one file per paper. Each composes parts and holds no loop."""
