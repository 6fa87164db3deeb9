"""The documentation as a site, and its pages that are made from the code."""
