"""One speculator as a page that people open: from its status and its stored records to HTML. Calls nothing."""
