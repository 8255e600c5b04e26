"""Forwards the one operation that SGLang's NGRAM speculation imports from this submodule."""

from aurora_runtime.cpu.draft_trees import reconstruct_indices_from_tree_mask

__all__ = ["reconstruct_indices_from_tree_mask"]
