"""The rollout: facts, then a judgement, then a transition. Pure."""
