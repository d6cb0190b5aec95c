"""The tables of a run: results.csv (`table`) and metrics.jsonl (`metrics`)."""
