"""Notebooks as tests: each page under nbs/ is one pytest item, run in this process by nbdev's own choice of cells.

Exported cells are compiled under the name and line numbers of the module they land in, so coverage and tracebacks speak
of `finops_nb/*.py`; the other cells get pytest's assertion rewriting. Two private parts carry this, both pinned by
constraints.txt: `_pytest.assertion.rewrite.rewrite_asserts` and the compile cache of IPython's shell."""
from __future__ import annotations

import ast
import contextlib
import gc
import linecache
import logging
import os
import re
import sys
import traceback
from pathlib import Path

import pytest
from _pytest.assertion.rewrite import rewrite_asserts

ROOT = Path(__file__).parent
NOTEBOOKS = ROOT / 'nbs'
CELL_HEADER = re.compile(r'^# %% (\S+\.ipynb) #(\S+)$')
SHELL_FRAMES = 'site-packages/IPython', 'site-packages/execnb'


def exported_cells(lib: Path) -> dict[tuple[Path, str], tuple[Path, int]]:
    "(notebook, cell id) -> (module file, first line) of every exported cell below `lib`"
    cells = {}
    for module in sorted(lib.rglob('*.py')):
        for number, line in enumerate(module.read_text(encoding='utf-8').splitlines(), 1):
            if m := CELL_HEADER.match(line): cells[(module.parent / m[1]).resolve(), m[2]] = (module, number + 1)
    return cells


def pytest_collect_file(file_path: Path, parent):
    if file_path.suffix != '.ipynb' or NOTEBOOKS not in file_path.parents: return None
    if any(part.startswith(('_', '.')) for part in file_path.relative_to(NOTEBOOKS).parts): return None
    return NotebookFile.from_parent(parent, path=file_path)


class NotebookFile(pytest.File):
    def collect(self): yield NotebookItem.from_parent(self, name='notebook')


class CellFailure(Exception):
    def __init__(self, exc, cell, number, heading):
        super().__init__(str(exc))
        self.exc, self.cell, self.number, self.heading = exc, cell, number, heading


class Locate(ast.NodeTransformer):
    "Puts an exported cell on its module's lines, and rewrites the assertions of every other cell"
    def __init__(self, path, config): self.path, self.config, self.cell, self.where = path, config, None, None

    def visit_Module(self, node):
        if self.where: ast.increment_lineno(node, self.where[1] - 1 - len(self.cell._partition()[0]))
        elif any(isinstance(o, ast.Assert) for o in ast.walk(node)):
            rewrite_asserts(node, self.cell.source.encode(), str(self.path), self.config)
        return node

    def file_name(self, code, number=0, raw_code=None):
        "Stands in for IPython's compile cache: the file a cell claims to come from"
        if self.where: return str(self.where[0])
        name = f'{self.path.relative_to(ROOT)}#{self.cell.id}'
        linecache.cache[name] = (len(code), None, [f'{line}\n' for line in code.splitlines()], name)
        return name


def logging_state():
    loggers = [logging.root, *(o for o in logging.root.manager.loggerDict.values() if isinstance(o, logging.Logger))]
    return {logger: (tuple(logger.handlers), logger.level) for logger in loggers}


@contextlib.contextmanager
def as_notebook(path: Path):
    "Folder, import path, environment and loggers of a notebook; all are put back, as notebooks share the process"
    saved_path, saved_env, saved_logging = sys.path[:], dict(os.environ), logging_state()
    disabled = logging.root.manager.disable
    os.environ['IN_TEST'] = '1'
    os.environ.setdefault('MPLBACKEND', 'module://matplotlib_inline.backend_inline')
    sys.path[:0] = [str(path.parent), str(ROOT)]
    try:
        with contextlib.chdir(path.parent): yield
    finally:
        sys.path[:] = saved_path
        os.environ.clear()
        os.environ.update(saved_env)
        for logger in logging_state():
            handlers, level = saved_logging.get(logger, ((), logging.NOTSET))
            logger.handlers = list(handlers)
            logger.setLevel(level)
        logging.disable(disabled)  # a notebook that failed halfway has not switched it on again


def shown(outputs) -> list[str]:
    "What outputs say as text; pictures and streams are left out"
    data = [o.get('data', {}) for o in outputs if o['output_type'] in ('execute_result', 'display_data')]
    return [''.join(d.get('text/markdown') or d.get('text/plain') or '') for d in data]


class NotebookItem(pytest.Item):
    def runtest(self):
        from execnb.shell import CaptureShell
        from fastcore.nbio import read_nb
        from nbdev.config import get_config
        from nbdev.test import nb_test_cells
        cfg = get_config(self.path.parent)
        to_run = {c.id for c in nb_test_cells(self.path, cfg.tst_flags.split())}
        exported = exported_cells(cfg.lib_path)
        locate, heading = Locate(self.path, self.config), ''
        shell = CaptureShell(profile=False, mpl_format=None)
        shell.compile.cache = locate.file_name
        shell.ast_transformers.append(locate)
        try:
            with as_notebook(self.path):
                for number, cell in enumerate(read_nb(self.path).cells):
                    if cell.cell_type == 'markdown':
                        heading = next((line for line in cell.source.splitlines() if line.startswith('#')), heading)
                    if cell.id not in to_run: continue
                    locate.cell, locate.where = cell, exported.get((self.path.resolve(), cell.id))
                    now, stored = shell.run(cell.source), cell.get('outputs') or []
                    for out in now:
                        if out['output_type'] == 'stream': sys.stdout.write(''.join(out['text']))
                    if not shell.exc and stored and shown(stored) != shown(now):
                        text = f'stored output {shown(stored)} is now {shown(now)}; if that is right, refresh it: '
                        shell.exc = AssertionError(f'{text}nbdev-test --path {self.path.relative_to(ROOT)} --save')
                    if shell.exc: raise CellFailure(shell.exc, cell, number, heading) from shell.exc
        finally:
            shell.close()
            shell.loop.close()
            shell.user_ns.clear()
            gc.collect()  # what a notebook left open is reported under its name, not in a later test

    def repr_failure(self, excinfo, style=None):
        e = excinfo.value
        if not isinstance(e, CellFailure): return super().repr_failure(excinfo, style=style)
        stack = traceback.extract_tb(e.exc.__traceback__)
        frames = [f for f in stack if not any(o in f.filename for o in SHELL_FRAMES)]
        marked = {f.lineno for f in frames if f.filename.endswith(f'#{e.cell.id}')}
        lines = enumerate(e.cell.source.splitlines(), 1)
        source = '\n'.join(f"{'>' if n in marked else ' '} {n:3} {line}" for n, line in lines)
        return (f'{self.path.relative_to(ROOT)} cell {e.number} (#{e.cell.id}), under: {e.heading}\n{source}\n\n'
                f"{''.join(traceback.format_list(frames))}{type(e.exc).__name__}: {e.exc}")

    def reportinfo(self): return self.path, 0, str(self.path.relative_to(ROOT))
