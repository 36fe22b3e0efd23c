"""The protocols of `unveil evaluate`, one file each: `knn.py` holds the function `knn`. They know no model."""
