"""The command line, `aitk`."""
