"""Reports of runs and of studies: read from their folders without torch, one HTML file that needs no network each."""
