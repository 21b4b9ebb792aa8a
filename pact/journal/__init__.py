"""The stores of records and contents. One interface, several stores; SQLite is the embedded default."""
