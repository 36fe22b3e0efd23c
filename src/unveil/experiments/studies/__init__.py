"""The questions that the papers leave open, one short file each. `unveil study NAME` answers one."""
