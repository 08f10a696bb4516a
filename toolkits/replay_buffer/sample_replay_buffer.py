"""Draw one batch from a replay buffer, with the flags of RLinf's script.

The same as `zarrbuf sample`; only the options that RLinf's script has.
"""

from zarrbuf.cli.rlinf_scripts import sample

if __name__ == "__main__":
    sample()
