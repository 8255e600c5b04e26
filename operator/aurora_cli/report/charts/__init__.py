"""Charts of a report as inline SVG. Their colours are variables of the page's style, so they follow its theme."""
