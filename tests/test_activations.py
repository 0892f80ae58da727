"Hashes, descriptions, items, and the store on disk: found by its content, written block by block, explained when it is missed, and cleared away"
import builtins, enum, hashlib, io, json, operator, os, re, shutil, socket, sys, tempfile, time, tracemalloc
from functools import partial
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
import numpy as np, pytest, torch
from hypothesis import given, settings, strategies as st
from torch import nn
from fastai_clr import activations
from fastai_clr.activations import (CannotDescribe, ActivationStore, StoreWriter, as_rows, as_tensor, describe, explain_body, explain_miss, fingerprint,
    hash_array, hash_bytes, hash_file, hash_items, hash_module, list_stores, mark_used, prune, stat_items, sum_module)
from conftest import run


@pytest.fixture(autouse=True, scope='module')
def no_sync():
    "Nothing here waits for the disk: what is written to a mapped file is there for every process"
    with pytest.MonkeyPatch.context() as m:
        m.setattr(np.memmap, 'flush', lambda o: None)
        yield

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

def test_hash_file_needs_little_memory(tmp_path):
    (tmp_path/'f').touch()
    os.truncate(tmp_path/'f', 2**24)
    tracemalloc.start()
    hash_file(tmp_path/'f')
    _,most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 2**22

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
    (partial(named), partial(another)), (abs, min), (operator.add, operator.sub)], ids=lambda o: re.sub(' at 0x[0-9a-f]+', '', str(o)))
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

@pytest.mark.parametrize('a,b', [({1: 2}, {'1': 2}), ({1: 'a', '1': 'b'}, {'1': 'b'})])
def test_keys_of_other_types_are_told_apart(a, b): assert told(a, b)

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
    assert len({run('env', f'PYTHONHASHSEED={i}', sys.executable, '-c', _describe_names) for i in (1,3)}) == 1

@settings(derandomize=True, deadline=None, max_examples=50)
@given(st.dictionaries(st.text(), _plain, max_size=5), st.randoms(use_true_random=False))
def test_fingerprint_knows_no_order(parts, rnd):
    items = list(parts.items())
    rnd.shuffle(items)
    assert fingerprint(parts) == fingerprint(dict(items))
    assert fingerprint(parts) != fingerprint({**parts, 'one more': 1})

# Items

@pytest.fixture
def files(tmp_path):
    "Four files in two folders below `in`"
    res = [tmp_path/'in'/o for o in ('a/1.png','a/2.png','b/1.png','b/2.png')]
    for f in res:
        f.parent.mkdir(parents=True, exist_ok=True)
        f.write_text(f'content of {f}')
    return res

@pytest.fixture
def opened(monkeypatch):
    "The pictures that are opened, by name"
    names,real = [],builtins.open
    def spy(f, *args, **kw):
        if str(f).endswith('.png'): names.append('/'.join(Path(f).parts[-2:]))
        return real(f, *args, **kw)
    monkeypatch.setattr(builtins, 'open', spy)
    return names

def folder_of(files): return files[0].parents[1]

def hashed(files, stores, root=None, **kw):
    "Records of `files` with their hashes, and the hash of all"
    items = stat_items(files, root or folder_of(files))
    return items,hash_items(items, files, stores, **kw)

def seen(tmp_path, files):
    "Folder of a store that was made from `files`, and the hash of all"
    items,h = hashed(files, tmp_path/'stores')
    write(tmp_path/'stores', items=items)
    return tmp_path/'stores',h

def test_items_are_names_sizes_times_and_hashes(tmp_path, files):
    items,h = hashed(files, tmp_path/'stores')
    for f,o in zip(files, items):
        s = f.stat()
        assert o.tolist()==(str(f.relative_to(folder_of(files))).encode(), s.st_size, s.st_mtime_ns, s.st_ctime_ns, hash_file(f).encode())
    assert len(h)==32 and hashed([str(o) for o in files], tmp_path/'stores', folder_of(files))[1]==h

def test_the_hash_of_items_goes_by_names_sizes_contents_and_order(tmp_path, files):
    def h(files=files, root=None): return hashed(files, tmp_path, root)[1]
    was = h()
    others = [h(files[::-1]), h(files[:3]), h([*files, files[0]]), h(root=tmp_path)]
    for change in (lambda f: f.write_text('other'), lambda f: f.write_text('more'*9)):
        change(files[1])
        others.append(h())
    assert len({was, *others})==7
    os.utime(files[1], (1,1))
    assert h() == others[-1]

def test_a_folder_that_moved_as_a_whole_hashes_alike(tmp_path, files):
    was = hashed(files, tmp_path)[1]
    new = folder_of(files).rename(tmp_path/'moved')
    assert hashed([new/o.relative_to(folder_of(files)) for o in files], tmp_path)[1] == was

def test_files_elsewhere_go_by_their_whole_path(tmp_path, files):
    assert stat_items(files, tmp_path/'in2')['name'].tolist() == [str(o).encode() for o in files]
    assert stat_items(files, tmp_path/'i')['name'].tolist() == [str(o).encode() for o in files]

def test_relative_paths_are_those_of_the_working_directory(files, monkeypatch):
    monkeypatch.chdir(folder_of(files))
    for o in ('.',''): assert stat_items(['a/1.png', Path('b/2.png')], o)['name'].tolist() == [b'a/1.png', b'b/2.png']

@pytest.mark.parametrize('names', [['é ü.png','日本 語.png'], ['a b  c.png',' .png'], ['x'*251+'.png'], ['é'*125+'.png'], [os.fsdecode(b'\xff\xfe.png')],
    ['a\nb.png','%s.png'], ["'\".png",'[!.]*.png']], ids=ascii)
def test_any_name_will_do(tmp_path, names):
    files = [tmp_path/'in'/o for o in names]
    files[0].parent.mkdir()
    for f in files: f.write_bytes(os.fsencode(f.name))
    root,h = seen(tmp_path, files)
    items,again = hashed(files, root, tmp_path/'in', bar=list)
    assert h!=again and [os.fsdecode(o) for o in items['name']]==names
    assert [o.decode() for o in items['hash']]==[hash_file(f) for f in files]

def test_no_items_at_all(tmp_path):
    items = stat_items([], tmp_path)
    assert len(items)==0 and len(hash_items(items, [], tmp_path))==32

def test_missing_files_and_folders_are_said(tmp_path, files):
    with pytest.raises(FileNotFoundError, match='gone.png'): stat_items([*files, tmp_path/'gone.png'], tmp_path)
    with pytest.raises(FileNotFoundError, match='in/a is not a file'): stat_items([*files, files[0].parent], tmp_path)
    items = stat_items(files, tmp_path)
    files[2].unlink()
    with pytest.raises(FileNotFoundError, match='b/1.png'): hash_items(items, files, tmp_path)

def test_what_a_store_has_seen_is_not_read(tmp_path, files, opened):
    root,h = seen(tmp_path, files)
    assert len(opened)==4
    bar = []
    assert hashed(files, root, bar=lambda o: bar.append(len(o)) or o)[1]==h
    assert hashed(files[::-1], root)[0]['hash'].tolist()==hashed(files, root)[0]['hash'].tolist()[::-1]
    assert len(opened)==4 and bar==[0]

def test_several_stores_have_seen_some_each(tmp_path, files, opened):
    for i,o in enumerate([files[:1], files[1:3]]): write(tmp_path/'stores', parts={'set': str(i)}, items=hashed(o, tmp_path/'stores', folder_of(files))[0])
    opened.clear()
    items,_ = hashed(files, tmp_path/'stores')
    assert opened==['b/2.png'] and items['hash'].tolist()==[hash_file(o).encode() for o in files]

def test_verify_reads_all(tmp_path, files, opened):
    root,h = seen(tmp_path, files)
    opened.clear()
    assert hashed(files, root, verify=True)[1]==h and opened==['a/1.png','a/2.png','b/1.png','b/2.png']

def touch(f): os.utime(f, (1,1))
def move_there_and_back(f): f.rename(f.with_name('other')).rename(f)
def copy_over(f): shutil.copy2(shutil.copy2(f, f.with_name('other')), f)
def make_again(f):
    text = f.read_text()
    f.unlink()
    f.write_text(text)

def past(f, how):
    "Do `how` to a file until its time of change has moved on: the clock of file systems may be coarse"
    was = f.stat().st_ctime_ns
    while True:
        how(f)
        if f.stat().st_ctime_ns!=was: return

@pytest.mark.parametrize('how', [touch, move_there_and_back, copy_over, make_again, lambda f: f.chmod(0o600)])
def test_touched_files_are_read_again(tmp_path, files, opened, how):
    root,h = seen(tmp_path, files)
    past(files[2], how)
    opened.clear()
    assert hashed(files, root)[1]==h and opened==['b/1.png']

def test_moved_files_are_read_again(tmp_path, files, opened):
    root,_ = seen(tmp_path, files)
    files[2] = files[2].rename(files[2].with_name('3.png'))
    opened.clear()
    hashed(files, root)
    assert opened==['b/3.png']

def test_other_content_behind_forged_times_is_noticed(tmp_path, files, opened):
    root,h = seen(tmp_path, files)
    was,text = files[2].stat(),files[2].read_text()
    def forge(f):
        f.write_text(text[::-1])
        os.utime(f, ns=(was.st_atime_ns,was.st_mtime_ns))
    past(files[2], forge)
    now = files[2].stat()
    assert (now.st_size,now.st_mtime_ns)==(was.st_size,was.st_mtime_ns)
    opened.clear()
    assert hashed(files, root)[1]!=h and opened==['b/1.png']

def test_a_file_that_took_anothers_name_is_noticed(tmp_path, files, opened):
    "Of equal size and time of modification"
    for f in files: os.utime(f, (1,1))
    root,h = seen(tmp_path, files)
    past(files[1], lambda f: os.utime(f, (1,1)))
    os.replace(files[1], files[0])
    shutil.copy(files[0], files[1])
    opened.clear()
    assert hashed(files, root)[1]!=h and opened==['a/1.png','a/2.png']

@pytest.mark.parametrize('damage', [lambda f: f.unlink(), lambda f: f.write_bytes(f.read_bytes()[:-1]), lambda f: f.write_bytes(b''),
    lambda f: np.save(f, np.zeros(3)), lambda f: np.save(f, np.array([{}]), allow_pickle=True), lambda f: f.unlink() or f.mkdir(),
    lambda f: f.write_bytes(b'PK\x03\x04'),
    lambda f: f.write_bytes(f.read_bytes().replace(b'}', b' ', 1)),
    lambda f: np.save(f, np.load(f)[0])], ids=lambda o: '')
def test_what_a_damaged_store_has_seen_does_not_count(tmp_path, files, opened, damage):
    root,h = seen(tmp_path, files)
    damage(root/fingerprint(PARTS)/'items.npy')
    opened.clear()
    assert hashed(files, root)[1]==h and len(opened)==4

def test_a_flipped_bit_among_the_hashes_that_a_store_has_seen(tmp_path, files):
    root,(items,h) = tmp_path/'stores',hashed(files, tmp_path/'stores')
    f = write(root, parts={**PARTS, 'items': {'n': len(items), 'hash': h}}, items=items).folder/'items.npy'
    b = bytearray(f.read_bytes())
    b[-1] ^= 1
    f.write_bytes(b)
    assert hashed(files, root)[1]==h

def test_a_store_keeps_up_with_touched_files(tmp_path, files, opened):
    root,h = seen(tmp_path, files)
    past(files[0], touch)
    mark_used(ActivationStore.find(root, PARTS), hashed(files, root)[0])
    opened.clear()
    assert hashed(files, root)[1]==h and opened==[]
    assert kept(root/fingerprint(PARTS))==sorted([*FILES,'items.npy'])

# The store

PARTS = {'set': 'train', 'body': {'0.weight': 'ab'}, 'dtype': 'float16'}
KEY = fingerprint(PARTS)
X,Y = np.arange(15, dtype=np.float16).reshape(5,3),np.arange(5)
FILES = ['blocks.npy','manifest.json','x.npy','y.npy']

def blocks_of(w, arrays, b): return {k: v[b*w.block:(b+1)*w.block] for k,v in arrays.items()}

def fill(w, arrays=None, blocks=None, dtypes={}):
    "Put `blocks`, all that are missing unless told otherwise"
    arrays = arrays or dict(x=X, y=Y)
    if not w.arrays: w.new(**{k: (v.shape[1:],dtypes.get(k, str(v.dtype))) for k,v in arrays.items()})
    for b in w.missing if blocks is None else blocks: w.put(b, **blocks_of(w, arrays, b))

def write(root, arrays=None, parts=PARTS, block=2, dtypes={}, blocks=None, **kw):
    "A store, whole unless only some `blocks` are to be written"
    with StoreWriter(root, parts, len(next(iter(arrays.values()))) if arrays else 5, block, **kw) as w:
        fill(w, arrays, blocks, dtypes)
        return w.close() if blocks is None else ActivationStore.find(root, parts)

def kept(root): return sorted(o.name for o in root.iterdir())
def stores_in(root): return [o for o in kept(root) if not o.startswith('.')]

def bits(a):
    "The bytes of a `.npy` file of `a`"
    f = io.BytesIO()
    np.save(f, a)
    return f.getvalue()

@pytest.mark.parametrize('a', [X, X.astype(np.float32), np.arange(7), np.ones((5,2,3,1)), np.zeros((4,0), np.float16), np.array([True,False]),
    np.ones(1, np.complex64), np.arange(9, dtype=np.uint8)[:,None]], ids=lambda o: f'{o.dtype}{o.shape}')
@pytest.mark.parametrize('block', [1, 2, 100])
def test_round_trip(tmp_path, a, block):
    root = tmp_path/'not'/'there yet'
    for store in write(root, dict(a=a), block=block),ActivationStore.find(root, PARTS):
        assert store.is_whole and store.verify()==[] and store.parts==PARTS and list(store.arrays)==['a']
        assert (store.folder/'a.npy').read_bytes()==bits(a)
        assert (store.n,store.block,len(store.blocks))==(len(a), min(block, len(a)), -(-len(a)//block)) and f'a: {a.dtype} {list(a.shape)}' in repr(store)
    assert kept(root)==[f'.{KEY}.lock', KEY] and kept(store.folder)==['a.npy','blocks.npy','manifest.json']

odd = torch.tensor([[0.,-0.,1.,-1.5,3.14159], [float('nan'),float('inf'),-float('inf'),1e-7,6e4], [1e-40,-1e-45,65504.,.1,1/3]])

@pytest.mark.parametrize('dtype', ['float16','float32','bfloat16'])
@pytest.mark.parametrize('make', [lambda t: t, lambda t: t.half(), lambda t: t.bfloat16(), lambda t: t.double(), lambda t: t.T.contiguous().T,
    lambda t: t.requires_grad_(), nn.Parameter, lambda t: t[:,::2]], ids=['','half','bfloat16','double','T','grad','Parameter','strided'])
def test_round_trip_of_tensors(tmp_path, dtype, make):
    t = make(odd.clone())
    want = t.detach().to(getattr(torch, dtype))
    store = write(tmp_path, dict(x=as_rows(t, dtype)), dtypes=dict(x=dtype))
    got = as_tensor(np.array(store.arrays['x']), store.info['x']['dtype'])
    assert store.info['x']=={'shape': list(t.shape), 'dtype': dtype} and got.dtype==want.dtype
    assert torch.equal(got.view(torch.uint8), want.contiguous().view(torch.uint8))

def test_tensors_share_the_memory_of_rows():
    for dtype in ('float16','float32','bfloat16'):
        a = as_rows(torch.ones(2,3), dtype)
        as_tensor(a, dtype)[0,0] = 0
        assert a[0,0]==0 and a[1,1]!=0

def test_every_bfloat16_comes_back():
    a = np.arange(2**16, dtype=np.uint16)
    t = as_tensor(a, 'bfloat16')
    assert np.array_equal((a.astype('uint32')<<16).view('float32').view('uint32'),
        t.float().numpy().view('uint32') | (t.isnan().numpy()*(a.astype('uint32')<<16)))
    assert np.array_equal(as_rows(t, 'bfloat16'), a)

_reads = """
import json, sys, numpy as np
from pathlib import Path
res = {o.stem: np.load(o, allow_pickle=False) for o in Path(sys.argv[1]).glob('*.npy')}
m = json.loads((Path(sys.argv[1])/'manifest.json').read_text(encoding='utf-8'))
assert not {'torch','fastai','fastai_clr'} & set(sys.modules)
x = (res['x'].astype('uint32')<<16).view('float32')
print(json.dumps([x.tolist(), res['y'].tolist(), res['blocks']['done'].tolist(), [o.decode() for o in res['items']['name']], m]))
"""

def test_numpy_and_json_alone_read_it(tmp_path, files):
    write(tmp_path/'s', dict(x=as_rows(torch.tensor(X), 'bfloat16'), y=Y), dtypes=dict(x='bfloat16'), items=hashed(files, tmp_path)[0], about='five rows')
    x,y,done,names,m = json.loads(run(sys.executable, '-c', _reads, tmp_path/'s'/KEY))
    assert np.array_equal(x, X) and y==Y.tolist() and done==[True]*3 and names==['a/1.png','a/2.png','b/1.png','b/2.png']
    assert list(m)==['format','about','n','block','arrays','parts','made','versions','seal'] and list(m['versions'])==['python','numpy','torch']
    assert m['arrays']=={'x': {'shape': [5,3], 'dtype': 'bfloat16'}, 'y': {'shape': [5], 'dtype': 'int64'}}
    assert (m['parts'],m['n'],m['block'],m['about'])==(PARTS,5,2,'five rows')

def test_checksums_are_those_of_the_rows(tmp_path):
    store = write(tmp_path)
    for b in range(3):
        rows = b''.join(o[b*2:b*2+2].tobytes() for o in (X,Y))
        assert store.checksum(b).tobytes()==store.blocks['sum'][b].tobytes()==hashlib.blake2b(rows, digest_size=16).digest()

@pytest.mark.parametrize('get', [lambda s: s.arrays['x'], lambda s: s.arrays['y'], lambda s: s.blocks['done']])
def test_arrays_cannot_be_written_to(tmp_path, get):
    for store in write(tmp_path),ActivationStore.find(tmp_path, PARTS):
        with pytest.raises(ValueError, match='read-only'): get(store)[0] = 1

@pytest.mark.parametrize('parts', [{**PARTS, 'dtype': 'float32'}, {**PARTS, 'body': {'0.weight': 'ac'}}, {**PARTS, 'more': 1}, {**PARTS, 'more': None},
    {'set': 'train'}, {}])
def test_other_parts_miss(tmp_path, parts):
    write(tmp_path)
    assert ActivationStore.find(tmp_path, parts) is None and ActivationStore.find(tmp_path/'nowhere', PARTS) is None

def test_a_name_of_parts_is_no_path(tmp_path):
    write(tmp_path, parts={'../..': '/etc'})
    assert stores_in(tmp_path)==[fingerprint({'../..': '/etc'})] and len(stores_in(tmp_path)[0])==32

def edit(folder, **kw):
    "Change entries of a manifest"
    f = folder/'manifest.json'
    f.write_text(json.dumps({**json.loads(f.read_text()), **kw}))

def test_another_format_is_said_and_left_alone(tmp_path):
    folder = write(tmp_path).folder
    edit(folder, format=activations.FORMAT+1)
    match = f'{KEY} has format {activations.FORMAT+1}, and this version of fastai_clr reads {activations.FORMAT}: update it, or delete the folder'
    for f in (lambda: ActivationStore.find(tmp_path, PARTS), lambda: ActivationStore(folder), lambda: write(tmp_path)):
        with pytest.raises(ValueError, match=match): f()
    assert kept(folder)==FILES and [o['whole'] for o in list_stores(tmp_path)]==[False]
    edit(folder, format=activations.FORMAT)
    assert ActivationStore.find(tmp_path, PARTS).verify()==[]

def test_a_store_of_the_next_format_is_another(tmp_path, monkeypatch):
    write(tmp_path)
    monkeypatch.setattr(activations, 'FORMAT', activations.FORMAT+1)
    assert ActivationStore.find(tmp_path, PARTS) is None
    assert write(tmp_path).format==activations.FORMAT and len(stores_in(tmp_path))==2

def test_a_damaged_store_below_any_name_is_made_anew(tmp_path):
    (write(tmp_path/'has format').folder/'manifest.json').write_text('{')
    assert write(tmp_path/'has format').is_whole

# Writing

def test_missing_blocks(tmp_path):
    with StoreWriter(tmp_path, PARTS, 5, 2) as w:
        assert w.missing.tolist()==[0,1,2] and ActivationStore.find(tmp_path, PARTS).is_whole is False
        fill(w, blocks=[1])
        assert ActivationStore.find(tmp_path, PARTS).verify()==[] and not ActivationStore.find(tmp_path, PARTS).is_whole
    with StoreWriter(tmp_path, PARTS, 5, 2) as w:
        assert w.missing.tolist()==[0,2] and np.array_equal(w.arrays['x'][2:4], X[2:4])
        fill(w, blocks=[2])
    with StoreWriter(tmp_path, PARTS, 5, 2) as w:
        assert w.missing.tolist()==[0]
        fill(w)
        assert w.close().is_whole
    with StoreWriter(tmp_path, PARTS, 5, 2) as w: assert w.missing.tolist()==[] and w.close().is_whole

def test_a_store_that_is_begun_keeps_its_blocks(tmp_path):
    write(tmp_path, block=2, blocks=[1])
    with StoreWriter(tmp_path, PARTS, 5, 4) as w:
        assert w.block==2 and w.missing.tolist()==[0,2]
        fill(w)
        assert w.close().block==2

def test_close_needs_all_blocks(tmp_path):
    with pytest.raises(ValueError, match='2 of 3 blocks are missing'), StoreWriter(tmp_path, PARTS, 5, 2) as w:
        fill(w, blocks=[1])
        w.close()
    assert write(tmp_path).is_whole

@pytest.mark.parametrize('x', [X[:1], X[:3], X[:2,:2], X[:2].T, X[0], X[:2,None]], ids=lambda o: str(o.shape))
def test_rows_of_another_shape_are_refused(tmp_path, x):
    with StoreWriter(tmp_path, PARTS, 5, 2) as w:
        fill(w, blocks=[0])
        with pytest.raises(ValueError) as e: w.put(1, x=x, y=Y[2:4])
        assert str(e.value)==f'block 1 of `x` must have shape [2, 3], got {list(x.shape)}' and w.blocks['done'].tolist()==[True,False,False]

def test_a_block_needs_all_its_arrays(tmp_path):
    with StoreWriter(tmp_path, PARTS, 5, 2) as w:
        fill(w, blocks=[0])
        with pytest.raises(ValueError, match='`y`'): w.put(1, x=X[2:4])

def test_rows_of_another_dtype_are_refused(tmp_path):
    with StoreWriter(tmp_path, PARTS, 5, 5) as w:
        w.new(y=((),'int8'))
        with pytest.raises((TypeError,ValueError), match='int8'): w.put(0, y=np.full(5, 1000))

@pytest.mark.parametrize('name', ['blocks','items','../x'])
def test_names_that_are_taken_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match=name), StoreWriter(tmp_path, PARTS, 5, 2) as w: w.new(**{name: ((),'int64')})

def test_new_arrays_have_no_block_that_is_done(tmp_path):
    write(tmp_path)
    with pytest.raises(ValueError), StoreWriter(tmp_path, PARTS, 5, 2) as w:
        w.new(x=((4,),'float16'), y=((),'int64'))
        w.close()

@pytest.mark.parametrize('n', [6, 9])
def test_another_number_of_rows_is_no_whole_store(tmp_path, n):
    write(tmp_path)
    with pytest.raises(ValueError), StoreWriter(tmp_path, PARTS, n, 2) as w: fill(w)

@pytest.mark.parametrize('ex', [ZeroDivisionError, KeyboardInterrupt, SystemExit])
def test_an_exception_leaves_what_is_done(tmp_path, ex):
    said = []
    with pytest.raises(ex), StoreWriter(tmp_path, PARTS, 5, 2) as w:
        fill(w, blocks=[])
        raise ex
    assert stores_in(tmp_path)==[] and ActivationStore.find(tmp_path, PARTS) is None
    with pytest.raises(ex), StoreWriter(tmp_path, PARTS, 5, 2) as w:
        fill(w, blocks=[2,0])
        raise ex
    with StoreWriter(tmp_path, PARTS, 5, 2, say=said.append) as w: assert w.missing.tolist()==[1] and said==[]

def test_the_note_of_a_killed_process_is_told(tmp_path):
    said = []
    (tmp_path/f'.{KEY}.holder').write_text('{"pid": 7, "host": "node-7", "since": "long ago"}')
    write(tmp_path, say=said.append)
    assert said==['Process 7 on node-7, which began at long ago ended before it was done: going on from where it stopped']

def test_hosts_are_called_by_their_name(tmp_path):
    said = []
    (tmp_path/f'.{KEY}.holder').write_text('{"pid": 7, "host": "Node-7.LAB", "since": "2026-01-01T00:00:00+00:00"}')
    write(tmp_path, say=said.append)
    assert 'Process 7 on Node-7.LAB, which began at 2026-01-01T00:00:00+00:00 ' in said[0]

@pytest.mark.parametrize('note', ['', '{', '\x00', '{}', '{"pid": 1}', '[]'])
def test_a_note_of_any_kind(tmp_path, note):
    said = []
    (tmp_path/f'.{KEY}.holder').write_text(note)
    assert write(tmp_path, say=said.append).is_whole and len(said)==1 and 'ended before it was done' in said[0]
    assert kept(tmp_path)==[f'.{KEY}.lock', KEY]

def test_the_note_says_who_writes(tmp_path):
    with StoreWriter(tmp_path, PARTS, 5, 2) as w:
        d = json.loads((tmp_path/f'.{KEY}.holder').read_text())
        fill(w)
    assert (d['pid'],d['host'])==(os.getpid(),socket.gethostname()) and d['since'].endswith('+00:00')
    assert kept(tmp_path)==[f'.{KEY}.lock', KEY]

def test_close_waits_for_the_disk(tmp_path, monkeypatch):
    flushed = []
    with StoreWriter(tmp_path, PARTS, 5, 2) as w:
        fill(w)
        monkeypatch.setattr(np.memmap, 'flush', lambda o: flushed.append(Path(o.filename).name))
        w.close()
    assert sorted(flushed)==['blocks.npy','x.npy','y.npy']

def test_nothing_is_said_when_all_is_well(tmp_path):
    said = []
    for o in ([1], None, None): write(tmp_path, blocks=o, say=said.append)
    assert said==[]

@pytest.mark.parametrize('name', ['.digits.tmp', '.a.b.tmp', f'.{"0"*32}.1.tmp', 'mine'])
@pytest.mark.parametrize('make', [Path.mkdir, Path.touch])
def test_files_of_others_stay(tmp_path, name, make):
    make(tmp_path/name)
    write(tmp_path)
    assert kept(tmp_path)==sorted([name, f'.{KEY}.lock', KEY])

def test_leftovers_of_a_killed_process_go(tmp_path):
    (tmp_path/f'.{KEY}.123.tmp').mkdir(parents=True)
    (tmp_path/f'.{KEY}.123.tmp'/'blocks.npy').touch()
    (tmp_path/KEY).mkdir()
    (tmp_path/KEY/'x.npy').touch()
    assert ActivationStore.find(tmp_path, PARTS) is None and explain_miss(tmp_path, PARTS)==[]
    assert write(tmp_path).is_whole and kept(tmp_path)==[f'.{KEY}.lock', KEY] and kept(tmp_path/KEY)==FILES

def test_a_flipped_bit_is_found_by_verify_and_made_again(tmp_path):
    folder,said = write(tmp_path).folder,[]
    np.load(folder/'x.npy', mmap_mode='r+').view(np.uint16)[2,0] ^= 1
    store = ActivationStore.find(tmp_path, PARTS)
    assert store.is_whole and store.verify()==[1] and store.verify([0,2])==[] and store.verify([])==[] and store.verify(np.array([1,2]))==[1]
    with StoreWriter(tmp_path, PARTS, 5, 2, say=said.append) as w:
        assert w.missing.tolist()==[1] and said==[f'1 of 3 blocks in {folder} are damaged: making them again']
        fill(w)
        assert w.close().verify()==[] and store.verify()==[]

@pytest.mark.parametrize('name', ['blocks.npy','x.npy'])
def test_verify_without_an_array(tmp_path, name):
    (write(tmp_path).folder/name).unlink()
    with pytest.raises(ValueError, match=name): ActivationStore.find(tmp_path, PARTS).verify()

@pytest.mark.parametrize('what', ['file', 'below a file', 'no permission'])
def test_a_root_that_cannot_be_written_is_one_clear_error(tmp_path, monkeypatch, what):
    root = tmp_path/'s'
    if what=='no permission': monkeypatch.setattr(os, 'access', lambda *args: False)
    else: root.touch()
    if what=='below a file': root = root/'t'
    with pytest.raises(OSError) as e: write(root)
    assert str(e.value).startswith(f"activations can't be kept in {root}: ") and str(e.value).endswith('; pass another `path`')
    assert root.exists()==(what!='below a file') and not (root.is_dir() and kept(root))

def test_a_root_that_can_only_be_read(tiny_disk):
    "A hit is a hit; a miss is one error"
    write(tiny_disk/'s', items=stat_items([], tiny_disk))
    run('mount', '-o', 'remount,ro', tiny_disk)
    store = ActivationStore.find(tiny_disk/'s', PARTS)
    got = store.is_whole,store.verify(),store.arrays['x'].tolist(),[o['whole'] for o in list_stores(tiny_disk/'s')]
    mark_used(store, stat_items([__file__], tiny_disk))
    del store   # so that a test that fails lets go of the disk
    assert got==(True, [], X.tolist(), [True])
    assert explain_miss(tiny_disk/'s', {**PARTS, 'dtype': 'float32'})==['dtype float16 became float32']
    for root,parts in (tiny_disk/'s',{**PARTS, 'more': 1}),(tiny_disk/'new',PARTS):
        with pytest.raises(OSError, match=f"activations can't be kept in {root}: .*; pass another `path`"): write(root, parts=parts)

def test_too_little_disk_is_said_first(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, 'disk_usage', lambda o: SimpleNamespace(free=69))   # 70 bytes are needed
    with pytest.raises(OSError, match='activations need 0.0 MB, but .* has 0.0 MB free: make room, or pass another `path`'): write(tmp_path)
    assert stores_in(tmp_path)==[]
    monkeypatch.setattr(shutil, 'disk_usage', lambda o: SimpleNamespace(free=70))
    assert write(tmp_path).is_whole

def test_room_that_is_taken_already_counts(tmp_path, monkeypatch):
    "Of arrays that get longer rows only what they have not got yet is needed"
    n = 10_000
    with StoreWriter(tmp_path, PARTS, n, 1000) as w:
        w.new(x=((), 'float32'))
        need = 2*4*n-(w.folder/'x.npy').stat().st_blocks*512
        assert 0<need<8*n-4*n+1
        for free,enough in ((need-1,False),(need,True)):
            monkeypatch.setattr(shutil, 'disk_usage', lambda o: SimpleNamespace(free=free))
            if enough: w.new(x=((2,), 'float32'))
            else:
                with pytest.raises(OSError, match='activations need 0.0 MB'): w.new(x=((2,), 'float32'))
        assert w.store.info=={'x': dict(shape=[n,2], dtype='float32')}

_kinds = st.tuples(st.sampled_from([(), (3,), (2,2), (0,)]), st.sampled_from(DTYPES+['bfloat16']))
_arrays = st.dictionaries(st.sampled_from(['x','y','i','two_words']), _kinds, min_size=1, max_size=3)

@settings(derandomize=True, deadline=None, max_examples=60)
@given(st.integers(1, 20), st.integers(1, 8), _arrays, st.lists(st.integers(0, 5), max_size=4), st.integers(0, 2**32-1))
def test_interrupted_anywhere_it_ends_as_if_it_was_not(n, block, info, stops, seed):
    "Blocks in any order, and interruptions after some of them"
    rng = np.random.default_rng(seed)
    arrays = {k: rng.integers(0, 2 if d=='bool' else 256, (n,*s,1 if d=='bool' else np.dtype('u2' if d=='bfloat16' else d).itemsize), dtype=np.uint8)
        .view('u2' if d=='bfloat16' else d)[...,0] for k,(s,d) in info.items()}
    dtypes,total,done = {k: d for k,(_,d) in info.items()},-(-n//min(block, n)),set()
    with tempfile.TemporaryDirectory() as root:
        root,want = Path(root)/'a',write(Path(root)/'b', arrays, block=block, dtypes=dtypes)
        order = rng.permutation(total).tolist()
        for stop in [*stops, total]:
            with pytest.raises(ZeroDivisionError), StoreWriter(root, PARTS, n, block) as w:
                assert w.missing.tolist()==sorted(set(range(total))-done)
                now = [o for o in order if o not in done][:stop]
                fill(w, arrays, now, dtypes)
                1/0
            done |= set(now)
            store = ActivationStore.find(root, PARTS)
            assert (set(np.flatnonzero(store.blocks['done']))==done and store.verify()==[]) if done else store is None
        with StoreWriter(root, PARTS, n, block) as w: store = w.close()
        assert store.is_whole and kept(store.folder)==kept(want.folder)
        for k,v in arrays.items(): assert (store.folder/f'{k}.npy').read_bytes()==bits(v)
        assert (store.folder/'blocks.npy').read_bytes()==(want.folder/'blocks.npy').read_bytes()

# What changed

BODY = {'0.weight': 'a', '0.bias': 'b', '1.weight': 'c', '1.bias': 'd', '1.running_mean': 'e', '1.running_var': 'f', '1.num_batches_tracked': 'g',
    '2.weight': 'h'}
def changed(*names, body=BODY): return {k: 'other' if k in names else v for k,v in body.items()}
def without(*names): return {k: v for k,v in BODY.items() if k not in names}

@pytest.mark.parametrize('new,says', [(BODY, ''), (dict(reversed(BODY.items())), ''), (changed('0.weight'), 'the weights of layer 0 differ'),
    (changed('0.weight','0.bias'), 'the weights of layer 0 differ'), (changed('0.weight','2.weight'),
    'the weights of layer 0 differ, and those of 1 more of 3 layers'), (changed(*BODY), 'the weights of all 3 layers differ'),
    (changed('0.bias','1.running_var','2.weight'), 'the weights of all 3 layers differ'),
    (changed('1.running_mean','1.running_var','1.num_batches_tracked'), 'the BatchNorm statistics of layer 1 differ'),
    (changed('1.num_batches_tracked'), 'the BatchNorm statistics of layer 1 differ'), (changed('1.weight','1.running_mean'), 'the weights of layer 1 differ'),
    ({**BODY, '3.weight': 'i'}, 'the body has other weights: 3.weight added'), (without('2.weight'), 'the body has other weights: 2.weight gone'),
    ({**without('2.weight'), '3.weight': 'i'}, 'the body has other weights: 3.weight added, 2.weight gone'),
    ({**BODY, **dict.fromkeys('zyxw', 'i')}, 'the body has other weights: w, x, y … added'),
    ({}, 'the body has other weights: 0.bias, 0.weight, 1.bias … gone')])
def test_explain_body(new, says): assert explain_body(BODY, new)==says

@pytest.mark.parametrize('body,names,says', [({'weight': 'a'}, ['weight'], 'the weights of layer weight differ'),
    ({'a.b.c': '1', 'a.b.d': '2'}, ['a.b.c'], 'the weights of layer a.b differ'),
    ({'0.running_mean': 'a', '1.running_mean': 'b', '2.weight': 'c'}, ['0.running_mean','1.running_mean'],
    'the BatchNorm statistics of layer 0 differ, and those of 1 more of 3 layers'),
    ({'0.running_mean': 'a', '1.running_var': 'b'}, ['0.running_mean','1.running_var'], 'the BatchNorm statistics of all 2 layers differ')])
def test_explain_other_bodies(body, names, says): assert explain_body(body, changed(*names, body=body))==says

def test_explain_the_body_of_a_module():
    m = nn.Sequential(nn.Linear(2,3), nn.BatchNorm1d(3), nn.Linear(3,1))
    was = hash_module(m)
    m(torch.randn(4,2))
    assert explain_body(was, hash_module(m))=='the BatchNorm statistics of layer 1 differ'
    with torch.no_grad(): m[2].bias += 1
    assert explain_body(was, hash_module(m))=='the weights of layer 1 differ, and those of 1 more of 3 layers'

class WithExtra(nn.Module):
    "A layer that adds something of its own to its state, as torch lets it"
    def __init__(self, extra):
        super().__init__()
        self.lin,self.extra = nn.Linear(2,2),extra
    def get_extra_state(self): return self.extra
    def set_extra_state(self, state): self.extra = state

@pytest.mark.parametrize('hashes', [hash_module, sum_module])
def test_a_module_with_a_state_of_its_own(hashes):
    m = WithExtra({'scale': 2, 'names': ['a',None]})
    was = hashes(m)
    assert was.keys()=={'lin.weight','lin.bias','_extra_state'} and hashes(m)==was
    m.extra = {'scale': 3, 'names': ['a',None]}
    assert {k for k,v in hashes(m).items() if v!=was[k]}=={'_extra_state'}
    m.extra = object()
    with pytest.raises(CannotDescribe): hashes(m)

def test_an_array_of_objects():
    "Is described by what it holds, not by where that lies"
    a = np.array(['a',None,2], dtype=object)
    assert describe(a)==describe(a.copy())==['a',None,2]
    with pytest.raises(CannotDescribe): describe(np.array([object()]))

def tfm(name, **kw): return {f'fastai.vision.augment.{name}': kw}
def resize(n, **kw): return tfm('Resize', size=[n,n], **kw)
norm,crop,code = tfm('Normalize', mean='m'),tfm('Crop', size=[3,4]),{'function': 'mine.double', 'code': 'ab'}

@pytest.mark.parametrize('old,new,says', [([resize(128)], [resize(160)], ['Resize(size=128) became Resize(size=160)']),
    ([crop], [tfm('Crop', size=[3,5])], ['Crop(size=[3, 4]) became Crop(size=[3, 5])']),
    ([resize(128, method='crop')], [resize(160, method='pad')], ["Resize(size=128, method='crop') became Resize(size=160, method='pad')"]),
    ([resize(128, pad=None)], [resize(128, pad=2)], ['Resize(pad=null) became Resize(pad=2)']),
    ([resize(128)], [resize(128, p=.5)], ['Resize() became Resize(p=0.5)']), ([norm], [norm,crop], ['Crop was added']),
    ([norm,crop], [crop], ['Normalize was removed']), ([], [norm,crop], ['Normalize was added','Crop was added']),
    ([norm,crop], [], ['Normalize was removed','Crop was removed']), ([norm,crop], [crop,norm], ['the transforms come in another order']),
    ([norm,resize(1)], [crop,resize(2)], ['Normalize was removed','Resize(size=1) became Resize(size=2)','Crop was added']),
    ([resize(1),resize(1)], [resize(1)], ['Resize was removed']), ([{'mine.Flip': {}, 'code': ['a']}], [{'mine.Flip': {}, 'code': ['b']}],
    ['Flip was changed']), ([{'Transform': ['a']}], [{'Transform': ['b']}], ['Transform was changed']), (['PILImage.create'], ['PILMask.create'],
    ['PILImage.create was removed','PILMask.create was added']), ([resize(128),resize(160)], [resize(160)], ['Resize was removed']),
    ([code], [], ['double was removed']), pytest.param([{'method': 'mine.A.make'}], [], ['make was removed']),
    ([resize(1, a=None)], [resize(1)], ['Resize(a=null) became Resize()']), ([tfm('Normalize', mean={'hash': 'a'})], [tfm('Normalize', mean={'hash': 'b'})],
    ['Normalize has other values of mean'])])
def test_explain_transforms(tmp_path, old, new, says):
    write(tmp_path, parts={**PARTS, 'transforms': old})
    assert explain_miss(tmp_path, {**PARTS, 'transforms': new})==says

@pytest.mark.parametrize('kw,says', [({}, []), (dict(dtype='float32'), ['dtype float16 became float32']), (dict(dtype=None), ['dtype float16 became None']),
    (dict(body={'0.weight': 'zz'}), ['the weights of layer 0 differ']), (dict(order='abc'), ['the order of the items differs']),
    (dict(architecture='f'*32), ['the architecture of the body differs']), (dict(cut=['Linear']), ['the cut between body and head differs']),
    (dict(targets='cd', dtype='float32'), ['dtype float16 became float32','the targets differ']), (dict(items={'n': 3}), ['the items differ']),
    (dict(n_views=2), ['n_views None became 2']), (dict(note='f'*40), ['note differ']), (dict(transforms=[]), ['transforms differ'])])
def test_explain_other_parts(tmp_path, kw, says):
    write(tmp_path)
    assert explain_miss(tmp_path, {**PARTS, **kw})==says

def test_explain_a_part_that_is_gone(tmp_path):
    write(tmp_path, parts={**PARTS, 'order': 'abc', 'n_views': 2})
    assert explain_miss(tmp_path, PARTS)==['n_views 2 became None','the order of the items differs']
    assert explain_miss(tmp_path, {**PARTS, 'n_views': 3, 'order': 'abc'})==['n_views 2 became 3']

@pytest.mark.parametrize('new,says', [(dict(number=1, seed=0), ['view: number 0 became 1']),
    (dict(number=1, seed=2), ['view: number 0 became 1; view: seed 0 became 2']),
    (dict(number=0), ['view: seed 0 became None'])])
def test_explain_a_view(tmp_path, new, says):
    old = {**PARTS, 'set': 'view', 'view': {'number': 0, 'seed': 0}}
    write(tmp_path, parts=old)
    assert ['; '.join(explain_miss(tmp_path, {**old, 'view': new}))]==says

def test_nothing_to_compare_with(tmp_path):
    for root in tmp_path/'nowhere',tmp_path: assert explain_miss(root, PARTS)==[]
    write(tmp_path)
    assert explain_miss(tmp_path, {**PARTS, 'set': 'valid'})==explain_miss(tmp_path, {k:v for k,v in PARTS.items() if k!='set'})==[]

def test_the_most_similar_store_is_the_one_compared(tmp_path):
    def parts(body, seed, dtype): return {**PARTS, 'body': {'0.weight': body}, 'seed': seed, 'dtype': dtype}
    for i,o in enumerate('abc'): write(tmp_path, parts=parts(o, i, f'{o}16'))
    write(tmp_path, parts={**parts('b', 9, 'b16'), 'set': 'valid'})
    assert explain_miss(tmp_path, parts('b', 9, 'b16'))==['seed 1 became 9'] and explain_miss(tmp_path, parts('c', 1, 'c16'))==['seed 2 became 1']
    assert explain_miss(tmp_path, parts('a', 0, 'b16'))==['dtype a16 became b16']
    write(tmp_path, parts=parts('d', 2, 'c16'), blocks=[0])
    assert explain_miss(tmp_path, parts('d', 2, 'e'))==['dtype c16 became e']

@pytest.mark.parametrize('text', ['', '{"parts": {', '{"name": "web app"}', '[]', '{"parts": []}', '\x00', '3', 'null',
    '['*10**5], ids=lambda o: o[:20])
@pytest.mark.parametrize('name', ['a', KEY[::-1]])
def test_a_damaged_neighbour_is_ignored(tmp_path, text, name):
    write(tmp_path)
    (tmp_path/name).mkdir()
    (tmp_path/name/'manifest.json').write_text(text)
    assert explain_miss(tmp_path, {**PARTS, 'dtype': 'float32'})==['dtype float16 became float32']
    assert [o['folder'].name for o in list_stores(tmp_path)]==[KEY] and len(prune(tmp_path, max_bytes=0))==1
    assert stores_in(tmp_path)==[name]

def rewrite(f): f.write_text('other')

@pytest.mark.parametrize('change,says', [(lambda fs: fs[:-1], ['1 item was removed']), (lambda fs: fs[:1], ['3 items were removed']),
    (lambda fs: fs[::-1], ['the items come in another order']), (lambda fs: fs[:2]+fs[3:]+fs[2:3], ['the items come in another order']),
    (lambda fs: [past(fs[0], rewrite)] and fs, ['1 item was changed']), (lambda fs: [past(o, rewrite) for o in fs] and fs, ['4 items were changed']),
    (lambda fs: [fs[0].rename(fs[0].with_name('new')), *fs[1:]], ['1 item was added','1 item was removed']),
    (lambda fs: [*fs, Path(shutil.copy(fs[0], fs[0].with_name('new')))], ['1 item was added']),
    (lambda fs: [*fs, fs[0]], ['1 item was added'])],
    ids=['one removed','removed','reversed','order','one changed','changed','renamed','added','twice'])
def test_explain_items(tmp_path, files, change, says):
    items,h = hashed(files, tmp_path/'s')
    write(tmp_path/'s', parts={**PARTS, 'items': {'n': 4, 'hash': h}}, items=items)
    root,files = folder_of(files),change(files)
    new,h = hashed(files, tmp_path/'s', root)
    parts = {**PARTS, 'items': {'n': len(files), 'hash': h}}
    assert explain_miss(tmp_path/'s', parts, new)==says and explain_miss(tmp_path/'s', parts)==['the items differ']
    (tmp_path/'s'/stores_in(tmp_path/'s')[0]/'items.npy').unlink()
    assert explain_miss(tmp_path/'s', parts, new)==['the items differ']

# Keeping house

DAY = 86400

def aged(root, **days):
    "Whole stores by name, each last used so many days ago; their folders"
    res = {k: write(root, parts={'set': k}, about=f'store {k}').folder for k in days}
    for k,v in days.items(): os.utime(res[k]/'manifest.json', (time.time()-v*DAY,)*2)
    return res

def grow(folder, size):
    "Make a store so many bytes big"
    (folder/'more').write_bytes(bytes(size-size_of(folder)))

def size_of(folder): return sum(o.stat().st_size for o in folder.iterdir())
def names(res): return [o['about'].rpartition(' ')[2] for o in res]

def test_list_stores(tmp_path):
    stores = aged(tmp_path, a=3, b=1, c=2)
    begun = write(tmp_path, blocks=[0], about='begun').folder
    res = list_stores(str(tmp_path))
    assert [list(o) for o in res]==[['folder','about','rows','whole','made','last_used','bytes']]*4
    assert names(res)==['begun','b','c','a'] and [o['folder'] for o in res]==[begun,*(stores[o] for o in 'bca')]
    assert [(o['whole'],o['rows'],o['bytes']) for o in res]==[(o['folder']!=begun, 5, size_of(o['folder'])) for o in res]
    assert all(abs(time.time()-o['made'])<60 for o in res) and [round((time.time()-o['last_used'])/DAY) for o in res]==[0,1,2,3]
    (stores['b']/'x.npy').unlink()
    assert [o['whole'] for o in list_stores(tmp_path)]==[False,False,True,True]

def test_a_store_that_another_process_deletes_meanwhile(tmp_path, monkeypatch):
    stores,loads = aged(tmp_path, a=3, b=1),json.loads
    def spy(s, **kw):
        if 'store a' in s: shutil.rmtree(stores['a'], ignore_errors=True)
        return loads(s, **kw)
    monkeypatch.setattr(json, 'loads', spy)
    assert names(list_stores(tmp_path))==['b']

def test_used_stores_come_first(tmp_path):
    aged(tmp_path, a=3, b=1)
    mark_used(ActivationStore.find(tmp_path, {'set': 'a'}))
    assert names(list_stores(tmp_path))==['a','b']

def test_an_empty_folder_and_none(tmp_path):
    assert list_stores(tmp_path)==prune(tmp_path, max_bytes=0)==[]
    for f in list_stores,partial(prune, max_bytes=0):
        with pytest.raises(FileNotFoundError, match='there is no folder .*nowhere'): f(tmp_path/'nowhere')
    assert kept(tmp_path)==[]

@pytest.mark.parametrize('kw,gone', [(dict(unused_days=5), []), (dict(unused_days=2.5), 'a'), (dict(unused_days=1.5), 'ca'), (dict(unused_days=0), 'bca'),
    (dict(unused_days=0.), 'bca'), (dict(max_bytes=3000), []), (dict(max_bytes=2999), 'a'), (dict(max_bytes=2000), 'a'), (dict(max_bytes=1999), 'ca'),
    (dict(max_bytes=0), 'bca'), (dict(max_bytes=float('inf')), []), (dict(unused_days=2.5, max_bytes=2000), 'a'), (dict(unused_days=2.5, max_bytes=1000), 'ca'),
    (dict(unused_days=1.5, max_bytes=2000), 'ca'), (dict(unused_days=.5, max_bytes=9999), 'bca')], ids=str)
@pytest.mark.parametrize('dry', [False,True])
def test_prune(tmp_path, kw, gone, dry):
    "By age, by size, and by both: first what is too old, then the oldest of what is too much"
    stores = aged(tmp_path, a=3, b=1, c=2)
    for o in stores.values(): grow(o, 1000)
    listed = [o for o in list_stores(tmp_path) if names([o])[0] in gone]
    assert prune(tmp_path, **kw, dry_run=dry)==listed and names(listed)==list(gone)
    assert names(list_stores(tmp_path))==[o for o in 'bca' if dry or o not in gone]

@pytest.mark.parametrize('sizes,most,gone', [(dict(a=1000, b=9000, c=1000), 3000, 'bca'), (dict(a=1000, b=1000, c=9000), 3000, 'ca'), (dict(a=9000, b=1000, c=1000), 3000, 'a')])
def test_prune_big_stores(tmp_path, sizes, most, gone):
    "From the one not used for longest on, though a bigger one would do; b is the last one used"
    stores = aged(tmp_path, a=3, b=1, c=2)
    for k,v in sizes.items(): grow(stores[k], v)
    assert names(prune(tmp_path, max_bytes=most, dry_run=True))==list(gone)

@pytest.mark.parametrize('kw,match', [({}, 'pass `unused_days`, `max_bytes` or both'), (dict(dry_run=True), 'pass `unused_days`, `max_bytes` or both'),
    (dict(unused_days=-1), '`unused_days` must be a number at least 0, got -1'), (dict(max_bytes=-.5), '`max_bytes` must be a number at least 0, got -0.5'),
    (dict(max_bytes=True), 'got True'), (dict(unused_days='7'), "got '7'"), (dict(max_bytes='1GB'), "got '1GB'"), (dict(unused_days=float('nan')), 'got nan'),
    (dict(unused_days=0, max_bytes=-1), '`max_bytes`'), (dict(max_bytes=[1]), r'got \[1\]')])
def test_prune_refuses(tmp_path, kw, match):
    aged(tmp_path, a=3)
    with pytest.raises(ValueError, match=match): prune(tmp_path, **kw)
    assert names(list_stores(tmp_path))==['a']

def test_prune_leaves_lock_files_only(tmp_path):
    write(tmp_path)
    (tmp_path/f'.{KEY}.holder').write_text('{}')
    assert len(prune(tmp_path, max_bytes=0))==1 and kept(tmp_path)==[f'.{KEY}.lock']
    assert write(tmp_path).is_whole

def test_prune_leaves_a_store_that_is_written(tmp_path):
    aged(tmp_path, a=3)
    with StoreWriter(tmp_path, PARTS, 5, 2, about='begun') as w:
        fill(w, blocks=[0])
        assert names(prune(tmp_path, max_bytes=0))==['a'] and stores_in(tmp_path)==[KEY]
        fill(w, blocks=[1,2])
        assert w.close().verify()==[]
    assert len(prune(tmp_path, max_bytes=0))==1

def test_two_processes_prune_at_once(tmp_path, monkeypatch):
    stores = aged(tmp_path, a=3, b=1)
    class Late(activations.FileLock):
        def acquire(self, *args, **kw):
            "Get the lock once another process has deleted the oldest store"
            shutil.rmtree(stores['a'], ignore_errors=True)
            return super().acquire(*args, **kw)
    monkeypatch.setattr(activations, 'FileLock', Late)
    assert names(prune(tmp_path, max_bytes=0))==['b'] and stores_in(tmp_path)==[]

def test_prune_leaves_what_is_no_store(tmp_path):
    for name,text in dict(app='{"name": "web app"}', odd='[]', cut='{"parts": {').items():
        (tmp_path/name).mkdir()
        (tmp_path/name/'manifest.json').write_text(text)
    (tmp_path/'pictures').mkdir()
    (tmp_path/'notes.txt').touch()
    (tmp_path/'.hidden').mkdir()
    shutil.copy(write(tmp_path).folder/'manifest.json', tmp_path/'.hidden')
    was = kept(tmp_path)
    assert len(prune(tmp_path, max_bytes=0))==1 and kept(tmp_path)==[o for o in was if o!=KEY]

@pytest.mark.parametrize('text', ['{"parts": {}}', '{"parts": {"wheel": 4}, "made": "2020-01-01"}'])
def test_prune_leaves_the_parts_of_others(tmp_path, text):
    (tmp_path/'car').mkdir()
    (tmp_path/'car'/'manifest.json').write_text(text)
    assert list_stores(tmp_path)==prune(tmp_path, max_bytes=0)==[] and kept(tmp_path)==['car']

@pytest.mark.parametrize('kw', [dict(made=None), dict(made='yesterday'), dict(n='5'), dict(block=0), dict(arrays=[]), dict(arrays={'x': 1})], ids=str)
def test_an_odd_manifest_is_listed_as_not_whole(tmp_path, kw):
    aged(tmp_path, a=3)
    edit(write(tmp_path, about='odd').folder, **kw)
    assert [names([o])+[o['whole']] for o in list_stores(tmp_path) if o['about']=='store a']==[['a',True]] and len(prune(tmp_path, max_bytes=0))==2

@pytest.mark.parametrize('make', [lambda f: (f/'link').symlink_to('nowhere'), lambda f: (f/'sub').mkdir() or (f/'sub'/'file').write_text('a')])
def test_files_of_others_in_a_store(tmp_path, make):
    make(write(tmp_path).folder)
    assert len(list_stores(tmp_path))==1 and len(prune(tmp_path, max_bytes=0))==1 and stores_in(tmp_path)==[]

def test_prune_a_linked_root(tmp_path):
    aged(tmp_path/'real', a=3, b=1)
    (tmp_path/'link').symlink_to(tmp_path/'real')
    assert names(list_stores(tmp_path/'link'))==['b','a'] and names(prune(tmp_path/'link', unused_days=2))==['a']
    assert len(stores_in(tmp_path/'real'))==1 and (tmp_path/'link').is_symlink()

def test_prune_a_linked_store(tmp_path):
    other = aged(tmp_path/'other', a=3)['a']
    aged(tmp_path/'mine', b=1)
    (tmp_path/'mine'/other.name).symlink_to(other)
    assert names(prune(tmp_path/'mine', max_bytes=0))==['b'] and stores_in(tmp_path/'mine')==[other.name] and (other/'x.npy').exists()

def test_a_note_that_a_killed_process_left_on_a_whole_store_goes_with_its_next_use(tmp_path):
    store = write(tmp_path)
    note = tmp_path/f'.{store.folder.name}.holder'
    note.write_text('{}')
    mark_used(store)
    assert not note.exists()

@pytest.mark.parametrize('kw', [dict(block=0), dict(n='5'), dict(n=-1), dict(arrays='xy'), dict(arrays=[1]), dict(arrays={'x': {}}), dict(arrays={'x': 3}),
    *[dict(arrays={'x': {**dict(shape=[5,2], dtype='float32'), **o}}) for o in (dict(shape=5), dict(shape=[]), dict(shape=[5,2**70]), dict(shape=[-5,2]),
    dict(shape=[5,.5]), dict(dtype='nonsense'), dict(dtype='object'), dict(dtype=None))]], ids=str)
def test_a_manifest_sealed_anew(tmp_path, kw):
    "Whoever changes it can seal it too: numbers that make no sense are found all the same, and the store is made anew"
    folder = write(tmp_path).folder
    m = {**json.loads((folder/'manifest.json').read_text()), **kw}
    (folder/'manifest.json').write_text(json.dumps({**m, 'seal': activations._seal(m)}))
    with pytest.raises(ValueError, match='damaged|array must have a name'): ActivationStore(folder)
    assert [o['whole'] for o in list_stores(tmp_path)]==[False]
    assert write(tmp_path).is_whole
