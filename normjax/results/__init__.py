"""What a run leaves behind as tables: results.csv (`table`) and metrics.jsonl (`metrics`)."""
