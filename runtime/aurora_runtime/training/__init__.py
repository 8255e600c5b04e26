"""The trainer: turns traces in the store into candidate drafts in the registry.

From trace to candidate: :mod:`data.shards` reads a shard and :mod:`data.examples` makes examples of its requests.
:mod:`data.batch` collates examples into a batch, over which :mod:`model.unroll` runs the draft. :mod:`optim.batch_loss`
adds up the :mod:`objective.position_losses` of all nodes, and :mod:`optim.session` takes one optimizer step.
:mod:`candidates` compares the result with the last version and registers it. :mod:`loop` drives all of these.

Invariants: held-out requests are never trained on. A shard is part of the weights exactly when the state that holds
those weights lists it. A candidate's files are in the store before its number is taken.
"""
