"""Tools for developers, in the checkout only: nothing here is needed to train, and wheels leave it out."""
