"""What travels between nodes, aggregators and roots, and what each member of the tree does with it. No socket."""
