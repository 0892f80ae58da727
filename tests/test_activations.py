"Hashes, descriptions, and the store on disk: found by its content, whole or not there"
import enum, hashlib, json, operator, shutil, signal, socket, subprocess, sys
from functools import partial
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
import numpy as np, pytest, torch
from hypothesis import given, settings, strategies as st
from torch import nn
from fastai_clr import activations
from fastai_clr.activations import (CannotDescribe, ActivationStore, StoreWriter, describe, explain_miss, fingerprint, hash_array, hash_bytes,
    hash_file, hash_module)
from conftest import run

# Hashes

DTYPES = ['uint8', 'int16', 'int64', 'float16', 'float32', 'float64', 'bool']

def test_hash_bytes_is_blake2b(): assert hash_bytes(b'ab', b'', b'c') == hashlib.blake2b(b'abc', digest_size=16).hexdigest()

@pytest.mark.parametrize('dtype', DTYPES + ['bfloat16', 'complex64'])
def test_each_bit_counts(dtype):
    t = torch.tensor([1,0,1]).to(getattr(torch, dtype))
    n = t.view(torch.uint8).numel()
    flips = [0] if dtype=='bool' else range(8)
    hashes = {hash_array(t)}
    for i in range(n):
        for j in flips:
            o = t.clone()
            o.view(torch.uint8)[i] ^= 1<<j
            hashes.add(hash_array(o))
    assert len(hashes) == 1 + n*len(flips)

@pytest.mark.parametrize('make', [torch.as_tensor, np.asarray], ids=['torch','numpy'])
@pytest.mark.parametrize('a,b', [([1,2],[2,1]), ([[1,2]],[1,2]), ([[1,2]],[[1],[2]]), ([0],[0,0]), (1,[1]), ([],[[]]), ([1],[1.]), ([0.],[-0.])])
def test_order_shape_and_dtype_count(make, a, b): assert hash_array(make(a)) != hash_array(make(b))

@pytest.mark.parametrize('dtype', DTYPES)
def test_dtype_counts(dtype): assert len({hash_array(np.zeros(8, o)) for o in DTYPES} | {hash_array(np.zeros(8, dtype))}) == len(DTYPES)

@pytest.mark.parametrize('a', [torch.arange(24.).reshape(2,3,4).permute(2,0,1), torch.arange(20)[::3], torch.ones(1).expand(3),
    torch.ones(2,3).to(torch.bfloat16).T,
    nn.Parameter(torch.ones(2,2)).T, np.arange(24).reshape(2,3,4).T, np.arange(20)[::-3], np.asfortranarray(np.ones((2,3))), torch.conj(torch.tensor([1j,2]))])
def test_strides_do_not_count(a):
    b = a.copy() if isinstance(a, np.ndarray) else a.detach().resolve_conj().contiguous().clone()
    assert hash_array(a) == hash_array(b)

@pytest.mark.parametrize('a', [torch.tensor(2.), torch.empty(0), torch.empty(0,3), np.float32(2), np.array(2), np.empty(0), np.empty((0,3), np.int64)])
def test_scalars_and_empty(a): assert len(hash_array(a))==32 and hash_array(a)==hash_array(a)

def test_hash_module():
    m = nn.Sequential(nn.Linear(2,3), nn.BatchNorm1d(3))
    was = hash_module(m)
    assert list(was)==list(m.state_dict()) and was==hash_module(nn.ModuleList(m))
    for k,v in m.state_dict().items():
        keep = v.clone()
        v.view(-1)[0] += 1
        assert [o for o in was if hash_module(m)[o]!=was[o]] == [k]
        v.copy_(keep)
    assert hash_module(m.half()) != was

@pytest.mark.parametrize('n', [0, 1, 2**20-1, 2**20, 2**20+1, 3*2**20+7])
def test_hash_file(tmp_path, n):
    f,b = tmp_path/'f',np.random.default_rng(0).bytes(n)
    f.write_bytes(b)
    assert hash_file(f) == hash_file(str(f)) == hashlib.blake2b(b, digest_size=16).hexdigest()

# Descriptions

class Colour(enum.Enum): RED,BLUE = 1,2
class Size(enum.IntEnum): RED,BLUE = 1,2
class Made:
    @classmethod
    def make(cls): pass
    def method(self): pass
class Other(Made): pass
def named(x): return x
def another(x): return x

def function(src, name='f'):
    "The function that source `src` defines in a module of always the same name"
    ns = {'__name__': 'mod'}
    exec(src, ns)
    return ns[name]

_wrapped = """
import functools
def deco(g):
    @functools.wraps(g)
    def inner(x): return g(x)
    return inner
@deco
def f(x): return x+{}
"""

def told(a, b):
    "Whether `a` and `b` are described differently, or refused"
    try: return json.dumps(describe(a), sort_keys=True) != json.dumps(describe(b), sort_keys=True)
    except CannotDescribe: return True

@pytest.mark.parametrize('a,b', [({'a':1,'b':[2]}, {'b':[2],'a':1}), (np.float64(.5), .5), (np.int8(3), 3), (Path('a/b'), PurePosixPath('a/b')),
    (torch.ones(2), torch.ones(2)), (np.ones((2,2)).T, np.ones((2,2))), ({3,1,2}, {2,3,1}), (partial(named, 1, k=2), partial(named, 1, k=2)), (Colour.RED,
    Colour(1)),
    (Made.make, Made.make), (function('def f(x): return x+1'), function('def f(x): return x+1')), (torch.device('cpu'), torch.device('cpu'))])
def test_equal_values_are_described_alike(a, b): assert not told(a, b)

@pytest.mark.parametrize('a,b', [(1,2), (1,True), (1,1.), (0,False), (1,'1'), (None,'None'), (None,0), (.1,.1+1e-17*4), ([1,2],[2,1]), ([1],[[1]]),
    ({'a':1},{'a':2}),
    ({'a':1},{'b':1}), ({1,2},{1,3}), (torch.ones(2), torch.zeros(2)), (torch.ones(2), torch.ones(2).half()), (torch.ones(2), torch.ones(2,1)),
    (torch.float16, torch.float32), (int, float), (Colour.RED, Colour.BLUE), (Colour.RED, Size.RED),
    (Made.make, Other.make), (named, another), (named, 'named'), (partial(named, 1), partial(named, 2)), (partial(named, k=1), partial(named, k=2)),
    (partial(named), named),
    (partial(named), partial(another)), (abs, min), (operator.add, operator.sub)], ids=str)
def test_different_values_are_told_apart(a, b): assert told(a, b)

@pytest.mark.parametrize('a,b', [('def f(x): return x+1', 'def f(x): return x+2'), ('def f(x): return x+1', 'def f(x): return x-1'),
    ('def f(x): return x.min()', 'def f(x): return x.max()'),
    ('def f(x, k=1): return x*k', 'def f(x, k=2): return x*k'), ('def f(x, *, k=1): return x*k', 'def f(x, *, k=2): return x*k'),
    ('def f(x): return [o+1 for o in x]', 'def f(x): return [o+2 for o in x]'), ('def f(x): return [o.min() for o in x]',
    'def f(x): return [o.max() for o in x]'),
    (_wrapped.format(1), _wrapped.format(2))], ids=['constant','operator','method','default','keyword','inner','inner-method','decorated'])
def test_changed_functions_are_told_apart(a, b): assert told(function(a), function(b))

def make_local():
    def local(x): return x
    return local

def make_class():
    class Local: pass
    return Local

@pytest.mark.parametrize('o,name', [(lambda x: x, '<lambda>'), (make_local(), 'make_local.<locals>.local'), (partial(lambda x: x), '<lambda>'),
    ({'a': [lambda x: x]}, '<lambda>'),
    (object(), 'builtins.object'), (Made(), 'Made'), (Made().method, 'method'), (nn.Linear(1,1), 'Linear'), (b'bytes', 'bytes'), (1j, 'complex'), (slice(2),
    'slice'),
    ({'a': 1}.get, 'get'), ([].append, 'append'), (np.datetime64('2020-01-01'), 'date'), (np.complex64(1), 'complex'), (make_class(), 'Local')],
    ids=lambda o: o if isinstance(o, str) else '')
def test_what_cannot_be_told_is_refused_by_name(o, name):
    with pytest.raises(CannotDescribe) as e: describe(o)
    assert name in str(e.value)

def test_a_set_of_several_types(): assert describe({1,'a',None}) == describe({None,'a',1})

_plain = st.recursive(st.none()|st.booleans()|st.integers()|st.floats(allow_nan=False)|st.text(), lambda o: st.lists(o)|st.dictionaries(st.text(), o),
    max_leaves=8)

@settings(derandomize=True, deadline=None, max_examples=50)
@given(_plain)
def test_plain_values_stay_as_they_are(o): assert json.loads(json.dumps(describe(o))) == o

_describe_names = """
from fastai_clr.activations import describe
def f(x): return x in {'one','two','three','four'}
print(describe([f, {'one','two','three','four'}]))
"""

def test_descriptions_are_the_same_in_every_process():
    assert len({run('env', f'PYTHONHASHSEED={i}', sys.executable, '-c', _describe_names) for i in (1,2)}) == 1

@settings(derandomize=True, deadline=None, max_examples=50)
@given(st.dictionaries(st.text(), _plain, max_size=5), st.randoms(use_true_random=False))
def test_fingerprint_knows_no_order(parts, rnd):
    items = list(parts.items())
    rnd.shuffle(items)
    assert fingerprint(parts) == fingerprint(dict(items))
    assert fingerprint(parts) != fingerprint({**parts, 'one more': 1})

# The store

PARTS = {'body': {'w': 'ab'}, 'size': 32}
X = np.arange(12, dtype=np.float16).reshape(4,3)

def write(root, parts=PARTS, x=X):
    with StoreWriter(root, parts) as w:
        w.new('x', x.shape, x.dtype)
        for i in range(0, len(x), 3): w.put('x', i, x[i:i+3])
        return w.close()

def kept(root): return sorted(o.name for o in root.iterdir())

@pytest.mark.parametrize('x', [X, X.astype(np.float32), np.arange(7), np.ones((5,2,3,1)), np.zeros((0,3), np.float16), np.array([True,False])],
    ids=lambda o: f'{o.dtype}{o.shape}')
def test_round_trip(tmp_path, x):
    root = tmp_path/'not'/'there yet'
    for store in write(root, x=x),ActivationStore.find(root, PARTS):
        assert list(store.arrays)==['x'] and store.parts==PARTS and store.arrays['x'].dtype==x.dtype
        np.testing.assert_array_equal(store.arrays['x'], x)
        assert str(list(x.shape)) in repr(store)
    assert kept(root) == [fingerprint(PARTS)]

def test_numpy_and_json_alone_read_it(tmp_path):
    folder = write(tmp_path).folder
    np.testing.assert_array_equal(np.load(folder/'x.npy', mmap_mode='r', allow_pickle=False), X)
    m = json.loads((folder/'manifest.json').read_text(encoding='utf-8'))
    assert m['parts']==PARTS and m['arrays']=={'x': {'shape': [4,3], 'dtype': 'float16'}} and set(m['versions'])=={'python','numpy','torch'}
    assert kept(folder) == ['manifest.json', 'x.npy']

def test_arrays_cannot_be_written_to(tmp_path):
    with pytest.raises(ValueError): write(tmp_path).arrays['x'][0] = 1

@pytest.mark.parametrize('parts', [{**PARTS, 'size': 40}, {**PARTS, 'body': {'w': 'ac'}}, {**PARTS, 'more': 1}, {'size': 32}, {}])
def test_other_parts_miss(tmp_path, parts):
    write(tmp_path)
    assert ActivationStore.find(tmp_path, parts) is None

def test_another_format_misses(tmp_path, monkeypatch):
    write(tmp_path)
    monkeypatch.setattr(activations, 'FORMAT', activations.FORMAT+1)
    assert ActivationStore.find(tmp_path, PARTS) is None
    assert write(tmp_path).manifest['format'] == activations.FORMAT and len(kept(tmp_path)) == 2

def test_explain_miss_names_the_parts(tmp_path):
    assert explain_miss(tmp_path/'nowhere', PARTS) == explain_miss(tmp_path, PARTS) == []
    write(tmp_path)
    assert explain_miss(tmp_path, PARTS) == []
    assert explain_miss(tmp_path, {**PARTS, 'size': 40}) == ['size']
    assert explain_miss(tmp_path, {'body': {}, 'more': 1}) == ['body', 'more', 'size']
    write(tmp_path, {'body': {'w': 'zz'}, 'size': 40})
    assert explain_miss(tmp_path, {**PARTS, 'size': 40}) in (['size'], ['body'])   # either is as near
    assert explain_miss(tmp_path, {'body': {'w': 'zz'}, 'size': 41}) == ['size']

def test_a_miss_with_a_broken_neighbour(tmp_path):
    write(tmp_path)
    for name,text in dict(cut='{"parts": {', foreign='{"name": "web app"}', list='[]').items():
        (tmp_path/name).mkdir()
        (tmp_path/name/'manifest.json').write_text(text)
    assert explain_miss(tmp_path, {**PARTS, 'size': 40}) == ['size']

@pytest.mark.parametrize('damage', [lambda f: f.write_bytes(f.read_bytes()[:-1]), lambda f: f.write_bytes(f.read_bytes()[:20]), lambda f: f.write_bytes(b''),
    lambda f: f.write_bytes(b'text'),
    lambda f: np.save(f, X[:3]), lambda f: np.save(f, X.T), lambda f: np.save(f, X.astype(np.int16)), lambda f: np.save(f, X.astype(object)),
    lambda f: f.unlink(),
    lambda f: (f.parent/'manifest.json').write_text('{"parts": {'), lambda f: (f.parent/'manifest.json').write_text('{}')],
    ids=['a byte short', 'no data', 'empty', 'text', 'a row short', 'transposed', 'dtype', 'pickle', 'gone', 'manifest cut', 'manifest empty'])
def test_damage_is_said(tmp_path, damage):
    folder = write(tmp_path).folder
    damage(folder/'x.npy')
    with pytest.raises(ValueError, match='damaged') as e: ActivationStore.find(tmp_path, PARTS)
    assert str(folder) in str(e.value)

class Touch:
    def __init__(self, file): self.file = file
    def __reduce__(self): return open,(self.file, 'w')

def test_nothing_in_it_is_executed(tmp_path):
    folder,mark = write(tmp_path/'s').folder,tmp_path/'executed'
    np.save(folder/'x.npy', np.array([Touch(str(mark))], object))
    with pytest.raises(ValueError): ActivationStore.find(tmp_path/'s', PARTS)
    assert not mark.exists()

@pytest.mark.parametrize('ex', [ZeroDivisionError, KeyboardInterrupt, SystemExit])
def test_an_exception_leaves_nothing(tmp_path, ex):
    with pytest.raises(ex), StoreWriter(tmp_path, PARTS) as w:
        w.new('x', X.shape, X.dtype)
        w.put('x', 0, X[:2])
        raise ex
    assert kept(tmp_path)==[] and ActivationStore.find(tmp_path, PARTS) is None

def test_without_close_there_is_no_store(tmp_path):
    with StoreWriter(tmp_path, PARTS) as w: w.new('x', X.shape, X.dtype)
    assert kept(tmp_path) == []

def test_a_name_of_parts_is_no_path(tmp_path):
    write(tmp_path, {'../..': '/etc'})
    assert len(kept(tmp_path))==1 and len(kept(tmp_path)[0])==32

_killed = """
import os, signal, sys
import numpy as np
from fastai_clr.activations import StoreWriter
def die(*args): os.kill(os.getpid(), signal.SIGKILL)
with StoreWriter(sys.argv[1], {'body': {'w': 'ab'}, 'size': 32}) as w:
    w.new('x', (4,3), np.float16)
    w.put('x', 0, np.ones((2,3)))
    if sys.argv[2]=='writing': die()
    os.rename = die
    w.close()
"""

@pytest.fixture(params=['writing','naming'])
def killed(request, tmp_path):
    "A folder in which a process was killed as it made a store"
    assert subprocess.run([sys.executable, '-c', _killed, tmp_path, request.param], capture_output=True).returncode == -signal.SIGKILL
    left = kept(tmp_path)
    assert len(left)==1 and left[0].startswith('.')
    return tmp_path

def test_killed(killed, monkeypatch):
    assert ActivationStore.find(killed, PARTS) is None and explain_miss(killed, {**PARTS, 'size': 40}) == []
    monkeypatch.setattr(socket, 'gethostname', lambda: 'another.machine')
    left = kept(killed)
    write(killed, {'other': 1})
    assert left[0] in kept(killed)   # that machine may still be writing it
    monkeypatch.undo()
    np.testing.assert_array_equal(write(killed).arrays['x'], X)
    assert kept(killed) == sorted(fingerprint(o) for o in (PARTS, {'other': 1}))

def test_leftover_of_a_process_of_the_same_number(tmp_path):
    "In a container each process may get the number of the killed one"
    w = StoreWriter(tmp_path, PARTS).__enter__()   # a process that dies here ...
    del w
    assert len(kept(tmp_path)) == 1
    np.testing.assert_array_equal(write(tmp_path).arrays['x'], X)
    assert ActivationStore.find(tmp_path, PARTS)

@pytest.mark.parametrize('name', ['.digits.tmp', '.a.b.tmp', '.a.b.c.tmp'])
@pytest.mark.parametrize('make', [Path.mkdir, Path.touch])
def test_hidden_files_of_others_stay(tmp_path, name, make):
    make(tmp_path/name)
    write(tmp_path)
    assert kept(tmp_path) == sorted([name, fingerprint(PARTS)])

_writes = """
import sys
import numpy as np
from fastai_clr.activations import StoreWriter
with StoreWriter(sys.argv[1], {'body': {'w': 'ab'}, 'size': 32}) as w:
    w.new('x', (4,3), np.float16)
    w.put('x', 0, np.arange(12).reshape(4,3))
    w.close()
"""

def test_two_processes_make_the_same_store(tmp_path):
    with StoreWriter(tmp_path, PARTS) as w:
        w.new('x', X.shape, X.dtype)
        run(sys.executable, '-c', _writes, tmp_path)
        made = (tmp_path/fingerprint(PARTS)/'x.npy').stat().st_ino
        w.put('x', 0, X)
        store = w.close()
    assert kept(tmp_path)==[fingerprint(PARTS)] and (store.folder/'x.npy').stat().st_ino==made
    np.testing.assert_array_equal(store.arrays['x'], X)

def test_too_little_disk_is_said_first(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, 'disk_usage', lambda o: SimpleNamespace(free=23))   # 24 bytes are needed
    with pytest.raises(OSError, match='MB free: make room, or pass another `path`'), StoreWriter(tmp_path, PARTS) as w: w.new('x', X.shape, X.dtype)
    assert kept(tmp_path) == []
    monkeypatch.setattr(shutil, 'disk_usage', lambda o: SimpleNamespace(free=24))
    write(tmp_path)

_fills = """
import errno, os, sys
import numpy as np
from fastai_clr.activations import StoreWriter
a = np.ones((600,1000), np.uint8)
try:
    with StoreWriter(sys.argv[1], {'a': 1}) as w:
        for k in 'xy': w.new(k, a.shape, a.dtype)
        for k in 'xy': w.put(k, 0, a)
        w.close()
except OSError as e: print(type(e).__name__, os.listdir(sys.argv[1]))
"""

def test_a_disk_that_fills_up_is_no_crash(tiny_disk):
    "Two arrays that fit one by one, but not together: an error, not the end of the process by SIGBUS"
    assert run(sys.executable, '-c', _fills, tiny_disk/'s') == 'OSError []\n'
