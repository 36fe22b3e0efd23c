"""The version of the package, read by its build and by `unveil doctor`."""

__version__ = "0.2.0"
