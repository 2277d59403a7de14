"""The command `dnge`."""
