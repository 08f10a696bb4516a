"""Somebody looks at the data.

Owns places in a buffer, what is shown of one, the pictures, and the forms in which they
are shown: a window, a page, a prompt, an image, a clip. Must not know how data is
sampled or saved.

Begin with `modes`, the way in; `session` is what a person does, `scene` what he sees.
"""
