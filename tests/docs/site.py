"""Check a built site: its pages need no network, its links lead to existing places, its search finds all public names.

CI runs ``python -m tests.docs.site <folder>`` after the build.
"""

import json
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote, urlsplit

import pyrovae as pv

LOADED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href"}  # tags that load a file
NOT_LOADED = {"canonical", "author", "next", "prev", "index", "search", "license"}  # relations of links to other pages


class Page(HTMLParser):
    """Anchors, links and loaded files of one page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collect the anchor, the link or the loaded file of a tag."""
        values = {name: value or "" for name, value in attrs}
        self.anchors.update(values[name] for name in ("id", "name") if name in values)
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        if LOADED.get(tag) in values and values.get("rel") not in NOT_LOADED:
            self.loaded.append(values[LOADED[tag]])


def public_names() -> set[str]:
    """Return the full names of all public classes and functions."""
    names = set(pv.__all__)
    modules = {name: getattr(pv, name) for name in names if isinstance(getattr(pv, name), ModuleType)}
    parts = {
        f"pyrovae.{name}.{part}" for name, module in modules.items() for part in set(module.__all__) - names
    }  # BayesianVAE is a name of pyrovae and of pyrovae.bayesian, and has one page
    return parts | {f"pyrovae.{name}" for name in names - modules.keys()}


def searchable_names(site: Path) -> set[str]:
    """Return the full names of all objects in the search index."""
    text = (site / "searchindex.js").read_text()
    objects = json.loads(text[text.index("{") : text.rindex("}") + 1])["objects"]
    return {f"{prefix}.{entry[4]}" for prefix, entries in objects.items() for entry in entries}


def faults(site: Path) -> list[str]:
    """Return the files that pages load from a network, and the links without a target, each with its page."""
    pages = {path.resolve(): Page(path.read_text()) for path in sorted(site.rglob("*.html"))}
    found = []
    for path, page in pages.items():
        name = path.relative_to(site.resolve())
        found += [f"{name} loads {url}" for url in page.loaded if urlsplit(url).netloc]
        for link in (*page.links, *page.loaded):
            url = urlsplit(link)
            if url.scheme or url.netloc:
                continue
            target = (path.parent / unquote(url.path)).resolve() if url.path else path
            # Sphinx itself writes the links from listings of source code, and mistakes the module of some anchors.
            has_anchors = name.parts[0] != "_modules" and target in pages
            lost = url.fragment and has_anchors and unquote(url.fragment) not in pages[target].anchors
            if lost or not target.exists():
                found.append(f"{name} links to {link}")
    return found


def main(site: Path) -> int:
    """Print what is wrong with a site, and return the number of faults."""
    found = faults(site) + [f"search does not find {name}" for name in sorted(public_names() - searchable_names(site))]
    print("\n".join(found))
    return len(found)


if __name__ == "__main__":
    sys.exit(min(main(Path(sys.argv[1])), 1))
