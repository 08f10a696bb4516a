"""The parts of a run, a module each, and what they share to measure by.

A part has one function, `run(options)`, which returns Markdown.
"""
