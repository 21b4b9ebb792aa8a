"""Where records and contents are kept. One interface, several stores; SQLite is the embedded default."""
