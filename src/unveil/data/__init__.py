"""Images and samples of several maps: opened by address, decoded, cut into views, batched, inspected; no models."""
