"""The local launcher: every role of a run as a process of this machine."""
