"""The built-in studies, one file for each question; `unveil study NAME` runs one."""
