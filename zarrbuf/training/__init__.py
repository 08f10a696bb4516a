"""Batches for a learner.

Owns RLinf's datasets over buffers: batches drawn ahead by a thread, and two buffers
mixed in one batch. Must not know stores or archives.

Begin with `datasets`, the face.
"""
