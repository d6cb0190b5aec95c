"""Reports: Jinja2 templates and the code that renders them."""
