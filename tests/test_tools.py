"`tools/install.py`: the sentences for what goes wrong on a new machine"
import importlib.util, os, shutil, subprocess, sys
import pytest
from conftest import make_venv, root

spec = importlib.util.spec_from_file_location('install', root/'tools/install.py')
install = importlib.util.module_from_spec(spec)
spec.loader.exec_module(install)

def sentence(f, *args, **kw):
    "What `f` says as it stops: a single line"
    with pytest.raises(SystemExit) as e: f(*args, **kw)
    assert isinstance(e.value.code, str) and '\n' not in e.value.code
    return e.value.code

@pytest.mark.parametrize('version', [(2,7,18), (3,6,15), (3,9)])
def test_old_python(version):
    s = sentence(install.check_python, version, 'make demo')
    assert '3.10 or newer' in s and '.'.join(map(str, version)) in s and 'make demo PYTHON=python3.12' in s

@pytest.mark.parametrize('version', [(3,10), (3,10,13), sys.version_info, (4,0)])
def test_new_python(version): assert install.check_python(version) is None

def test_disk():
    s = sentence(install.check_disk, 3.21e9, 'make test', need_gb=7)
    assert '7 GB' in s and '3.2 GB' in s and 'make test' in s
    assert install.check_disk(7e9, need_gb=7) is None

def test_pip():
    assert 'disk is full' in sentence(install.check_pip, 1, True)
    assert 'last lines' in sentence(install.check_pip, 1, False)
    assert install.check_pip(0, True) is None

def test_run_notices_a_full_disk(capfd):
    say = 'import sys; print("Requirement already satisfied: x"); print("news"); sys.exit("ERROR: [Errno 28] No space left on device")'
    assert install.run([sys.executable, '-c', say]) == (1, True)
    assert install.run([sys.executable, '-c', 'print(1)']) == (0, False)
    out = capfd.readouterr().out
    assert 'news' in out and 'satisfied' not in out

def test_drop_half_made(tmp_path):
    for o in 'whole','cut': (tmp_path/f'{o}-1.dist-info').mkdir()
    (tmp_path/'whole-1.dist-info/RECORD').touch()
    assert install.drop_half_made(tmp_path) == ['cut-1.dist-info']
    assert [o.name for o in tmp_path.iterdir()] == ['whole-1.dist-info']

def test_broken_venv(tmp_path, monkeypatch):
    monkeypatch.setattr(install, 'VENV', str(tmp_path))
    assert 'delete the folder .venv' in sentence(install.make_venv, str(tmp_path/'bin/python'), 'make demo')

def test_venv_made_with_an_old_python(tmp_path, monkeypatch):
    py = tmp_path/'python'
    py.write_text('#!/bin/sh\necho "(3, 8)"\n')
    py.chmod(0o755)
    monkeypatch.setattr(install, 'VENV', str(tmp_path))
    assert 'made with Python 3.8' in sentence(install.make_venv, str(py), 'make demo')

def test_venv_fails(tmp_path, monkeypatch):
    monkeypatch.setattr(install, 'VENV', str(tmp_path/'.venv'))
    monkeypatch.setattr(install.sys, 'executable', shutil.which('false'))
    assert 'python3-venv' in sentence(install.make_venv, 'python', 'make demo')

def make(*args, cwd=root):
    "Run make, away from the make that may be running the tests"
    env = {k:v for k,v in os.environ.items() if not k.startswith(('MAKE','MFLAGS'))}
    return subprocess.run(['make', *args], cwd=cwd, capture_output=True, text=True, env=env)

@pytest.fixture
def checkout(tmp_path):
    "A folder with what make needs"
    for o in ('Makefile', 'settings.ini', 'setup.py', 'pyproject.toml', 'fastai_clr/__init__.py', 'tools/install.py'):
        (tmp_path/o).parent.mkdir(exist_ok=True)
        shutil.copy(root/o, tmp_path/o)
    return tmp_path

def test_make_lists_its_goals():
    out = make().stdout
    assert all(f'make {o} ' in out for o in ('demo', 'test', 'docs', 'clean'))

def test_make_without_python(checkout):
    p = make('demo', 'PYTHON=no-such-python', cwd=checkout)
    assert p.returncode and 'There is no no-such-python here' in p.stderr

def test_make_installs_once(checkout):
    "A stand-in for python makes the stamp: the next make leaves it alone, until a fact changes"
    py = checkout/'python'
    py.write_text('#!/bin/sh\nmkdir -p .venv && echo $2 >> log && touch .venv/.installed-$2\n')
    py.chmod(0o755)
    goal = '.venv/.installed-demo'
    def n():
        assert not make(goal, f'PYTHON={py}', cwd=checkout).returncode
        return len((checkout/'log').read_text().split())
    assert n()==1 and n()==1
    st = (checkout/goal).stat().st_mtime
    os.utime(checkout/'settings.ini', (st+5, st+5))
    assert n()==2

def test_little_disk(tiny_disk, tmp_path):
    for o in ('tools/install.py', 'settings.ini'):
        (tiny_disk/o).parent.mkdir(exist_ok=True)
        shutil.copy(root/o, tiny_disk/o)
    p = subprocess.run([sys.executable, tiny_disk/'tools/install.py', 'demo'], capture_output=True, text=True)
    assert p.returncode==1 and p.stderr.startswith('Not enough disk space') and p.stderr.count('\n')==1
    assert not (tiny_disk/'.venv').exists()

def test_full_disk(checkout, tiny_disk, monkeypatch):
    "pip itself, on a disk which is full: torch is there already, so that only pip can notice"
    make_venv(checkout/'.venv')
    (checkout/'README.md').touch()
    info = next((checkout/'.venv').glob('lib/python*/site-packages'))/'torch-1.dist-info'
    info.mkdir()
    for o in info/'RECORD', checkout/'.venv/.installed-dev': o.touch()
    (tiny_disk/'filling').write_bytes(bytes(shutil.disk_usage(tiny_disk).free - 2**14))
    for k,v in dict(TMPDIR=tiny_disk, PIP_NO_DEPS=1, PIP_NO_BUILD_ISOLATION=0).items(): monkeypatch.setenv(k, str(v))
    p = subprocess.run([sys.executable, checkout/'tools/install.py', 'dev'], capture_output=True, text=True)
    assert p.returncode==1 and 'No space left' in p.stdout
    assert p.stderr.startswith('The disk is full') and 'make test' in p.stderr and p.stderr.count('\n')==1
    assert not (checkout/'.venv/.installed-dev').exists()
