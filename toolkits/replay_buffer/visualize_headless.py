"""Look through a replay buffer at a prompt, with the words of RLinf's script.

The same as `zarrbuf view --headless`.
"""

from zarrbuf.cli.rlinf_scripts import visualize_headless

if __name__ == "__main__":
    visualize_headless()
