"""Sphinx configuration. Build: ``sphinx-build -W --keep-going -n -b html docs docs/_build/html``."""

from __future__ import annotations

import doctest
import importlib
import inspect
import re

from docutils import nodes
from docutils.statemachine import StringList
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.domains.python import PyObject
from sphinx.ext.autosummary import Autosummary

import selftrain_seg

project = "selftrain_seg"
author = "The selftrain_seg authors"
copyright = f"2026, {author}"
version = release = selftrain_seg.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.doctest",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
exclude_patterns = ["_build", "_generated"]
nitpicky = True
autosummary_generate = False  # tables only: every name has its place on a family page
copybutton_prompt_text = r">>> |\.\.\. "  # of a doctest, copy the code without prompts and results
copybutton_prompt_is_regexp = True
myst_enable_extensions = ["deflist", "dollarmath"]

# Everything a page needs lies beside it: no fonts, scripts or search from elsewhere.
html_theme = "furo"
html_title = f"selftrain_seg {release}"
html_copy_source = False
html_show_sphinx = False
html_static_path = ["_static"]
html_css_files = ["style.css"]
html_math_renderer = "mathml"
pygments_style = "default"
pygments_dark_style = "monokai"

add_module_names = False
autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88

napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
napoleon_custom_sections = ["State / distributed"]

doctest_default_flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE  # as in pyproject.toml
doctest_test_doctest_blocks = "default"

# Other projects' names cannot be looked up offline.
nitpick_ignore_regex = [
    (r"py:.*", r"(torch|torchvision|numpy|np|nn|kornia|PIL|collections|typing|pathlib|os)(\..*)?"),
    (r"py:class", r"(Tensor|Module|Dataset|Generator|Path|Any|Callable|Iterator|Iterable|Sequence|Mapping|optional)"),
    (r"py:class", r"(matplotlib\..*|Figure)"),
    (r"py:class", r"selftrain_seg\..*\._\w+(\.\w+)?"),  # private base classes, and classes of private modules
    (r"py:class", r"([BCHWK]|(float|int|uint)\d+|bool)"),  # "(C,) int64" said of a property
]

# Public names, so that ``name`` in a docstring becomes a link.
PUBLIC = {
    name: f"selftrain_seg.{room}.{name}"
    for room in selftrain_seg._SUBPACKAGES
    for name in getattr(selftrain_seg, room).__all__
    if callable(getattr(getattr(selftrain_seg, room), name)) and not re.fullmatch("[A-Z0-9_]+", name)
}
PUBLIC |= {name: f"selftrain_seg.{name}" for name in ("PseudoLabels", "value_checks")}

SHORT = 24  # characters of code that is kept on one line
MANY = 10  # columns, whose headings are turned
# Methods for torch, torchvision and this library's own modules to call, not for people.
INTERNAL = {"extra_repr", "make_params", "transform", "add_state", "add_sums", "check_home", "check_same", "reduced"}


class PublicNames(Autosummary):
    """A table of a subpackage's functions and classes, each with its first line: ``.. public-names:: losses``."""

    required_arguments = 1

    def run(self):
        room = f"selftrain_seg.{self.arguments[0]}"
        package = importlib.import_module(room)
        found = {name: getattr(package, name) for name in package.__all__}
        names = [name for name, value in found.items() if inspect.isroutine(value) or inspect.isclass(value)]
        self.content = StringList(names, source=room)
        self.options["nosignatures"] = True
        self.env.ref_context["py:module"] = room  # where these names, and those in their first lines, are looked up
        return super().run()


def skip_member(app, what, name, obj, skip, options):
    """Leave out methods for the machinery, and the fields of named tuples: Attributes describes them."""
    if name in INTERNAL or type(obj).__name__ == "_tuplegetter":
        return True
    return skip


def link_names(app, what, name, obj, options, lines):
    """Turn public names in double backticks and arXiv numbers into links.

    And keep napoleon from taking what stands before a colon for a constant's type, and docutils from taking
    "num_classes: C." for a list.
    """
    if what == "data":
        lines[:0] = ["..", ""]
    for number, line in enumerate(lines):
        if not line.lstrip().startswith(">>>"):
            line = re.sub(r"^(\s*\w+): ([A-Z]|\d+)\.$", r"\1: \2\\.", line)
            line = re.sub(r"arXiv[: ](\d{4}\.\d{5})", r"`arXiv:\1 <https://arxiv.org/abs/\1>`__", line)
            lines[number] = re.sub(r"``(?:selftrain_seg\.\w+\.)?(\w+)(?:\(\))?``", _link, line)


def _link(match):
    target = PUBLIC.get(match[1])
    return f":py:obj:`{match[1]} <{target}>`" if target else match[0]


def drop_class_return(app, what, name, obj, options, signature, return_annotation):
    """No ``-> None`` behind the name of a class."""
    if what == "class" and inspect.isclass(obj):
        return signature, None
    return None


def render_math(self, node):
    """Write a formula as MathML, which browsers draw themselves: no script, no font, no network."""
    block = isinstance(node, nodes.math_block)
    tag = "div" if block else "span"
    self.body.append(f'<{tag} class="math">{tex2mathml(node.astext(), as_block=block)}</{tag}>')
    raise nodes.SkipNode


def mark_for_style(app, doctree):
    """Mark what style.css treats: short code and numbers stay on one line, names of tests in tables do not."""
    for literal in doctree.findall(nodes.literal):
        if len(literal.astext()) <= SHORT:
            literal["classes"].append("whole")
    for entry in doctree.findall(nodes.entry):
        if re.fullmatch(r"[-−+±–.,;%/ \d]{1,16}", entry.astext()):
            entry["classes"].append("whole")
    for table in doctree.findall(nodes.table):
        _mark_table(table)


def _mark_table(table):
    heading, *rows = table.findall(nodes.row)
    if len(heading) > MANY:
        table["classes"].append("many")
        return
    if heading[-1].astext().lower() == "test":
        table["classes"] += ["stacked", "tests", f"columns-{len(heading)}"]
        for literal in (literal for row in rows for literal in row[-1].findall(nodes.literal)):
            parts = (part for part in re.split("(?<=::)|(?<=/)", literal.astext()) if part)
            literal[:] = [one for part in parts for one in (nodes.Text(part), nodes.raw("", "<wbr>", format="html"))]
        return
    cells = [entry for row in rows for entry in row]
    if len(heading) > 2 and 3 * sum("whole" in entry["classes"] for entry in cells) < len(cells):
        table["classes"].append("stacked")  # on a phone, where the headings stand in the cells
        for row in rows:
            for name, entry in list(zip(heading, row, strict=False))[1:]:
                if entry.astext() and name.astext():
                    words = [part.deepcopy() for part in name[0]]  # code stays code: of "--root" text makes a dash
                    entry[0].insert(0, nodes.inline("", "", *words, nodes.Text(": "), classes=["heading"]))


def setup(app):
    app.add_html_math_renderer("mathml", inline_renderers=(render_math, None), block_renderers=(render_math, None))
    app.add_directive("public-names", PublicNames)
    for field in PyObject.doc_field_types:
        if field.name == "variable":
            field.label = "Attributes"
    app.connect("autodoc-skip-member", skip_member)
    app.connect("autodoc-process-docstring", link_names, priority=400)  # before napoleon
    app.connect("autodoc-process-signature", drop_class_return)
    app.connect("doctree-read", mark_for_style)
