"""Line fits, rank correlations, resampling and cross-validation, on plain arrays."""
