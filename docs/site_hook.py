"""What the site has besides the pages in docs/, as a hook of mkdocs.

Pages generated from the code: settings, kernels, and the API from docstrings. Files of the repository that a page links
to, so that its relative links work in the site as they do in the repository. Formulas as MathML, which browsers draw
without a script.
"""

import ast
import dataclasses
import html
import inspect
import os
import re
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.structure.files import File

from icnn import config
from minicnn.kernels.signatures import SIGNATURES

DOCS = Path(__file__).parent
ROOT = DOCS.parent
LANGUAGES = {".py": "python", ".cu": "cuda", ".cuh": "cuda", ".toml": "toml", ".yml": "yaml"}
LINK = re.compile(r"\]\((?![a-z]+:)([^)\s#]+)(#[^)\s]*)?\)")
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)

#: Pages of the API -> what they describe.
API = {
    "icnn": [
        "icnn.parse.parser.FaceParser", "icnn.parse.results", "icnn.model.network.icnn_graph", "icnn.model.pipeline",
        "icnn.model.centres", "icnn.model.patches", "icnn.model.modulation", "icnn.evaluate.metrics",
        "icnn.data.folder", "icnn.synthetic.faces", "icnn.stages", "icnn.classes",
    ],
    "minicnn": [
        "minicnn.graph", "minicnn.layers", "minicnn.plan", "minicnn.planner", "minicnn.sgd", "minicnn.gradcheck",
        "minicnn.checkpoint", "minicnn.distributed", "minicnn.kernels",
    ],
}  # fmt: skip

#: Where the text of each page lies, by its place in the site.
SOURCES: dict[str, Path] = {}


def on_files(files, config):
    """Add the generated pages, and the files of the repository that pages link to."""
    generated = {"settings": settings_page(), "kernels": kernels_page()}
    generated |= {name: f"# {name}\n\n" + "\n\n".join(f"::: {one}" for one in names) for name, names in API.items()}
    for name, text in generated.items():
        files.append(File.generated(config, f"generated/{name}.md", content=text))
    SOURCES.update({file.src_uri: DOCS / file.src_uri for file in files.documentation_pages()})
    pending = [page for page in SOURCES.values() if page.is_file()]
    while pending:
        for target in linked(pending.pop()):
            place = place_of(target)
            if place not in SOURCES and target.is_file() and not target.is_relative_to(DOCS):
                SOURCES[place] = target
                files.append(File.generated(config, place, content=text_of(target)))
                pending += [target] * (target.suffix == ".md")
    return files


def linked(page):
    """Return the files of the repository that a page links to."""
    targets = (Path(os.path.normpath(page.parent / link)) for link, _ in LINK.findall(page.read_text()))
    return [target for target in targets if target.is_relative_to(ROOT)]


def place_of(path):
    """Return the place in the site of a file of the repository."""
    if path.is_relative_to(DOCS):
        return path.relative_to(DOCS).as_posix()
    return f"repository/{path.relative_to(ROOT).as_posix()}{'' if path.suffix == '.md' else '.md'}"


def text_of(path):
    """Return the page that shows a file: Markdown as it is, a source as one block of code that searches leave out."""
    if path.suffix == ".md":
        return path.read_text()
    name, language = path.relative_to(ROOT).as_posix(), LANGUAGES.get(path.suffix, "text")
    return f"---\nsearch: {{exclude: true}}\n---\n# {name}\n\n~~~~{language}\n{path.read_text()}\n~~~~\n"


def on_page_markdown(markdown, page, config, files):
    """Point links at the site's places of the files that they name in the repository."""
    source, here = SOURCES[page.file.src_uri], Path(page.file.src_uri).parent
    if source.suffix != ".md" or not source.is_file():
        return markdown

    def moved(match):
        target = Path(os.path.normpath(source.parent / match[1]))
        if not target.is_file() or not target.is_relative_to(ROOT):
            return match[0]
        return f"]({Path(os.path.relpath(place_of(target), here)).as_posix()}{match[2] or ''})"

    return LINK.sub(moved, markdown)


def on_page_content(content, page, config, files):
    """Turn formulas into MathML."""

    def drawn(match):
        return convert(html.unescape(match[2]).strip(), display="block" if match[1] == "div" else "inline")

    return FORMULA.sub(drawn, content)


def settings_page():
    """Describe every setting from its field in icnn/config.py and the comment above it."""
    source = inspect.getsource(config)
    lines = source.splitlines()
    classes = {node.name: node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)}
    text = [
        "# Settings",
        "Given by `--set KEY=VALUE` or in a TOML file (`--config`); `train.*` and `augment.*` also for one network, as "
        "`eye.train.lr`. The defaults are those of icnn/config.py, which recipes change.",
    ]
    for field in [None, *dataclasses.fields(config.Config)]:
        section = type(config.Config() if field is None else getattr(config.Config(), field.name))
        if not dataclasses.is_dataclass(section):
            continue
        node, prefix = classes[section.__name__], "" if field is None else f"{field.name}."
        places = {entry.target.id: entry.lineno - 1 for entry in node.body if isinstance(entry, ast.AnnAssign)}
        rows = ["| setting | default | allowed | |", "|---|---|---|---|"]
        for one in dataclasses.fields(section):
            if one.metadata:
                rows.append(f"| `{prefix}{one.name}` | {described(one)} | {comment_above(lines, places[one.name])} |")
        text += [f"## {prefix.rstrip('.') or 'run'}", ast.get_docstring(node).split("\n")[0], "\n".join(rows)]
    return "\n\n".join(text)


def described(field):
    """Return default and allowed values of a setting, as two cells of a table."""
    limits = field.metadata
    default = list(field.default) if isinstance(field.default, tuple) else field.default
    allowed = ", ".join(limits["choices"])
    if limits["least"] is not None:
        allowed = f"{limits['least']:g} to {limits['most']:g}"
    return f"`{default!r}` | {allowed}"


def comment_above(lines, place):
    """Return the text of the comment, marked by #:, right above a line."""
    comment = []
    while lines[place - 1].strip().startswith("#:"):
        place -= 1
        comment.insert(0, lines[place].strip().removeprefix("#:").strip())
    return " ".join(comment)


def kernels_page():
    """Describe every kernel from the signature table, minicnn/kernels/signatures.py."""
    text = ["# Kernels", "The functions that a backend consists of, with the same arguments in each."]
    for name, signature in SIGNATURES.items():
        rows = ["| argument | role | shape | type |", "|---|---|---|---|"]
        rows += [f"| `{a.name}` | {a.role} | {' '.join(a.shape)} | {a.dtype} |" for a in signature.arguments]
        text += [f"## {name}", html.escape(signature.doc, quote=False), "\n".join(rows)]
    return "\n\n".join(text)
