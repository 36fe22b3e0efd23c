"""Encoders, decoders, masks, targets, teachers, losses, and the masked model that joins them."""
