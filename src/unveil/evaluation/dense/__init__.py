"""What protocols with a label per pixel share: data and views, models and heads, training and metrics."""
