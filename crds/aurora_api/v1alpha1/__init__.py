"""Version ``v1alpha1`` of the resource: one module per section of ``spec``, then ``status`` and ``conditions``."""
