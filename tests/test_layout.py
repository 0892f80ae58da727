"Modules come from notebooks, and import downward only"
import ast, re
import pytest
from fastcore.nbio import read_nb
from conftest import root

# What each module may import of this package
ALLOWED = dict(plots=set(), schedules={'plots'}, cycles={'plots','schedules'}, snapshots={'plots','cycles'},
    resume={'schedules','snapshots'}, fit={'plots','schedules','cycles','snapshots','resume'}, lr_range={'plots','cycles','snapshots','resume','fit'},
    activations=set(), precompute={'activations'}, heads={'plots','schedules','cycles','snapshots','precompute'}, data=set(),
    recipe={'plots','schedules','cycles','snapshots','resume','fit','lr_range','activations','precompute','heads'}, report={'plots','recipe'},
    cli={'schedules','activations','data','recipe','report'})
ALLOWED['all'] = set(ALLOWED)
# What these must do without, besides
FORBIDDEN = dict(plots={'fastai','torch'}, schedules={'fastai','torch'}, activations={'fastai'})

def module_of(nb):
    "The module that the notebook at `nb` exports to, if any"
    src = '\n'.join(c.source for c in read_nb(nb).cells if c.cell_type=='code')
    m = re.search(r'^#\|\s*default_exp\s+(\S+)', src, re.M)
    return m and m[1]

def imports(src):
    "Names that source `src` imports, anywhere in it: modules of this package, and other packages"
    own,other = set(),set()
    for n in ast.walk(ast.parse(src)):
        if isinstance(n, ast.Import): names = [o.name for o in n.names]
        elif isinstance(n, ast.ImportFrom):
            base = '.'.join(filter(None, ['fastai_clr' if n.level else '', n.module]))
            names = [f'{base}.{o.name}' for o in n.names] if base=='fastai_clr' else [base]
        else: continue
        for o in names:
            top,*rest = o.split('.')
            if top=='fastai_clr': own |= set(rest[:1])
            else: other.add(top)
    return own-{'__version__'},other

notebooks = {module_of(o): o.name for o in sorted((root/'nbs').glob('[0-9]*.ipynb'))}
modules = {o.stem: o for o in (root/'fastai_clr').glob('*.py') if not o.stem.startswith('_')}

def test_modules_and_notebooks_match(): assert set(modules)-{'all'} == set(notebooks)   # `all` only gathers what the others export

def test_tutorials_export_nothing(): assert not [o for o in (root/'nbs').glob('*/**/*.ipynb') if module_of(o)]

@pytest.mark.parametrize('name', sorted(modules))
def test_imports_run_downward(name):
    own,other = imports(modules[name].read_text(encoding='utf-8'))
    assert own <= ALLOWED[name], f'{name} imports {own-ALLOWED[name]}'
    assert not other & FORBIDDEN.get(name, set())

@pytest.mark.parametrize('src,own,other', [
    ('import fastai_clr.plots as p, numpy.linalg', {'plots'}, {'numpy'}), ('from fastai_clr.fit import x', {'fit'}, set()),
    ('from .fit import x', {'fit'}, set()), ('from . import fit, data', {'fit','data'}, set()),
    ('def f():\n    from fastai_clr import fit', {'fit'}, set()), ('from fastai.vision.all import *', set(), {'fastai'})])
def test_imports(src, own, other): assert imports(src) == (own,other)

def slug(title): return re.sub(r'[^\w\- ]', '', title.lower()).strip().replace(' ', '-')
def headings(nb): return {slug(o) for c in read_nb(nb).cells if c.cell_type=='markdown' for o in re.findall(r'^#+ (.*)', c.source, re.M)}
links = re.findall(r'\((\w+\.ipynb)#([\w-]+)\)', ''.join(c.source for c in read_nb(root/'nbs/compared.ipynb').cells))

def test_compared_has_links(): assert len(links)>12

@pytest.mark.parametrize('nb,anchor', sorted(set(links)))
def test_links_lead_to_a_lesson(nb, anchor): assert anchor in headings(root/'nbs'/nb)
