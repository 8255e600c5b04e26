"""What a draft file must fit before it is loaded, and what the engine reports of it afterwards.

``draft_report`` runs in the agent. SGLang's scheduler imports ``tensor_destinations`` and ``loaded_digest``, which need
torch.
"""
