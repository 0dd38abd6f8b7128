"""A check from anywhere: a module beside settings.ini, a notebook, another package's entry point."""

import json
import subprocess
import sys

import pytest

from finops_nb.checks.base import SqlChecker, installed_checks, load_checker, try_check
from finops_nb.contracts import ConfigError

SOURCE = """
from finops_nb.checks.base import SqlChecker
class TinyVolumes(SqlChecker):
    "Volumes of less than ten GiB"
    checker_id, title, category = 'acme.ebs.tiny_volume', '{resource_id}: {size_gib} GiB', 'governance'
    service, resource_type, savings = 'AmazonEC2', 'ebs_volume', 'null'
    sql = 'select * from ebs_volumes where size_gib < 10'
"""
VOLUMES = [
    dict(account_id='1', region='eu-west-1', resource_id='vol-1', size_gib=9),
    dict(account_id='1', region='eu-west-1', resource_id='vol-2', size_gib=10),
]


def titles(checker):
    return [f.title for f in try_check(checker, ebs_volumes=VOLUMES)]


def test_a_module_on_the_path(tmp_path, monkeypatch):
    (tmp_path / 'acme_module.py').write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    assert titles(load_checker('acme_module:TinyVolumes')) == ['vol-1: 9 GiB']


def test_a_seed_file_in_a_checks_folder_outside_the_package(tmp_path, monkeypatch):
    (tmp_path / 'checks' / 'acme').mkdir(parents=True)
    (tmp_path / 'checks' / 'acme' / 'tiny.py').write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    assert titles(load_checker('checks.acme.tiny:TinyVolumes')) == ['vol-1: 9 GiB']


def test_a_notebook(tmp_path):
    cells = [
        dict(cell_type='markdown', source='# Tiny volumes'),
        dict(cell_type='code', source='raise Exception("an example, not exported")'),
        dict(cell_type='code', source=('#| export\n' + SOURCE).splitlines(keepends=True)),
    ]
    (tmp_path / 'tiny.ipynb').write_text(json.dumps(dict(cells=cells, nbformat=4, nbformat_minor=5, metadata={})))
    assert titles(load_checker(f'{tmp_path}/tiny.ipynb:TinyVolumes')) == ['vol-1: 9 GiB']


def test_an_entry_point_of_another_package(tmp_path):
    (tmp_path / 'acme_package.py').write_text(SOURCE)
    info = tmp_path / 'acme_package-1.0.dist-info'
    info.mkdir()
    (info / 'METADATA').write_text('Metadata-Version: 2.1\nName: acme-package\nVersion: 1.0\n')
    (info / 'entry_points.txt').write_text('[finops_nb.checks]\ntiny = acme_package:TinyVolumes\n')
    def python(code):
        code = f'import sys; sys.path.insert(0, {str(tmp_path)!r}); {code}'
        return subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout

    spec = 'from finops_nb.checks.base import installed_checks; print(installed_checks()["acme.ebs.tiny_volume"])'
    assert python(spec) == 'acme_package:TinyVolumes\n'
    shown = python('from finops_nb.cli import main; main(["checks", "show", "acme.ebs.tiny_volume"])')
    assert 'Volumes of less than ten GiB' in shown


def test_a_module_whose_own_import_is_missing_says_which(tmp_path, monkeypatch):
    (tmp_path / 'acme_broken.py').write_text('import no_such_library\n')
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match='no_such_library'):
        load_checker('acme_broken:X')


def test_what_is_no_checker_is_refused(tmp_path, monkeypatch):
    (tmp_path / 'acme_other.py').write_text('class X: pass\n')
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match='has no checker_id or no run'):
        load_checker('acme_other:X')


def test_every_installed_check_is_listed_by_its_id_and_loads():
    found = installed_checks()
    assert len(found) >= 12 and list(found) == sorted(found)
    for check_id, spec in found.items():
        checker = load_checker(spec)
        assert (
            isinstance(checker, SqlChecker)
            and checker.checker_id == check_id
            and checker.__doc__
            and checker.remediation
        )
