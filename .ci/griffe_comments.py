"""For the API reference: a field's comment is its documentation (extension of griffe).

Fields of our NamedTuples and dataclasses say their shapes and units in a comment behind them.
"""

import re

import griffe


class Comments(griffe.Extension):
    """Takes `name: type = value  # comment` for a docstring of `name`."""

    def on_attribute_instance(self, *, attr, **_):
        if attr.docstring is None and attr.lineno is not None:
            line = attr.lines_collection[attr.filepath][(attr.endlineno or attr.lineno) - 1]
            comment = re.search(r"\s# (?!noqa)(.+)", line)
            if comment:
                attr.docstring = griffe.Docstring(comment.group(1), parent=attr)
