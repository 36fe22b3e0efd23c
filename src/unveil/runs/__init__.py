"""The run folder: its files, checkpoints, TensorBoard events; the console and the machine it runs on."""
