"""The wire: how processes talk to the manager. PROTOCOL.md beside this file is its specification."""
