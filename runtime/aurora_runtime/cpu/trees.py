"""Draft trees: building one from the draft's choices, and walking it with the target's.

Stands in for the functions of the same names in SGLang's unpublished CPU kernels (call sites:
sglang/kernels/ops/speculative/spec_tree.py and reconstruct_tree.py; the Triton kernels there define the semantics).
A tree of n nodes has node 0, the last verified token, as its root; a parent's number is smaller than its children's.
Invariant: no loop over requests or tokens; closures over ancestors take log2(n) doublings.
"""

from __future__ import annotations

from enum import IntEnum

import torch


class MaskMode(IntEnum):
    """How a tree mask is laid out (sglang/srt/speculative/spec_utils.py, TreeMaskMode)."""

    FULL = 0
    QUERIES_ONLY = 1


def _doublings(nodes: int) -> int:
    return max(nodes - 1, 1).bit_length()


def _links(parent: torch.Tensor, has_parent: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """First child and next sibling of every node, -1 where there is none.

    Args:
        parent: [B, n] number of each node's parent.
        has_parent: [B, n] bool, False for roots.
    """
    nodes = parent.shape[1]
    number = torch.arange(nodes)
    is_child = (parent[:, None, :] == number[:, None]) & has_parent[:, None, :]
    child = torch.where(is_child, number, nodes).amin(2)
    is_sibling = (parent[:, None, :] == parent[:, :, None]) & has_parent[:, None, :] & has_parent[:, :, None]
    is_sibling &= number > number[:, None]
    sibling = torch.where(is_sibling, number, nodes).amin(2)
    none = torch.tensor(-1)
    return torch.where(child < nodes, child, none), torch.where(sibling < nodes, sibling, none)


def _ancestors(parent: torch.Tensor) -> torch.Tensor:
    """[B, n, n] bool: whether j is i itself or one of its ancestors; a root is its own parent."""
    nodes = parent.shape[1]
    reach = torch.eye(nodes) + torch.zeros(*parent.shape, nodes).scatter_(2, parent[:, :, None], 1.0)
    for _ in range(_doublings(nodes)):
        reach = (reach @ reach).clamp_(max=1.0)
    return reach > 0


def build_tree_kernel_efficient_cpu(
    parent_list: torch.Tensor,
    selected_index: torch.Tensor,
    verified_seq_len: torch.Tensor,
    tree_mask: torch.Tensor,
    positions: torch.Tensor,
    retrive_index: torch.Tensor,
    retrive_next_token: torch.Tensor,
    retrive_next_sibling: torch.Tensor,
    topk: int,
    depth: int,
    draft_token_num: int,
    tree_mask_mode: int,
) -> None:
    """Link the draft's selected candidates into a tree and write its mask, positions and links in place.

    Args:
        parent_list: [B, m] for each expanded group of `topk` candidates, the candidate it hangs on.
        selected_index: [B, n-1] ascending candidate numbers; candidate c belongs to group c // topk, group 0 hangs
            on the root.
        verified_seq_len: [B] tokens before the root.
        tree_mask: flat bool, prefilled with True; QUERIES_ONLY n x n or FULL n x (seq + n) per request.
        positions: [B*n].
        retrive_index, retrive_next_token, retrive_next_sibling: [B, n].
    """
    batch, nodes = selected_index.shape[0], draft_token_num
    number = torch.arange(nodes)
    group = selected_index // topk
    parent = torch.zeros(batch, nodes, dtype=torch.long)
    if parent_list.shape[1] > 0:
        hangs_on = parent_list.gather(1, group.clamp(max=parent_list.shape[1] - 1))
        is_parent = selected_index[:, None, :] == hangs_on[:, :, None]
        parent[:, 1:] = torch.where(group > 0, is_parent.int().argmax(2) + 1, 0)
    child, sibling = _links(parent, (number > 0).expand(batch, nodes))
    sees = _ancestors(parent)
    retrive_index.copy_(torch.arange(batch * nodes).view(batch, nodes))
    retrive_next_token.copy_(child)
    retrive_next_sibling.copy_(sibling)
    positions.copy_((verified_seq_len[:, None] + sees.sum(2) - 1).flatten())
    _write_mask(tree_mask, sees, verified_seq_len.long(), MaskMode(tree_mask_mode))


def _write_mask(tree_mask: torch.Tensor, sees: torch.Tensor, prefix: torch.Tensor, mode: MaskMode) -> None:
    batch, nodes = sees.shape[:2]
    if mode is MaskMode.QUERIES_ONLY:
        tree_mask.view(batch, nodes, nodes).copy_(sees)
        return
    number = torch.arange(nodes)
    cells = nodes * (prefix + nodes)
    row = (cells.cumsum(0) - cells)[:, None] + number * (prefix + nodes)[:, None]
    index = row[:, :, None] + prefix[:, None, None] + number
    tree_mask[index.flatten()] = sees.flatten().to(tree_mask.dtype)


def reconstruct_indices_from_tree_mask(
    tree_mask: torch.Tensor,
    verified_seq_len: torch.Tensor,
    positions: torch.Tensor,
    retrive_index: torch.Tensor,
    retrive_next_token: torch.Tensor,
    retrive_next_sibling: torch.Tensor,
    batch_size: int,
    draft_token_num: int,
) -> None:
    """Write positions and links of trees that are given by their masks (NGRAM's drafts).

    Args:
        tree_mask: flat bool, n x n per request; True at [i, j] where j is an ancestor of i (or i itself).
    """
    nodes = draft_token_num
    number = torch.arange(nodes)
    above = tree_mask.view(batch_size, nodes, nodes).bool() & (number < number[:, None])
    parent = torch.where(above, number, -1).amax(2)
    child = torch.where(above, number[:, None], nodes).amin(1)
    _, sibling = _links(parent, parent >= 0)
    positions.copy_((above.sum(2) + verified_seq_len[:, None]).flatten())
    retrive_index.copy_(torch.arange(batch_size * nodes).view(retrive_index.shape))
    retrive_next_token.copy_(torch.where(child < nodes, child, -1).view(retrive_next_token.shape))
    retrive_next_sibling.copy_(sibling.view(retrive_next_sibling.shape))


def _parents(next_token: torch.Tensor, next_sibling: torch.Tensor) -> torch.Tensor:
    """[B, n] the parent of each node from child and sibling links; nodes without one get themselves."""
    batch, nodes = next_token.shape
    number = torch.arange(nodes).expand(batch, nodes)
    spare = torch.full_like(next_token, nodes)
    eldest = torch.cat((number, spare[:, :1]), 1).clone()
    eldest.scatter_(1, torch.where(next_sibling >= 0, next_sibling, spare), number)
    for _ in range(_doublings(nodes)):
        eldest = eldest.gather(1, eldest)
    parent_of_eldest = torch.cat((number, spare[:, :1]), 1).clone()
    parent_of_eldest.scatter_(1, torch.where(next_token >= 0, next_token, spare), number)
    return parent_of_eldest.gather(1, eldest)[:, :nodes]


def verify_tree_greedy_cpu(
    predicts: torch.Tensor,
    accept_index: torch.Tensor,
    accept_token_num: torch.Tensor,
    candidates: torch.Tensor,
    retrive_index: torch.Tensor,
    retrive_next_token: torch.Tensor,
    retrive_next_sibling: torch.Tensor,
    target_predict: torch.Tensor,
) -> None:
    """Follow the target's greedy choices down the draft trees; write the accepted paths in place.

    A node is accepted when its token is the target's choice at its parent, its parent is accepted, and no elder
    sibling has the same token.

    Args:
        predicts: [B*n] the target's choice at every accepted node (elsewhere untouched): at the last, the bonus token.
        accept_index: [B, d] flat numbers of the accepted nodes from the root on; the rest stays -1.
        accept_token_num: [B] accepted drafts, the root not counted.
        candidates: [B, n] the tree's tokens.
        target_predict: [B, n] the target's greedy token after each node.
    """
    nodes = candidates.shape[1]
    number = torch.arange(nodes)
    parent = _parents(retrive_next_token.long(), retrive_next_sibling.long())
    accepted = candidates == target_predict.gather(1, parent)
    twin = (parent[:, None, :] == parent[:, :, None]) & (candidates[:, None, :] == candidates[:, :, None])
    twin &= (number > 0) & (number < number[:, None])
    accepted &= ~twin.any(2) & (parent != number)
    accepted[:, 0] = True
    above = parent
    for _ in range(_doublings(nodes)):
        accepted = accepted & accepted.gather(1, above)
        above = above.gather(1, above)
    rank = accepted.long().cumsum(1) - 1
    depth = accept_index.shape[1]
    accepted &= rank < depth
    accept_token_num.copy_(accepted.sum(1) - 1)
    request, node = accepted.nonzero(as_tuple=True)
    flat = retrive_index[request, node]
    accept_index[request, rank[request, node]] = flat.to(accept_index.dtype)
    predicts[flat.long()] = target_predict[request, node].to(predicts.dtype)
