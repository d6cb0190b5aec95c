"""Lines, rank correlations, resampling and predictions left out, on plain arrays."""
