"""Figures -> Markdown."""
