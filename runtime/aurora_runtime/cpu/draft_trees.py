"""Links the draft's choices to chains and NGRAM's to trees, and verifies both against the target's choices.

The functions have the names and arguments of SGLang's unpublished CPU kernels. SGLang calls them in
sglang/kernels/ops/speculative/spec_tree.py and reconstruct_tree.py, whose Triton kernels define the semantics.

A tree of n nodes is stored as links: each node's first child and next sibling, -1 where there is none. Node 0 is the
root, the last verified token. A parent has a smaller number than its children. SGLang spells "retrieve" as `retrive`.

Invariant: no function loops over requests or tokens. Ancestors at any distance are found by log2(n) doublings.

Letters in shapes: B requests, n nodes per tree.
"""

from __future__ import annotations

import torch

_QUERIES_ONLY = 1
"""The layout of a tree mask on a CPU: a column for every node of the tree (SGLang's ``TreeMaskMode.QLEN_ONLY``)."""


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
    """Link the draft's tokens to a chain. Writes the mask, the positions and the links in place.

    Raises :class:`NotImplementedError` for a draft with several branches: SGLang's adaptive speculation has one.

    Args:
        parent_list, selected_index: unused, because a chain has one order.
        verified_seq_len: [B] tokens before the root.
        tree_mask: flat bool, n x n per request.
        positions: [B*n] each node's position in its sequence.
        retrive_index: [B, n] each node's flat number.
        retrive_next_token: [B, n] first children.
        retrive_next_sibling: [B, n] next siblings.
        topk: candidates per group.
        depth: draft steps; unused.
        draft_token_num: n.
        tree_mask_mode: SGLang's ``TreeMaskMode``.
    """
    if topk != 1 or tree_mask_mode != _QUERIES_ONLY:
        raise NotImplementedError("the CPU engine builds no draft trees: use --speculative-eagle-topk 1")
    number = torch.arange(draft_token_num)
    tree_mask.view(-1, draft_token_num, draft_token_num).copy_(number <= number[:, None])
    positions.copy_((verified_seq_len[:, None] + number).flatten())
    retrive_index.copy_(torch.arange(retrive_index.numel()).view(retrive_index.shape))
    retrive_next_token.copy_(torch.where(number + 1 < draft_token_num, number + 1, -1).expand_as(retrive_next_token))
    retrive_next_sibling.fill_(-1)


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
