"""The list of trajectories, kept as a log of commits.

Owns what a commit says, how commits add up to a snapshot, how two writers exclude each
other, and how the list is read again quickly: log checkpoints and segments. Must not
know trajectories: a row names the archive of one, and that is all.

Begin with `actions` (what one commit says), then `snapshot` (what they add up to) and
`commit_log` (where they lie).
"""
