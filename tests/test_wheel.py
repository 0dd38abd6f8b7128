"""The wheel works from an empty folder: everything it needs travels inside, and nothing else."""
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOT_OURS = shutil.ignore_patterns('__pycache__', '.ipynb_checkpoints')
pytestmark = pytest.mark.slow


def run(*command, cwd, **env):
    inherited = {k: v for k, v in os.environ.items() if k not in ('PYTHONPATH', 'IN_TEST')}
    command = [str(part) for part in command]
    done = subprocess.run(command, cwd=cwd, env=inherited | env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    "Built from a copy, so that no build folder and no old file list of the working tree takes part"
    source = tmp_path_factory.mktemp('source')
    for name in ('finops_nb', 'nbs'): shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=NOT_OURS)
    for name in ('pyproject.toml', 'README.md', 'LICENSE', 'NOTICE'): shutil.copy(ROOT / name, source)
    run(sys.executable, '-m', 'build', '--wheel', '--no-isolation', '--outdir', source / 'dist', cwd=source)
    [path] = (source / 'dist').glob('*.whl')
    return path


@pytest.fixture(scope='module')
def inside(wheel):
    with zipfile.ZipFile(wheel) as z: return {name: z.read(name) for name in z.namelist() if not name.endswith('/')}


def test_only_the_package_and_its_licences(inside):
    tops = {name.split('/')[0] for name in inside}
    assert {t for t in tops if not t.endswith('.dist-info')} == {'finops_nb'}
    assert {name.rsplit('/', 1)[1] for name in inside if '/licenses/' in name} == {'LICENSE', 'NOTICE'}


def test_every_file_of_the_package_is_inside(inside):
    ignored = {'__pycache__', '.ipynb_checkpoints'}
    files = (p for p in (ROOT / 'finops_nb').rglob('*') if p.is_file() and not ignored & set(p.parts))
    missing = [str(p.relative_to(ROOT)) for p in files if inside.get(p.relative_to(ROOT).as_posix()) != p.read_bytes()]
    assert missing == []
    for folder in ('templates', 'static', 'data', 'checks/aws'):
        assert any(name.startswith(f'finops_nb/{folder}/') for name in inside), folder


def test_the_run_notebook_travels_as_a_file(inside):
    assert inside['finops_nb/notebooks/run_tenant.ipynb'] == (ROOT / 'nbs' / 'run_tenant.ipynb').read_bytes()


def test_shipped_data_stays_small(inside):
    assert sum(len(data) for name, data in inside.items() if name.startswith('finops_nb/data/')) < 2_000_000


def test_it_runs_from_an_empty_folder(wheel, tmp_path):
    site, empty = tmp_path / 'site', tmp_path / 'empty'
    empty.mkdir()
    run(sys.executable, '-m', 'pip', 'install', '-q', '--no-deps', '--no-index', '--target', site, wheel, cwd=empty)
    where = run(sys.executable, '-c', 'import finops_nb; print(finops_nb.__file__)', cwd=empty, PYTHONPATH=str(site))
    assert Path(where.strip()) == site / 'finops_nb' / '__init__.py'
    command = 'import sys; from finops_nb.cli import main; sys.argv[1:] = ["--help"]; main()'
    told = run(sys.executable, '-c', command, cwd=empty, PYTHONPATH=str(site))
    assert {'run', 'demo', 'serve', 'checks', 'docs'} <= set(told.split())
    assert list(empty.iterdir()) == []
