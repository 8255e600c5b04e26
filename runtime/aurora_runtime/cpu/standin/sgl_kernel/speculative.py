"""The one operation that SGLang's NGRAM drafting looks up here."""

from aurora_runtime.cpu.trees import reconstruct_indices_from_tree_mask

__all__ = ["reconstruct_indices_from_tree_mask"]
