"""RLinf's command `python rlinf/data/replay_buffer.py`, over our sampler.

    python -m zarrbuf.replay_buffer --load-path DIR [--num-chunks 1024]
        [--sample-window-size 10] [--cache-size 5] [--enable-cache]

RLinf's flags and defaults; `zarrbuf sample` is the same with defaults of ours.
"""

from zarrbuf.cli.rlinf_scripts import sample

if __name__ == "__main__":
    sample(name="python -m zarrbuf.replay_buffer")
