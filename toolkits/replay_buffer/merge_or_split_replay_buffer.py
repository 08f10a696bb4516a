"""Merge the rank_* folders below a directory, or split one, with RLinf's flags.

    merge_or_split_replay_buffer.py --source-path DIR --save-path DEST [--copy] [--move]
    merge_or_split_replay_buffer.py --source-path DIR --save-path DEST --split-count N

The same as `zarrbuf merge` and `zarrbuf split`. RLinf's script moves files unless told
to copy; this one takes nothing away unless told to move.
"""

from zarrbuf.cli.rlinf_scripts import merge_or_split

if __name__ == "__main__":
    merge_or_split(prog_name="merge_or_split_replay_buffer.py")
