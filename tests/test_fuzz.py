"Command lines of all kinds: each does what it says, or is refused in one sentence; never a traceback, nothing left behind"
import csv, sys
from contextlib import redirect_stderr, redirect_stdout
from inspect import signature
from io import StringIO
import pytest
from fastcore.script import anno_parser
from hypothesis import HealthCheck, given, settings, strategies as st
from fastai_clr import cli
from learners import cases
from pictures import small, some

junk = st.sampled_from(['', '0', '1', '2', '-1', '-0.5', '1.5', '0.3', 'nan', 'inf', '-inf', '1e9', '1e-320', '1e400', '9'*20, '0x10', ' ', 'True', 'None', 'x', 'größe', '日本',
    '../..', '/', '.', '-', '--', '=1+1', 'a,b', '1,2', '1,', ',', '10m', '1h30m', '5 s', 'm', 'cpu', 'cuda:7', 'meta', 'resnet18', 'sgdr', 'clr', 'step', 'exp', 'inverse',
    'triangular2', 'exp_range', 'a.png', 'b.pdf', 'no/c.svg', 'd.txt', 'x'*300, 'a\nb', '[', '%s']) | st.integers(-3, 50).map(str) | st.floats(-2, 2).map(str)

def flags(func):
    "Options of a command, and whether each takes a value"
    acts = [o for o in anno_parser(func.__wrapped__)._actions if o.option_strings and o.dest not in ('help','pdb','xtra')]
    return [(o.option_strings[-1], o.nargs!=0) for o in acts]

@st.composite
def command_line(draw, func):
    pos = draw(st.lists(junk, max_size=2))
    opts = draw(st.lists(st.sampled_from(flags(func)), max_size=5))
    return [*pos, *(t for o,takes in opts for t in ([f'{o}={draw(junk)}'] if takes else [o]))]

def run(func, argv, pos=()):
    "Exit status and what was said, of a command's function"
    out,err,status = StringIO(),StringIO(),0
    with redirect_stdout(out), redirect_stderr(err):
        try:
            kw = vars(anno_parser(func.__wrapped__, pos=list(pos)).parse_args(argv))
            func(**{k: kw[k] for k in signature(func.__wrapped__).parameters})
        except SystemExit as e: status = e.code or 0
    return status,out.getvalue(),err.getvalue()

def fine(func, status, out, err):
    "Done, refused by the parser, or refused in one sentence"
    said = [l for l in err.splitlines() if l.startswith(f'{func.__name__}: ')]
    if status==2: return 'usage:' in err
    return (status==0 and not said and bool(out)) or (status==1 and len(said)==1 and not out)

class Reached(ValueError): "All arguments were taken"

@pytest.fixture
def place(tmp_path, monkeypatch):
    "A folder to be in, with pictures that are not looked at, where nothing may come into being"
    monkeypatch.chdir(tmp_path)
    (tmp_path/'x/a').mkdir(parents=True)
    return tmp_path

def tree(path): return sorted(str(o.relative_to(path)) for o in path.rglob('*'))

FUZZ = dict(deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))

def test_clr_train(place, monkeypatch):
    "As far as the Learner, which is another test's"
    def learner(pictures, out, arch, size, bs, valid_pct, seed, flip, device, weights, pretrained, fp16, label_delim):
        assert out.is_dir() and isinstance(size, int) and isinstance(arch, str) and isinstance(flip, bool)
        raise Reached('reached')
    monkeypatch.setattr(cli, '_learner', learner)
    monkeypatch.setattr(cli, '_demo', lambda out, arch, weights, pretrained: (out,weights,False))
    before,seen = tree(place),set()
    @settings(max_examples=cases(100), **FUZZ)
    @given(command_line(cli.clr_train))
    def check(argv):
        status,out,err = run(cli.clr_train, argv, ['pictures'])
        assert fine(cli.clr_train, status, out, err) or status==0 and 'usage' in out, (argv,status,out,err)
        assert tree(place)==before, argv
        seen.add('reached' in err)
    check()
    assert seen=={True,False}

def test_clr_schedule(place, monkeypatch):
    monkeypatch.setattr(cli, '_save_plot', lambda *args: None)
    before,seen = tree(place),set()
    @settings(max_examples=cases(80), **FUZZ)
    @given(st.sampled_from(['sgdr','clr','step','exp','inverse','']), command_line(cli.clr_schedule))
    def check(kind, argv):
        status,out,err = run(cli.clr_schedule, [kind,*argv])
        assert fine(cli.clr_schedule, status, out, err), (kind,argv,status,out,err)
        assert tree(place)==before
        seen.add(status)
    check()
    assert {0,1,2}<=seen

@pytest.mark.parametrize('func', [cli.clr_stores,cli.clr_predict])
def test_commands_that_read(place, func):
    before = tree(place)
    @settings(max_examples=cases(30), **FUZZ)
    @given(command_line(func))
    def check(argv):
        status,out,err = run(func, argv)
        assert fine(func, status, out, err), (argv,status,out,err)
        assert tree(place)==before
    check()

@pytest.mark.parametrize('func,pos', [(cli.clr_train,['x']),(cli.clr_predict,['m','x']),(cli.clr_stores,['x']),(cli.clr_schedule,['sgdr'])], ids=lambda o: getattr(o, '__name__', ''))
def test_two_dashes_for_a_value(func, pos, place):
    "Which argparse takes for no value before Python 3.13"
    for o in [o for o,takes in flags(func) if takes and o!='--pictures']:
        status,out,err = run(func, [*pos, f'{o}=--'], ['pictures'] if func is cli.clr_train else [])
        if sys.version_info<(3,13): assert status==1 and fine(func, status, out, err) and f"`{o}` must have a value" in err, (o,err)
        else: assert fine(func, status, out, err), (o,err)

@st.composite
def damage(draw, n):
    "What happens to a file of `n` bytes: it is cut short, and some of its bytes are others"
    changed = draw(st.dictionaries(st.integers(0, n-1), st.integers(0, 255), max_size=4))
    size = draw(st.just(n) | st.integers(0, n))
    return lambda b: bytes(changed.get(i, o) for i,o in enumerate(b[:size]))

def test_predictions_of_damaged_pictures(digits, place):
    "Of a real model, with any options: a row of probabilities for each picture, but for one that can't be opened, which is named; or one sentence and no file"
    small(digits, place).export('export.pkl')
    names = [o.relative_to(place).as_posix() for o in some(digits, place/'in', 4).rglob('*.png')]
    good,out,seen = (place/names[0]).read_bytes(),place/'p.csv',set()
    before = tree(place)
    opts = st.sampled_from([o for o in flags(cli.clr_predict) if o[0]!='--out'])
    @settings(max_examples=cases(30), **FUZZ)
    @given(st.data())
    def check(data):
        out.unlink(missing_ok=True)
        (place/names[0]).write_bytes(data.draw(damage(len(good)))(good))
        argv = [t for o,takes in data.draw(st.lists(opts, max_size=2)) for t in ([f"{o}={data.draw(junk)}"] if takes else [o])]
        status,said,err = run(cli.clr_predict, ['export.pkl','in','--out=p.csv',*argv], ['model','pictures'])
        assert fine(cli.clr_predict, status, said, err), (argv,status,said,err)
        seen.add((status,'opened' in err))
        if status==0:
            rows = list(csv.DictReader(out.open(encoding='utf-8')))
            probs = [[float(v) for k,v in o.items() if k.startswith('p_')] for o in rows]
            assert sorted(f"in/{o['file']}" for o in rows)==sorted(names[1:] if f"can't be opened: {names[0]}" in err else names)
            assert all(len(o)==10 and abs(sum(o)-1)<1e-4 for o in probs)
            out.unlink()
        assert tree(place)==before, argv
    check()
    assert {(0,True),(0,False)}<=seen and 1 in {o for o,_ in seen}
