"""What a person decides, as patches of the resource. Pure: a speculator and a decision give a change, or a refusal."""
