"""The run folder: its files, checkpoints; the console and the machine it runs on."""
