"""Tools for work on this software, in the checkout alone: nothing here is needed to train, and no wheel has it."""
