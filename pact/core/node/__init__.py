"""The decisions of one node: ``step.Node`` on top, its state below, and one file for each verb between them."""
