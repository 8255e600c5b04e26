"""One speculator as a page that people open without a cluster. Needs the extra ``report`` (Jinja2 and matplotlib)."""
