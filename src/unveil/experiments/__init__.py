"""What runs commands many times or needs no data: studies, the bench, the demo, rendered scenes."""
