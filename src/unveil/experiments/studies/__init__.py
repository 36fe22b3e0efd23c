"""The built-in studies, a file for each family of recipes; `unveil study NAME` runs one."""
