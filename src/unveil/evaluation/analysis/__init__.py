"""What goes on in a model, in numbers: its attention, its masks, its layers."""
