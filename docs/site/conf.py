"""Sphinx's settings: `make docs`."""

import html
import logging
import os
import warnings

from docutils import nodes
from docutils.parsers.rst import Directive

warnings.simplefilter("ignore")
logging.disable(logging.INFO)
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

project, author, language = "torchrec_mtl", "torchrec_mtl contributors", "en"
project_copyright = author
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme, html_title = "furo", "torchrec_mtl"
html_static_path, html_css_files = ["static", "../../.venv/mermaid.js"], ["site.css"]
html_js_files = ["mermaid.js", "start.js"]
html_extra_path = ["../../build/docs-files"]
html_show_sphinx = html_show_copyright = html_copy_source = html_use_index = False
highlight_language = "text"
myst_heading_anchors = 4
myst_fence_as_directive = ["mermaid"]
default_role = "literal"  # docstrings write `name`
autodoc_typehints, autodoc_typehints_description_target = "description", "documented"
autodoc_member_order, autodoc_preserve_defaults = "groupwise", True
napoleon_numpy_docstring, napoleon_use_rtype, napoleon_use_admonition_for_examples = False, False, False
add_module_names = python_use_unqualified_type_names = False


class Mermaid(Directive):
    """A chart, which the page's script draws."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        chart = html.escape("\n".join(self.content))
        return [nodes.raw("", f'<pre class="mermaid">{chart}</pre>', format="html")]


def setup(app: object) -> None:
    app.add_directive("mermaid", Mermaid)  # type: ignore[attr-defined]
