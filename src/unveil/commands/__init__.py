"""The verbs of the API, one file each: `unveil.pretrain`, `unveil.evaluate`, `unveil.embed` and the others."""
