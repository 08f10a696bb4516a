"""The commands: one call of the package each, then text or JSON and an exit code.

Owns options, messages and how things look on a terminal. Has no algorithm: whatever a
command does, Python can do by one public name.

Begin with `main`.
"""
