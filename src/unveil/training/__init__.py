"""Pretraining: the configuration, the set-up, the loop, the trainer, metrics and validation on the way."""
