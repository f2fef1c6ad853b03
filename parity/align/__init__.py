"""Which value of the port is which of the reference."""
