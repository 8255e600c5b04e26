"""Builds draft trees from the draft's choices, and verifies them against the target's choices.

The functions have the names and arguments of SGLang's unpublished CPU kernels. SGLang calls them in
sglang/kernels/ops/speculative/spec_tree.py and reconstruct_tree.py, whose Triton kernels define the semantics.

A tree of n nodes is stored as links: each node's first child and next sibling, -1 where there is none. Node 0 is the
root, the last verified token. A parent has a smaller number than its children. SGLang spells "retrieve" as `retrive`.

Invariant: no function loops over requests or tokens. Ancestors at any distance are found by log2(n) doublings.

Letters in shapes: B requests, n nodes per tree.
"""

from __future__ import annotations

from enum import IntEnum

import torch


class MaskMode(IntEnum):
    """The layout of a tree mask (sglang/srt/speculative/spec_utils.py, TreeMaskMode).

    FULL has a column for every key of the request, QUERIES_ONLY one for every node of the tree.
    """

    FULL = 0
    QUERIES_ONLY = 1


def _doublings(nodes: int) -> int:
    """How often a one-step relation must be squared to reach across a tree of so many nodes."""
    return max(nodes - 1, 1).bit_length()


def _child_and_sibling_links(parent: torch.Tensor, has_parent: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The first child and the next sibling of every node, [B, n] each, -1 where there is none.

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
    """[B, n, n] bool: whether node j is node i itself or an ancestor of node i.

    Args:
        parent: [B, n] number of each node's parent; a root is its own parent.
    """
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
    """Link the candidates that the draft selected into a tree. Writes the mask, the positions and the links in place.

    Args:
        parent_list: [B, m] the candidate that each expanded group of `topk` candidates hangs on.
        selected_index: [B, n-1] ascending candidate numbers. Candidate c belongs to group c // topk, and group 0 hangs
            on the root.
        verified_seq_len: [B] tokens before the root.
        tree_mask: flat bool, filled with True by the caller; per request n x n (QUERIES_ONLY) or n x (seq + n) (FULL).
            Written in place.
        positions: [B*n] each node's position in its sequence, written in place.
        retrive_index: [B, n] each node's flat number, written in place.
        retrive_next_token: [B, n] first children, written in place.
        retrive_next_sibling: [B, n] next siblings, written in place.
        topk: candidates per group.
        depth: draft steps; unused, because the links tell the depth.
        draft_token_num: n.
        tree_mask_mode: a :class:`MaskMode`.
    """
    batch, nodes = selected_index.shape[0], draft_token_num
    number = torch.arange(nodes)
    group = selected_index // topk
    parent = torch.zeros(batch, nodes, dtype=torch.long)
    if parent_list.shape[1] > 0:
        hangs_on = parent_list.gather(1, group.clamp(max=parent_list.shape[1] - 1))
        is_parent = selected_index[:, None, :] == hangs_on[:, :, None]
        parent[:, 1:] = torch.where(group > 0, is_parent.int().argmax(2) + 1, 0)
    child, sibling = _child_and_sibling_links(parent, (number > 0).expand(batch, nodes))
    ancestors = _ancestors(parent)
    retrive_index.copy_(torch.arange(batch * nodes).view(batch, nodes))
    retrive_next_token.copy_(child)
    retrive_next_sibling.copy_(sibling)
    positions.copy_((verified_seq_len[:, None] + ancestors.sum(2) - 1).flatten())
    _write_mask(tree_mask, ancestors, verified_seq_len.long(), MaskMode(tree_mask_mode))


def _write_mask(tree_mask: torch.Tensor, ancestors: torch.Tensor, prefix: torch.Tensor, mode: MaskMode) -> None:
    """Write [B, n, n] `ancestors` into the flat mask, behind `prefix` [B] visible columns per row in FULL mode."""
    batch, nodes = ancestors.shape[:2]
    if mode is MaskMode.QUERIES_ONLY:
        tree_mask.view(batch, nodes, nodes).copy_(ancestors)
        return
    number = torch.arange(nodes)
    cells = nodes * (prefix + nodes)
    row = (cells.cumsum(0) - cells)[:, None] + number * (prefix + nodes)[:, None]
    index = row[:, :, None] + prefix[:, None, None] + number
    tree_mask[index.flatten()] = ancestors.flatten().to(tree_mask.dtype)


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
    """Write the positions and the links of trees that are given by their masks, as NGRAM's drafts are.

    Args:
        tree_mask: flat bool, n x n per request; True at [i, j] where j is an ancestor of i, or i itself.
        verified_seq_len: [B] tokens before the root.
        positions: [B*n], written in place.
        retrive_index, retrive_next_token, retrive_next_sibling: B*n entries, written in place.
    """
    nodes = draft_token_num
    number = torch.arange(nodes)
    above = tree_mask.view(batch_size, nodes, nodes).bool() & (number < number[:, None])
    parent = torch.where(above, number, -1).amax(2)
    child = torch.where(above, number[:, None], nodes).amin(1)
    _, sibling = _child_and_sibling_links(parent, parent >= 0)
    positions.copy_((above.sum(2) + verified_seq_len[:, None]).flatten())
    retrive_index.copy_(torch.arange(batch_size * nodes).view(retrive_index.shape))
    retrive_next_token.copy_(torch.where(child < nodes, child, -1).view(retrive_next_token.shape))
    retrive_next_sibling.copy_(sibling.view(retrive_next_sibling.shape))


def _parents(next_token: torch.Tensor, next_sibling: torch.Tensor) -> torch.Tensor:
    """The parent of each node, [B, n]; a node without a parent gets its own number.

    A node's parent is the parent of its eldest sibling, which is the only one that a child link names.

    Args:
        next_token: [B, n] first children, -1 where there is none.
        next_sibling: [B, n] next siblings, -1 where there is none.
    """
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
    """Follow the target's greedy choices down the draft trees. Writes the accepted paths in place.

    A node is accepted when its parent is accepted, its token is the target's choice after the parent, and no elder
    sibling has the same token.

    Args:
        predicts: [B*n] written at accepted nodes only: the target's token after each. The last one is the bonus token.
        accept_index: [B, d] written with the flat numbers of the accepted nodes from the root on; the rest stays -1.
        accept_token_num: [B] written with the number of accepted nodes, the root not counted.
        candidates: [B, n] the tokens of the trees.
        retrive_index: [B, n] flat numbers of the nodes.
        retrive_next_token, retrive_next_sibling: [B, n] links.
        target_predict: [B, n] the target's greedy token after each node.
    """
    if candidates.shape[1] == 1:  # roots alone, as in rounds without proposals
        accept_token_num.zero_()
        accept_index[:, :1] = retrive_index
        predicts[retrive_index.flatten()] = target_predict.flatten().to(predicts.dtype)
        return
    if _are_chains(retrive_next_token, retrive_next_sibling):
        accepted = _accepted_in_chains(candidates, target_predict)
    else:
        accepted = _accepted_in_trees(candidates, retrive_next_token, retrive_next_sibling, target_predict)
    rank = accepted.long().cumsum(1) - 1
    depth = accept_index.shape[1]
    accepted &= rank < depth
    accept_token_num.copy_(accepted.sum(1) - 1)
    request, node = accepted.nonzero(as_tuple=True)
    flat = retrive_index[request, node]
    accept_index[request, rank[request, node]] = flat.to(accept_index.dtype)
    predicts[flat.long()] = target_predict[request, node].to(predicts.dtype)


def _are_chains(next_token: torch.Tensor, next_sibling: torch.Tensor) -> bool:
    """Whether each tree is a chain in the order of its nodes. A few operations find out."""
    nodes = next_token.shape[1]
    in_order = torch.arange(1, nodes + 1)
    in_order[-1] = -1
    return bool((next_token == in_order).all()) and bool((next_sibling == -1).all())


def _accepted_in_chains(candidates: torch.Tensor, target_predict: torch.Tensor) -> torch.Tensor:
    """[B, n] bool: the accepted nodes of chains. Arguments as in :func:`verify_tree_greedy_cpu`."""
    accepted = torch.ones_like(candidates, dtype=torch.bool)
    accepted[:, 1:] = (candidates[:, 1:] == target_predict[:, :-1]).long().cumprod(1).bool()
    return accepted


def _accepted_in_trees(
    candidates: torch.Tensor,
    retrive_next_token: torch.Tensor,
    retrive_next_sibling: torch.Tensor,
    target_predict: torch.Tensor,
) -> torch.Tensor:
    """[B, n] bool: the accepted nodes of any trees. Arguments as in :func:`verify_tree_greedy_cpu`."""
    nodes = candidates.shape[1]
    number = torch.arange(nodes)
    parent = _parents(retrive_next_token.long(), retrive_next_sibling.long())
    accepted = candidates == target_predict.gather(1, parent)
    same_token_as_elder = (parent[:, None, :] == parent[:, :, None]) & (
        candidates[:, None, :] == candidates[:, :, None]
    )
    same_token_as_elder &= (number > 0) & (number < number[:, None])
    accepted &= ~same_token_as_elder.any(2) & (parent != number)
    accepted[:, 0] = True
    above = parent
    for _ in range(_doublings(nodes)):
        accepted = accepted & accepted.gather(1, above)
        above = above.gather(1, above)
    return accepted
