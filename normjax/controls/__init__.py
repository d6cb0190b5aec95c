"""Is the line real? `normjax.explain_line` and its parts."""
