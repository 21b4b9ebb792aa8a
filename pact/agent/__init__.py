"""The node daemon: the thin shell around the core. Everything here touches the world."""
