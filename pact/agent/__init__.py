"""The node daemon: the thin shell around the core. All code that touches the machine is here."""
