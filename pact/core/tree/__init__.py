"""The messages between nodes, aggregators and roots, and what each member of the tree does with them. No socket."""
