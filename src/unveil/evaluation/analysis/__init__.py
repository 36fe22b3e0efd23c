"""Numbers on a model's attention, masks, decoder blocks and layers."""
