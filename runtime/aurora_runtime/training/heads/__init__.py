"""How a published EAGLE-3 head becomes the first draft of a lineage, and how a draft is published."""
