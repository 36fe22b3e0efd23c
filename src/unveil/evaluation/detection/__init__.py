"""Detection and instance segmentation: boxes and masks from an encoder's last map, as ViTDet does it."""
