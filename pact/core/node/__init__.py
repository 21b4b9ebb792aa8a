"""What one node decides: ``step.Node`` on top, its state below, a file for each verb between them."""
