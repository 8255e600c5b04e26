"""Speculation: decides in each decode round which tokens are proposed for each request, and from which source."""
