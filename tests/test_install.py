"The package builds, and works where it is installed: away from this folder"
import shutil, sys, zipfile
import pytest
from conftest import make_venv, root, run

@pytest.fixture(scope='module')
def source(tmp_path_factory):
    "A copy of the files that git knows, or would add"
    dest = tmp_path_factory.mktemp('source')
    fs = run('git', '-c', 'safe.directory=*', 'ls-files', '-z', '--cached', '--others', '--exclude-standard', cwd=root).split('\0')
    for f in filter(None, fs):
        if not (root/f).is_file(): continue
        (dest/f).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root/f, dest/f)
    return dest

@pytest.fixture(scope='module')
def wheel(source, tmp_path_factory):
    "The wheel, built by way of the source distribution, as a release is"
    out = tmp_path_factory.mktemp('dist')
    run(sys.executable, '-m', 'build', '--no-isolation', '--outdir', out, source)
    return next(out.glob('*.whl'))

def install(tmp_path, *what):
    "Install `what` in a new environment; its python"
    py = make_venv(tmp_path/'venv')
    run(sys.executable, '-m', 'pip', '--python', py, 'install', '-q', '--ignore-installed', '--no-deps', '--no-build-isolation',
        '--disable-pip-version-check', *what, cwd=tmp_path)
    return py

_where = 'import fastai_clr; print(fastai_clr.__file__)'
_all_modules = """
import fastai_clr, importlib, pkgutil
for m in pkgutil.iter_modules(fastai_clr.__path__): importlib.import_module(f'fastai_clr.{m.name}')
"""

def test_wheel_contents(wheel):
    fs = set(zipfile.ZipFile(wheel).namelist())
    info = next(o.split('/')[0] for o in fs if o.endswith('.dist-info/METADATA'))
    assert {o.split('/')[0] for o in fs} == {'fastai_clr', info}
    assert {f'fastai_clr/{o.name}' for o in (root/'fastai_clr').glob('*.py')} | {'fastai_clr/py.typed'} == {o for o in fs if o.startswith('fastai_clr/')}
    assert f'{info}/licenses/LICENSE' in fs

@pytest.mark.parametrize('how', ['folder','editable','sdist','wheel'])
def test_installed_it_works_elsewhere(source, wheel, tmp_path, how):
    what = dict(folder=[source], editable=['-e',source], sdist=[*wheel.parent.glob('*.tar.gz')], wheel=[wheel])[how]
    py = install(tmp_path, *what)
    assert run(py, '-c', _where, cwd=tmp_path).startswith(str(source if how=='editable' else tmp_path/'venv'))
    run(py, '-c', _all_modules, cwd=tmp_path)
    assert 'usage: clr_train' in run(tmp_path/'venv/bin/clr_train', '--help', cwd=tmp_path)

def test_bare_python_shares_the_rest(bare_python, tmp_path):
    run(bare_python, '-c', 'import importlib.util as u; assert u.find_spec("torch") and u.find_spec("fastai")', cwd=tmp_path)
