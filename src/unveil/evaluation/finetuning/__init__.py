"""Fine-tuning of an encoder on labels: the classifier, the training loop, LARS."""
