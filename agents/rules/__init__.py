"""Published rules for the batch size, one a file; `rlbatch.policy.registry` knows their names.

They keep their published constants. What was stated per optimizer step is restated per chunk (the
steps between two decisions), and each rule's docstring says how. Limits on the batch size are left
to the wrappers in `rlbatch.policy`.
"""
