"""The manual as a whole: every page is there, and every link on it leads somewhere inside."""
import re
from html import unescape
from pathlib import Path
from urllib.parse import unquote

import pytest

from finops_nb.docs import build_docs, read_pages, reference_pages

NOTEBOOKS = Path(__file__).parents[1] / 'nbs'
pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp('docs') / 'site'
    written = build_docs(NOTEBOOKS, folder)
    pages = {p.relative_to(folder).as_posix(): p.read_text(encoding='utf-8') for p in folder.rglob('*.html')}
    assert len(pages) == written, 'two notebooks have one address: their names differ only in the number'
    return pages


def test_every_notebook_is_a_page(site):
    assert {p.url for p in read_pages(NOTEBOOKS) + reference_pages()} == site.keys()


def test_every_link_leads_to_a_page_and_a_place_on_it(site):
    places = {name: {unescape(i) for i in re.findall(r' id="([^"]+)"', text)} for name, text in site.items()}
    dead = []
    for name, text in site.items():
        for link in re.findall(r'<a [^>]*href="([^"]+)"', text):
            if re.match(r'https?:', link): continue
            path, _, place = unquote(unescape(link)).partition('#')
            target = (Path('/', name).parent / path).resolve().relative_to('/').as_posix() if path else name
            if target not in places or (place and place not in places[target]): dead.append(f'{name}: {link}')
    assert dead == []


def test_nothing_is_loaded_from_elsewhere(site):
    loads = re.compile(r'<script|<(?:link|img|iframe)[^>]+(?:href|src)="(?:https?:)?//')
    assert [name for name, text in site.items() if loads.search(text)] == []
