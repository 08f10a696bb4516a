"""Look through a replay buffer, with the flags and keys of RLinf's visualizer.

The same as `zarrbuf view`, which has more options.
"""

from zarrbuf.cli.rlinf_scripts import visualize

if __name__ == "__main__":
    visualize()
