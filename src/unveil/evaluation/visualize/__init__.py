"""Pictures of a model: its attention, its masks and its predictions."""
