"""What a pretrained encoder has learned: protocols on labelled images, analysis of a model, pictures of both."""
