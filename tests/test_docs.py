"Docstrings are complete: what is public says what it is, and says it of each of its arguments"
import importlib, inspect, json, pkgutil, re, subprocess, sys
from configparser import ConfigParser
from pathlib import Path
import numpy as np, pytest
from fastai.callback.core import event
from fastai.learner import Learner
from fastcore.docments import docments
import fastai_clr

MODULES = [importlib.import_module(f'fastai_clr.{o.name}') for o in pkgutil.iter_modules(fastai_clr.__path__) if o.name not in ('_modidx','all')]
EVENTS = {k for k,v in vars(event).items() if isinstance(v, str)} | {'after_cycle'}

def _ours(f): return inspect.isfunction(f) and f.__module__.startswith('fastai_clr')

def _methods(cls):
    "Public methods that a class defines: neither callbacks of an event nor another version of what a base class has"
    for k,v in vars(cls).items():
        v = getattr(v, '__func__', getattr(v, 'fget', v))
        if _ours(v) and not k.startswith('_') and k not in EVENTS and not any(hasattr(b, k) for b in cls.__mro__[1:]): yield k,v

def _public():
    for m in MODULES:
        for n in m.__all__:
            o,name = getattr(m, n),f'{m.__name__}.{n}'
            if inspect.isclass(o):
                yield name,o,vars(o).get('__init__')
                for k,f in _methods(o): yield f'{name}.{k}',f,f
            elif inspect.isfunction(o): yield name,o,o
    for k,f in vars(Learner).items():
        f = getattr(f, 'fget', f)
        if _ours(f) and not k.startswith('_'): yield f'Learner.{k}',f,f

PUBLIC = list(_public())

def _without_comment(o, f):
    "Arguments that say nothing of themselves; what `delegates` adds to a signature is told elsewhere"
    if f is None or getattr(f, '__wrapped__', f).__module__.startswith('contextlib'): return []
    own = list(getattr(o, '__dataclass_fields__', None) or [*inspect.signature(f).parameters])
    code = inspect.unwrap(f).__code__
    if not hasattr(o, '__dataclass_fields__'): own = [k for k in own if k in code.co_varnames]
    docs = docments(o, full=True, args_kwargs=True)
    return [k for k in own if k not in ('self','cls') and not k.startswith('_') and not (k in docs and docs[k].docment)]

def test_there_is_much_that_is_public():
    names = [o[0] for o in PUBLIC]
    assert {'Learner.fit_sgdr','Learner.precompute','fastai_clr.schedules.CosineRestarts','fastai_clr.cli.clr_train','Learner.fit_recipe'} <= {*names}
    assert len(names)>100

@pytest.mark.parametrize('name,o,f', PUBLIC, ids=[o[0] for o in PUBLIC])
def test_says_what_it_is_and_what_it_takes(name, o, f):
    doc = inspect.getdoc(o)
    assert doc and not doc.startswith(f'{o.__name__}('), f'{name} has no docstring'   # dataclasses get their signature for one
    assert not _without_comment(o, f), f'{name} says nothing of these arguments'

UNITS = {'epochs?$|cycle_len|step_size|^every$|^warmup$': 'epoch|cycle|batch', '^n_(iter|batches)$|num_it|^batch$': 'batch', '^bs$': 'a batch|batch size',
    'pct$': 'share|fraction', 'bytes$|^need$': 'bytes', '_mb$': 'mb', 'days$': 'days', '^size$': 'pixels', 'budget': 'seconds|90s',
    '^patience$|^(n_|head_)?cycles$': 'cycle|snapshots'}
SHAPED = 'shape|one value|one a |one for each|as in fastai|records|bytes|`stat_items`|a row'

def _unclear(o):
    "Arguments and results that leave open their unit, though their name asks for one, or their shape, though they are arrays"
    for k,d in docments(o, full=True, args_kwargs=True).items():
        said,kind = (d.docment or '').lower(),str(d.anno)
        if said and any(re.search(a, k) and not re.search(b, said) for a,b in UNITS.items()): yield k
        if said and re.search('ndarray|Tensor', kind) and not re.search(SHAPED, said): yield k

@pytest.mark.parametrize('name,o,f', PUBLIC, ids=[o[0] for o in PUBLIC])
def test_says_units_and_shapes(name, o, f): assert not [*_unclear(o)], f'{name} leaves the unit or the shape of these open'

def test_an_argument_without_unit_or_shape_is_seen():
    def f(max_epochs:int, # The most
          x:np.ndarray, # Rows
    )->np.ndarray: # What comes out
        "What it does"
    assert [*_unclear(f)]==['max_epochs','x','return']

def test_nothing_private_is_on_a_page():
    "nbdev shows what a cell of `export` defines and no underscore begins, methods of private classes too, unless the cell is hidden"
    shown = []
    for f in sorted((Path(__file__).parents[1]/'nbs').glob('[0-9]*.ipynb')):
        for c in json.loads(f.read_text(encoding='utf-8'))['cells']:
            src = ''.join(c['source'])
            if c['cell_type']!='code' or not re.search(r'^#\|\s*export\s*$', src, re.M) or re.search(r'^#\|\s*hide\s*$', src, re.M): continue
            shown += [f'{f.stem}: {b}.{a}' for a,b in re.findall(r'^def ([a-z]\w*)\(self:(\w+)', src, re.M) if b[0]=='_' or a in EVENTS]
    assert shown==[]

def test_an_argument_without_a_comment_is_seen():
    def f(a, # Told
          b): "What it does"
    assert _without_comment(f, f)==['b']

# What fastai, fasttransform, and torch warn of when they are imported alone, made into errors, is not ours to mend
WITHOUT = '''
import sys, warnings
import fastai.vision.all, fastai.callback.all, fastai.tabular.all, fastai.text.all, fastai.collab
warnings.resetwarnings(); warnings.simplefilter('error')
import fastai_clr.all, fastai_clr.cli, fastai_clr.report, fastai_clr.lr_range
print('no warning')
'''

def test_importing_warns_of_nothing():
    r = subprocess.run([sys.executable, '-c', WITHOUT], capture_output=True, text=True)
    assert r.returncode==0 and r.stdout=='no warning\n', r.stderr[-2000:]

def test_promises_name_tests_that_there_are():
    root = Path(__file__).parents[1]
    named = re.findall(r'`tests/([\w/]+\.py)::(\w+)`', (root/'nbs/promised.ipynb').read_text(encoding='utf-8'))
    assert len(named)>30 and [o for o in named if not re.search(rf'^def {o[1]}\(', (root/'tests'/o[0]).read_text(encoding='utf-8'), re.M)]==[]

def test_every_requirement_is_on_the_page():
    "With its licence and what it is for"
    ini,root = ConfigParser(delimiters=['=']),Path(__file__).parents[1]
    ini.read_string((root/'settings.ini').read_text(encoding='utf-8'))
    reqs = {l.partition(';')[0].strip() for k,v in ini['DEFAULT'].items() if k.endswith('requirements') for l in v.splitlines() if l.strip()}
    cells = json.loads((root/'nbs/dependencies.ipynb').read_text(encoding='utf-8'))['cells']
    shown = ''.join(l for c in cells for o in c.get('outputs', []) for l in o.get('data', {}).get('text/markdown', []))
    rows = [[o.strip() for o in l.strip('| ').split(' | ')] for l in shown.splitlines() if l.startswith('| ') and '**' not in l][1:]
    assert {o[0] for o in rows}==reqs and all(len(o)==3 and all(o) and o[1] not in ('UNKNOWN','None') for o in rows), 'run nbs/dependencies.ipynb again'

@pytest.mark.parametrize('page,source', [('benchmarks','benchmarks/RESULTS.md'),('changelog','CHANGELOG.md')])
def test_pages_show_the_file_as_it_is(page, source):
    "What a page shows was saved when its notebook ran"
    root = Path(__file__).parents[1]
    cells = json.loads((root/f'nbs/{page}.ipynb').read_text(encoding='utf-8'))['cells']
    shown = [''.join(o['data']['text/markdown']) for c in cells for o in c.get('outputs', []) if 'text/markdown' in o.get('data', {})]
    assert shown==[(root/source).read_text(encoding='utf-8').split('\n', 1)[1]], f'run nbs/{page}.ipynb again'
