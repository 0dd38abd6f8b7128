"""What the project promises about itself: two commands that work, pinned versions, notebooks that run as tests."""
import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import duckdb
import pytest

ROOT = Path(__file__).parents[1]


def read(name): return (ROOT / name).read_text(encoding='utf-8')


def normal(name): return re.sub(r'[-_.]+', '-', name).lower()


@pytest.mark.parametrize('label, extra, last', [('demo', 'demo', 'finops-nb demo'), ('test', 'dev', 'pytest -q')])
def test_readme_commands_need_only_python_and_pip(label, extra, last):
    [block] = re.findall(rf'^<!-- {label} -->\n```sh\n(.*?)\n```$', read('README.md'), re.M | re.S)
    command = ' '.join(block.replace('\\\n', ' ').split())
    assert command.split(' && ') == [
        'python3 -m venv .venv', f".venv/bin/pip install -q -c constraints.txt -e '.[{extra}]'", f'.venv/bin/{last}']


def test_ci_runs_the_readme_command(tmp_path):
    "`.ci/run` in a copy where every program only says how it was called"
    shutil.copytree(ROOT / '.ci', tmp_path / '.ci')
    shutil.copy(ROOT / 'README.md', tmp_path)
    for name in ('bin/git', 'bin/chromium', 'bin/chromedriver', 'bin/apt-get', 'bin/python3', 'bin/python3.12',
                 '.focus/bin/pip', '.venv/bin/pip', '.venv/bin/ruff', '.venv/bin/mypy', '.venv/bin/pytest'):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text('#!/bin/bash\necho "$(basename $0)" "$@"\n')
        file.chmod(0o755)
    path = {'PATH': f'{tmp_path}/bin:/usr/bin:/bin'}
    run = subprocess.run([tmp_path / '.ci' / 'run'], env=path, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    said = [line for line in run.stdout.splitlines() if not re.match(r'python3(\.12)? -c|import sys', line)]
    assert said == ['python3 -m venv .venv', 'pip install -q -c constraints.txt -e .[dev]',
                    'python3.12 -m venv .focus', 'pip install -q focus-validator==2.2.1 pyarrow<22',
                    'ruff check', 'mypy', 'pytest -q']


def test_every_dependency_is_pinned():
    project = tomllib.loads(read('pyproject.toml'))['project']
    wanted = [*project['dependencies'], *(d for extra in project['optional-dependencies'].values() for d in extra)]
    names = {normal(re.match(r'[\w.-]+', d)[0]) for d in wanted} - {'finops-nb'}
    pinned = {normal(line.split('==')[0]) for line in read('constraints.txt').splitlines() if line}
    assert names <= pinned, 'run the command in CONTRIBUTING.md'


def test_constraints_are_versions_only():
    lines = read('constraints.txt').splitlines()
    assert [line for line in lines if not re.fullmatch(r'[\w.-]+==[\w.!+]+( ; [^#]+)?', line)] == []


def test_notice_names_every_source_of_a_price():
    sources = duckdb.sql(f"select distinct source from '{ROOT}/finops_nb/data/prices.parquet'").fetchall()
    projects = {m[0] for (source,) in sources if (m := re.match(r'[\w.-]+/[\w.-]+(?=@)', source))}
    assert projects and [p for p in projects if p not in read('NOTICE')] == []


@pytest.fixture
def small(tmp_path):
    "A project with one notebook, collected by our conftest.py"
    for name in ('conftest.py', 'pyproject.toml'): shutil.copy(ROOT / name, tmp_path)
    (tmp_path / 'nbs').mkdir()
    (tmp_path / 'tests').mkdir()
    not_needed = shutil.ignore_patterns('data', 'static', 'notebooks', '__pycache__')
    shutil.copytree(ROOT / 'finops_nb', tmp_path / 'finops_nb', ignore=not_needed)
    shutil.copy(ROOT / 'nbs' / '00_errors.ipynb', tmp_path / 'nbs')
    return tmp_path


def run_pytest(folder, *args):
    command = [sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', *args]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


def edit(path, old, new):
    text = path.read_text(encoding='utf-8')
    assert old in text
    path.write_text(text.replace(old, new), encoding='utf-8')


@pytest.mark.slow
def test_a_notebook_counts_for_coverage_of_its_module(small):
    run = run_pytest(small, '--cov=finops_nb')
    assert '1 passed' in run.stdout
    assert re.search(r'finops_nb/errors.py +12 +1 +92%', run.stdout), run.stdout  # not `__all__`, which is in no cell


@pytest.mark.slow
def test_a_failing_cell_is_shown_with_its_heading_and_both_sides(small):
    edit(small / 'nbs' / '00_errors.ipynb', "['status', 'run_ts'])", "['status', 'run_tz'])")
    run = run_pytest(small)
    assert run.returncode == 1 and '1 failed' in run.stdout
    assert re.search(r'nbs/00_errors.ipynb cell \d+ \(#\w+\), under: ## One record, all its faults', run.stdout)
    assert re.search(r"^> +\d+ test_eq\(e.fields", run.stdout, re.M) and 'run_ts' in run.stdout


@pytest.mark.slow
def test_a_stored_output_that_is_no_longer_true_fails(small):
    path = small / 'nbs' / '00_errors.ipynb'
    nb = json.loads(path.read_text())
    cell = next(c for c in nb['cells'] if c['cell_type'] == 'code' and 'default_exp' not in ''.join(c['source']))
    cell.update(source='6 * 7', outputs=[dict(output_type='execute_result', data={'text/plain': ['42']}, metadata={})])
    nb['cells'] = [cell]
    path.write_text(json.dumps(nb))
    assert '1 passed' in run_pytest(small).stdout
    edit(path, '"42"', '"41"')
    assert "stored output ['41'] is now ['42']; if that is right" in run_pytest(small).stdout


@pytest.mark.slow
def test_a_notebook_that_fails_leaves_the_loggers_to_the_next_test_as_they_were(small):
    path = small / 'nbs' / '00_errors.ipynb'
    nb = json.loads(path.read_text())
    cell = next(c for c in nb['cells'] if c['cell_type'] == 'code' and 'default_exp' not in ''.join(c['source']))
    cell.update(source="import logging\nlogging.disable()\nlogging.getLogger('finops_nb').setLevel('ERROR')\n1 / 0")
    nb['cells'] = [cell]
    path.write_text(json.dumps(nb))
    (small / 'tests' / 'test_warning.py').write_text('''
import logging

def test_a_warning_is_heard(caplog):
    logging.getLogger('finops_nb').warning('heard')
    assert caplog.messages == ['heard']
''')
    assert '1 failed, 1 passed' in run_pytest(small).stdout


@pytest.mark.slow
def test_a_failure_inside_the_package_names_the_module_line(small):
    for path in (small / 'nbs' / '00_errors.ipynb', small / 'finops_nb' / 'errors.py'):
        edit(path, "f['message']", "f['massage']")
    line = 1 + (small / 'finops_nb' / 'errors.py').read_text().splitlines().index(
        "        super().__init__('; '.join(f['massage'] for f in faults))")
    assert f'finops_nb/errors.py", line {line}, in' in run_pytest(small).stdout
