"Fixtures for all tests"
import os, subprocess, sys
from pathlib import Path
import pytest

os.environ['MPLBACKEND'] = 'Agg'
for k in ('GIT_DIR','GIT_WORK_TREE','GIT_INDEX_FILE'): os.environ.pop(k, None)   # a hook sets them, and the tests have repositories of their own
root = Path(__file__).parents[1]

def _env(): return {k:v for k,v in os.environ.items() if k!='PYTHONPATH'}

def run(*cmd, **kw):
    "Run `cmd` without the caller's PYTHONPATH; its stdout. A failure shows all that it said"
    p = subprocess.run([str(o) for o in cmd], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=_env(), **kw)
    assert not p.returncode, f'{cmd} failed:\n{p.stdout}\n{p.stderr}'
    return p.stdout

def make_venv(path):
    """Make a virtual environment that shares this one's packages, but not `fastai_clr`; its python.
    The packages come in by a `.pth` file, and Python doesn't follow the `.pth` files (of editable installs) in a folder added so."""
    run(sys.executable, '-m', 'venv', '--without-pip', path)
    py = path/'bin/python'
    site = Path(run(py, '-c', 'import sysconfig; print(sysconfig.get_path("purelib"))').strip())
    shared = [o for o in sys.path if Path(o).name in ('site-packages','dist-packages')]
    (site/'shared.pth').write_text('\n'.join(shared)+'\n')
    return py

@pytest.fixture(autouse=True)
def figures_closed():
    "Figures stay open until they are closed"
    yield
    if 'matplotlib.pyplot' in sys.modules: sys.modules['matplotlib.pyplot'].close('all')

@pytest.fixture(scope='session')
def bare_python(tmp_path_factory):
    "A python with torch, fastai and the rest, in which `fastai_clr` isn't installed"
    path = tmp_path_factory.mktemp('bare')
    py = make_venv(path/'venv')
    p = subprocess.run([py, '-c', 'import fastai_clr'], cwd=path, env=_env(), capture_output=True, text=True)
    assert "No module named 'fastai_clr'" in p.stderr, 'fastai_clr is there: install it editable (pip install -e .) to run this test'
    return py

@pytest.fixture(scope='session')
def digits(tmp_path_factory):
    "200 of scikit-learn's handwritten digits as PNG files in ten class folders; for reading only"
    from fastai_clr.data import demo_pictures
    return demo_pictures(tmp_path_factory.mktemp('pictures')/'digits', n=200)

@pytest.fixture(scope='session')
def weights(tmp_path_factory):
    "The ImageNet weights of timm's `tf_efficientnet_lite0` as a file"
    from fastai_clr.data import demo_weights
    return demo_weights(tmp_path_factory.mktemp('weights'))

@pytest.fixture
def tiny_disk(tmp_path):
    "A disk of 1 MB"
    p = tmp_path/'disk'
    p.mkdir()
    if subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=1m', 'tmpfs', p], capture_output=True).returncode:
        pytest.skip('a small disk can only be mounted by root')
    yield p
    run('umount', p)
