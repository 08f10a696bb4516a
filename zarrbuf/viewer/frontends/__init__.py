"""The viewer's three faces: a window, a page in a browser, a prompt.

Owns what turns keys, clicks and typed words into commands of a session, and shows what
comes of them. Begin with `window`, which the page is built on.
"""
