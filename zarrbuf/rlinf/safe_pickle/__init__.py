"""Pickles that can only make data.

Owns a stack machine with the opcodes that data needs and no other, the few names that
may be called, and torch's old layout of tensors. Nothing that is read here ever runs.

Begin with `allowlist`, which says what is let through; `machine` does it.
"""
