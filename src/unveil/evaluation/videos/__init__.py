"""Videos: features of frames, labels that are propagated from frame to frame, and the measures of DAVIS."""
