"A store whose process is killed, whose files are damaged, whose disk is full, and that others want too: it ends as if nothing was, or says what is wrong"
import json, multiprocessing, os, random, shutil, signal, socket
from pathlib import Path
import numpy as np, pytest
from hypothesis import HealthCheck, Phase, given, settings, strategies as st
from fastai_clr.activations import ActivationStore, list_stores, prune
from learners import cases
import worker_store as work
from worker_store import BLOCK, KEY, N, PARTS, SMALL

stress = pytest.mark.skipif(not os.environ.get('STRESS'), reason='takes minutes: set STRESS=1')
FILES = ['blocks.npy','i.npy','items.npy','manifest.json','x.npy','y.npy']
TOTAL = -(-N//BLOCK)

# Processes are forked from one that has imported torch, and nothing else has happened in
ctx = multiprocessing.get_context('forkserver')
ctx.set_forkserver_preload(['fastai_clr.activations'])

@pytest.fixture(autouse=True, scope='module')
def no_sync():
    "This process doesn't wait for the disk; those that are killed do"
    with pytest.MonkeyPatch.context() as m:
        m.setattr(np.memmap, 'flush', lambda o: None)
        yield

class Child:
    "A process that runs `f`; what it tells comes by a pipe"
    def __init__(self, f, *args, **kw):
        self.pipe,theirs = ctx.Pipe(duplex=False)
        self.p = ctx.Process(target=f, args=args[:1]+(theirs,)+args[1:], kwargs=kw, daemon=True)
        self.p.start()
        theirs.close()

    def next(self, *kinds):
        "The next thing of some kind that it tells"
        while True:
            assert self.pipe.poll(60), 'it tells nothing'
            k,v = self.pipe.recv()
            if k in kinds: return v

    def rest(self):
        "All that it told and was not read, as (kind, value), up to its end"
        res = []
        while True:
            assert self.pipe.poll(60), 'it does not end'
            try: res.append(self.pipe.recv())
            except EOFError: return res

    def kill(self):
        self.p.kill()
        return self.end(-signal.SIGKILL)

    def end(self, code=0):
        "What it still told, by kind, once it has ended with that exit status"
        res = {}
        for k,v in self.rest(): res.setdefault(k, []).append(v)
        self.p.join(60)
        assert self.p.exitcode==code, f'exit status {self.p.exitcode}, after {res}'
        return res

def kept(root): return sorted(o.name for o in root.iterdir())

def manifest(root):
    res = json.loads((root/KEY/'manifest.json').read_text())
    return {k:v for k,v in res.items() if k!='made'}

def same(root, want):
    "Each file is what a run without faults makes, and there is no other"
    assert kept(root)==[f'.{KEY}.lock', KEY] and kept(root/KEY)==FILES and manifest(root)==manifest(want)
    for o in FILES:
        if o!='manifest.json': assert (root/KEY/o).read_bytes()==(want/KEY/o).read_bytes(), o

def made(path, arrays, n, block):
    "Folder with a whole store, made in this process"
    with work.writer(path, arrays, n, block) as w:
        work.fill(w, arrays)
        w.close()
    return path

@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    "A store of 50 blocks of 0.2 MB; for reading only"
    return made(tmp_path_factory.mktemp('whole'), work.ARRAYS, N, BLOCK)

small = dict(arrays=SMALL, n=13, block=3)

@pytest.fixture(scope='module')
def whole_small(tmp_path_factory):
    "A store of 5 blocks; for reading only"
    return made(tmp_path_factory.mktemp('small'), **small)

# Kills

def kill_and_go_on(root, want, kills, rnd):
    "Kill `kills` writers of one store after another, each a random number of blocks on; stores that are whole by then are checked, and begun again"
    for _ in range(kills):
        child = Child(work.write, root)
        missing = child.next('missing')
        n = rnd.randrange(min(5, len(missing)))
        told = [child.next('done') for _ in range(n)] + child.kill().get('done', [])
        assert told==missing[:len(told)]
        store = ActivationStore.find(root, PARTS)
        if store.info: assert store.damage==[] and store.verify()==[]
        done = np.flatnonzero(store.blocks['done']).tolist()
        assert set(done)>=set(range(TOTAL))-set(missing) | set(told) and len(done)<=TOTAL-len(missing)+len(told)+1
        if TOTAL-len(done)>5: continue
        go_on(root, want, sorted(set(range(TOTAL))-set(done)))
        shutil.rmtree(root)
    go_on(root, want)

def go_on(root, want, missing=None):
    "Another process makes what is missing, and the store is as it should be"
    got = Child(work.write, root).end()
    if missing is not None: assert got['missing']==[missing] and got.get('done', [])==missing
    assert got['whole']==[True]
    same(root, want)

def test_killed_and_gone_on(tmp_path, whole): kill_and_go_on(tmp_path/'s', whole, 25, random.Random(0))

@stress
@pytest.mark.parametrize('seed', range(4))
def test_killed_200_times_and_gone_on(tmp_path, whole, seed): kill_and_go_on(tmp_path/'s', whole, 50, random.Random(seed))

def lines(root, **kw): return Child(work.write_and_die, root, None, **kw).end()['lines'][0]

def die_at_line(root, want, at, **kw):
    "Be killed at a line, and go on"
    got = Child(work.write_and_die, root, at, **kw).end(-signal.SIGKILL)
    begun = ActivationStore.find(root, PARTS)
    if begun is not None: assert not begun.info or begun.damage==begun.verify()==[]
    again = Child(work.write, root, **kw).end()
    assert again['whole']==[True] and not set(again.get('done', [])) & set(got.get('done', [])[:-1])
    same(root, want)

def moments(total, n, seed):
    "A random one of each `n`th of all lines"
    rnd = random.Random(seed)
    return [rnd.randrange(i*total//n, (i+1)*total//n) for i in range(n)]

def killed_anywhere(path, want, n):
    total = lines(path/'count', **small)
    for at in moments(total, n, 0): die_at_line(path/str(at), want, at, **small)

def test_killed_in_creation_and_after(tmp_path, whole_small):
    "At a random line of Python, from the lock on"
    killed_anywhere(tmp_path, whole_small, 24)

@stress
def test_killed_at_many_lines(tmp_path, whole_small): killed_anywhere(tmp_path, whole_small, 600)

def spoil(root):
    "Damage that takes every kind of mending: an array is gone, one cut short, one has a byte flipped"
    folder = root/KEY
    (folder/'y.npy').unlink()
    os.truncate(folder/'i.npy', 150)
    flip(folder/'x.npy', 128)

def killed_as_it_mends(path, want, n):
    def spoiled(name):
        shutil.copytree(want, path/name)
        spoil(path/name)
        return path/name
    total = lines(spoiled('count'), **small)
    for at in moments(total, n, 1):
        Child(work.write_and_die, spoiled(str(at)), at, **small).end(-signal.SIGKILL)
        assert Child(work.write, path/str(at), **small).end()['whole']==[True]
        same(path/str(at), want)

def test_killed_as_it_mends(tmp_path, whole_small): killed_as_it_mends(tmp_path, whole_small, 12)

@stress
def test_killed_at_many_lines_as_it_mends(tmp_path, whole_small): killed_as_it_mends(tmp_path, whole_small, 300)

# Damage

@pytest.fixture
def root(tmp_path, whole_small):
    "Folder with a whole store of 5 blocks, to be damaged"
    return Path(shutil.copytree(whole_small, tmp_path/'s'))

def flip(file, at, bit=0):
    b = bytearray(file.read_bytes())
    b[at] ^= 1<<bit
    file.write_bytes(b)

def mend(root, want, missing):
    "The blocks that a writer finds missing are those, and afterwards all is as it was; what it said"
    said = []
    with work.writer(root, **small, say=said.append) as w:
        assert w.missing.tolist()==missing
        work.fill(w, SMALL)
        assert w.close().verify()==[]
    same(root, want)
    return said

head = 128   # bytes before the rows
def size(name): return {'x': 10, 'y': 8, 'i': 8}[name]

@pytest.mark.parametrize('name', SMALL)
@pytest.mark.parametrize('b', range(5))
def test_a_flipped_byte(root, whole_small, name, b):
    "In the first and in the last byte of a block"
    for at in b*3*size(name),min(13, b*3+3)*size(name)-1:
        flip(root/KEY/f'{name}.npy', head+at, b)
        store = ActivationStore.find(root, PARTS)
        assert store.is_whole and store.verify()==[b]
        assert mend(root, whole_small, [b])==[f'1 of 5 blocks in {root/KEY} are damaged: making them again']

@pytest.mark.parametrize('name', SMALL)
def test_cut_short(root, whole_small, name):
    "At any length: what is left of it is kept"
    file,total = root/KEY/f'{name}.npy',head+13*size(name)
    for n in sorted({0, 1, 6, 60, head-1, head, head+1, head+size(name), head+3*size(name)-1, head+3*size(name), head+7*size(name)+size(name)//2,
        total-size(name), total-1}):
        os.truncate(file, n)
        store = ActivationStore.find(root, PARTS)
        assert not store.is_whole and len(store.damage)==1 and store.damage[0].startswith(f'{name}.npy: ')
        bad = [b for b in range(5) if n<head or head+min(13, b*3+3)*size(name)>n]
        said = mend(root, whole_small, bad)
        assert said[0].startswith(f'Damaged in {root/KEY}: {name}.npy: ') and said[1]==f'{len(bad)} of 5 blocks in {root/KEY} are damaged: making them again'

@pytest.mark.parametrize('extra', [1, 1000])
def test_too_long(root, whole_small, extra):
    for o in 'xyi': (root/KEY/f'{o}.npy').write_bytes((root/KEY/f'{o}.npy').read_bytes()+bytes(extra))
    assert mend(root, whole_small, [])==[]

@pytest.mark.parametrize('names', ['x', 'y', 'i', 'xyi'])
def test_missing_arrays(root, whole_small, names):
    for o in names: (root/KEY/f'{o}.npy').unlink()
    assert len(mend(root, whole_small, list(range(5))))==len(names)+1

@pytest.mark.parametrize('name', [*SMALL, 'blocks'])
@pytest.mark.parametrize('change', [lambda a: a.astype('f8' if a.dtype.names is None else [('done','i8'),('sum','u1',(16,))]), lambda a: a[:-1],
    lambda a: a[None], lambda a: a[:0], lambda a: np.concatenate([a,a]), lambda a: a[0],
    lambda a: a.astype(a.dtype.newbyteorder('>')) if a.dtype.names is None else a['sum'],
    lambda a: np.asfortranarray(a[:,:,None]) if a.ndim>1 else np.zeros((13,5), 'f2').T], ids=['dtype','short','deep','empty','twice','row','endian','fortran'])
def test_another_array(root, whole_small, name, change):
    file = root/KEY/f'{name}.npy'
    np.save(file, change(np.load(file)))
    assert [o.partition(':')[0] for o in ActivationStore.find(root, PARTS).damage]==[f'{name}.npy']
    assert mend(root, whole_small, list(range(5)))[0].startswith(f'Damaged in {root/KEY}: {name}.npy: it holds ')

@pytest.mark.parametrize('name', [*SMALL, 'blocks'])
@pytest.mark.parametrize('text', [b'', b'text', b'\x93NUMPY', bytes(400), b'\x93NUMPY\x01\x00\x76\x00'+b'{}'.ljust(117)+b'\n',
    b'PK\x03\x04'+bytes(99),
    b'\x93NUMPY\x01\x00\x76\x00'+b'('*117+b'\n'], ids=lambda o: o[:6].hex())
def test_no_array(root, whole_small, name, text):
    (root/KEY/f'{name}.npy').write_bytes(text)
    assert not ActivationStore.find(root, PARTS).is_whole
    mend(root, whole_small, list(range(5)))

def test_an_archive_in_place_of_an_array(root, whole_small):
    with open(root/KEY/'x.npy', 'wb') as f: np.savez(f, x=np.zeros(3))
    mend(root, whole_small, list(range(5)))

def test_a_folder_in_place_of_an_array(root, whole_small):
    (root/KEY/'x.npy').unlink()
    (root/KEY/'x.npy').mkdir()
    mend(root, whole_small, list(range(5)))

@pytest.mark.parametrize('n', [0, 64, head, head+1, head+17, head+17*3+5, head+17*5-1])
def test_the_map_cut_short(root, whole_small, n):
    "Blocks whose entries are gone are made again"
    os.truncate(root/KEY/'blocks.npy', n)
    bad = [b for b in range(5) if n<head or head+17*(b+1)>n]
    assert mend(root, whole_small, bad)[0].startswith(f'Damaged in {root/KEY}: blocks.npy: ')

def test_the_map_is_missing(root, whole_small):
    (root/KEY/'blocks.npy').unlink()
    assert not ActivationStore.find(root, PARTS).is_whole
    mend(root, whole_small, list(range(5)))

@pytest.mark.parametrize('b', range(5))
def test_a_flipped_byte_of_the_map(root, whole_small, b):
    "The mark that a block is done, and its checksum"
    for at in 0,1,16:
        flip(root/KEY/'blocks.npy', head+17*b+at)
        mend(root, whole_small, [b])

def test_a_mark_of_another_kind(root, whole_small):
    flip(root/KEY/'blocks.npy', head+17, 3)
    mend(root, whole_small, [1] if ActivationStore.find(root, PARTS).verify() else [])

def test_a_mark_that_a_block_is_done_is_not_believed(tmp_path, whole_small):
    with work.writer(tmp_path, **small) as w: work.fill(w, SMALL, [0,3])
    flip(tmp_path/KEY/'blocks.npy', head+17)
    assert ActivationStore.find(tmp_path, PARTS).verify()==[1]
    mend(tmp_path, whole_small, [1,2,4])

@pytest.mark.parametrize('name', ['x','blocks'])
def test_a_flipped_bit_of_a_header(root, whole_small, name):
    "It is found, or changes nothing"
    file,good = root/KEY/f'{name}.npy',(root/KEY/f'{name}.npy').read_bytes()
    for at in random.Random(0).sample(range(head*8), 60):
        flip(file, at//8, at%8)
        with work.writer(root, **small, say=lambda s: None) as w:
            work.fill(w, SMALL)
            assert w.close().is_whole
        assert file.read_bytes()[head:]==good[head:], f'bit {at}'
        file.write_bytes(good)

@pytest.mark.parametrize('name', [*SMALL, 'blocks'])
@pytest.mark.parametrize('at,bit', [*((6,o) for o in range(8)), *((7,o) for o in range(8)), (8,1), (8,2)])
def test_a_flipped_bit_before_a_header(root, whole_small, name, at, bit):
    "Of its version, and of its length"
    flip(root/KEY/f'{name}.npy', at, bit)
    mend(root, whole_small, list(range(5)))

class Touch:
    def __init__(self, file): self.file = file
    def __reduce__(self): return open,(self.file, 'w')

@pytest.mark.parametrize('name', ['x','y','i','blocks','items'])
def test_nothing_is_executed(root, tmp_path, whole_small, name):
    "Pickles stay what they are"
    mark = tmp_path/'executed'
    np.save(root/KEY/f'{name}.npy', np.array([Touch(str(mark))], object), allow_pickle=True)
    work.activations.hash_items(work.records(0), [], root)
    assert ActivationStore.find(root, PARTS).is_whole==(name=='items')
    if name!='items': mend(root, whole_small, list(range(5)))
    assert not mark.exists()
    np.load(root/KEY/f'{name}.npy', allow_pickle=name=='items')
    assert mark.exists()==(name=='items')

def test_a_manifest_cut_short(root, whole_small):
    "At any length: the store is made anew"
    file,text = root/KEY/'manifest.json',(whole_small/KEY/'manifest.json').read_text()
    for n in [0, 1, 10, *range(30, len(text), 40), len(text)-1]:
        file.write_text(text[:n])
        with pytest.raises(ValueError, match=f'the manifest of the store {root/KEY} is damaged: '): ActivationStore.find(root, PARTS)
        assert mend(root, whole_small, list(range(5)))[0].endswith(': starting anew')

@pytest.mark.parametrize('text', ['[]', 'null', '3', '"text"', '{}', '{"format": 2}', '\x00',
    '['*10**5], ids=lambda o: o[:9])
def test_another_manifest(root, whole_small, text):
    (root/KEY/'manifest.json').write_text(text)
    assert mend(root, whole_small, list(range(5)))[0].endswith(': starting anew')

def test_a_manifest_that_is_no_text(root, whole_small):
    (root/KEY/'manifest.json').write_bytes(b'\xff\xfe'+bytes(9))
    mend(root, whole_small, list(range(5)))

def test_without_a_manifest_it_is_no_store(root, whole_small):
    (root/KEY/'manifest.json').unlink()
    assert ActivationStore.find(root, PARTS) is None
    assert mend(root, whole_small, list(range(5)))==[]

def edit(root, **kw): (root/KEY/'manifest.json').write_text(json.dumps({**json.loads((root/KEY/'manifest.json').read_text()), **kw}))

def survive(root, want):
    "A store with an odd manifest is refused with ValueError, or ends like any other: whole, all rows as they were"
    try: store = ActivationStore.find(root, PARTS)
    except ValueError: store = None
    if store is not None and store.is_whole: assert (store.n,store.block,store.parts)==(13,3,PARTS)
    try:
        with work.writer(root, **small, say=lambda s: None) as w:
            work.fill(w, SMALL)
            w.close()
    except ValueError as e:
        assert 'has format' in str(e)
        return
    store = ActivationStore.find(root, PARTS)
    assert store.is_whole and store.verify()==[] and store.parts==PARTS and sorted(store.arrays)==['i','x','y']
    for o in 'xyi': assert (root/KEY/f'{o}.npy').read_bytes()==(want/KEY/f'{o}.npy').read_bytes()
    list_stores(root)

def arrays_with(**kw): return {k: {'shape': [13,*s], 'dtype': d} for k,(s,d) in SMALL.items()} | kw

@pytest.mark.parametrize('kw', [dict(about=3), dict(versions=None), dict(more=1), dict(n=13.), dict(format=3), dict(format='2'), dict(format=None),
    dict(arrays={})], ids=str)
def test_an_odd_manifest(root, whole_small, kw):
    edit(root, **kw)
    survive(root, whole_small)

@pytest.mark.parametrize('kw', [dict(n=12), dict(n=14), dict(n=16), dict(n='13'), dict(n=None), dict(block=2), dict(block=0), dict(block=-3), dict(block='3'),
    dict(parts={}), dict(parts=[]), dict(parts={**PARTS, 'set': 'valid'}), dict(arrays=[]), dict(arrays={'x': 1}),
    dict(arrays=arrays_with(x={'shape': 5, 'dtype': 'float16'})), dict(arrays=arrays_with(x={'shape': [13,5], 'dtype': 'nonsense'})),
    dict(arrays=arrays_with(x={'shape': [13,5], 'dtype': 'object'})), dict(arrays=arrays_with(x={'shape': [13,5], 'dtype': 'float32'})),
    dict(arrays=arrays_with(x={'shape': [13,6], 'dtype': 'float16'})), dict(arrays=arrays_with(x={'shape': ['13',5], 'dtype': 'float16'})),
    dict(arrays=arrays_with(z={'shape': [13], 'dtype': 'int64'})), dict(arrays={k:v for k,v in arrays_with().items() if k!='y'}), dict(made=None),
    dict(made='yesterday')], ids=str)
def test_an_odd_manifest_is_not_believed(root, whole_small, kw):
    edit(root, **kw)
    survive(root, whole_small)

@pytest.mark.parametrize('name', ['../../victim','{}/victim'])
def test_no_file_elsewhere_is_written(root, name):
    victim = root.parent/'victim.npy'
    victim.write_text('mine')
    edit(root, arrays=arrays_with(**{name.format(root.parent): {'shape': [13], 'dtype': 'int64'}}))
    with work.writer(root, **small, say=lambda s: None): assert victim.read_text()=='mine'

_value = st.none()|st.booleans()|st.integers(-3, 20)|st.floats(-9,
    9)|st.sampled_from(['','x','float16','uint8','O','bfloat16','M8','a/b','13'])|st.lists(st.integers(-2, 14), max_size=3)
_value = _value | st.dictionaries(st.sampled_from(['x','y','shape','dtype']), _value, max_size=2)

def places(d, at=()):
    "All keys and indices within a JSON value, as paths"
    items = d.items() if isinstance(d, dict) else enumerate(d) if isinstance(d, list) else ()
    return [o for k,v in items for o in [(*at,k), *places(v, (*at,k))]]

def mutate(d, at, how, value):
    for k in at[:-1]: d = d[k]
    if how=='replace': d[at[-1]] = value
    elif how=='delete': del d[at[-1]]
    elif isinstance(d, dict): d[str(value)] = d.pop(at[-1])
    else: d.insert(at[-1], value)

@settings(derandomize=True, deadline=None, max_examples=cases(60), phases=[Phase.generate], report_multiple_bugs=False, suppress_health_check=list(HealthCheck))
@given(data=st.data(), how=st.sampled_from(['replace','delete','rename']), value=_value)
def test_any_change_of_a_manifest(tmp_path_factory, whole_small, data, how, value):
    root = Path(shutil.copytree(whole_small, tmp_path_factory.mktemp('mutated')/'s'))
    m = json.loads((root/KEY/'manifest.json').read_text())
    mutate(m, data.draw(st.sampled_from(places(m))), how, value)
    (root/KEY/'manifest.json').write_text(json.dumps(m))
    survive(root, whole_small)

@pytest.mark.parametrize('damage', [lambda f: f.unlink(), lambda f: flip(f, f.stat().st_size-1), lambda f: os.truncate(f, 200)], ids=['gone','flipped','cut'])
def test_damaged_records_of_files(root, whole_small, damage):
    damage(root/KEY/'items.npy')
    mend(root, whole_small, [])

# Two and more processes

def begin(f, root):
    "A process that holds a store, and a second that waits for it: both, the pipe that lets the first go on, its number, and what the second said"
    theirs,go = ctx.Pipe(duplex=False)
    first = Child(work.hold, root, theirs)
    pid = first.next('holding')
    second = Child(f, root)
    return first,second,go,pid,second.next('said')

def test_a_second_process_waits_and_finds_the_store(tmp_path, whole):
    first,second,go,pid,said = begin(work.write, tmp_path)
    assert said.startswith(f'Waiting for process {pid} on {socket.gethostname()}, which began at 2') and said.endswith(': it is making these activations')
    assert not second.pipe.poll()
    go.send(1)
    first.end()
    assert second.end()=={'missing': [[]], 'whole': [True]}
    same(tmp_path, whole)

def test_the_first_is_killed_and_the_second_goes_on(tmp_path, whole):
    first,second,go,pid,said = begin(work.write, tmp_path)
    first.kill()
    got = second.end()
    assert len(got['said'])==1 and got['said'][0].startswith(f'Process {pid} on ') and 'ended before it was done: going on from' in got['said'][0]
    assert got['missing']==[list(range(3, TOTAL))]==[got['done']] and got['whole']==[True]
    same(tmp_path, whole)

def test_the_second_is_killed_as_it_waits(tmp_path, whole):
    first,second,go,*_ = begin(work.write, tmp_path)
    second.kill()
    go.send(1)
    first.end()
    same(tmp_path, whole)

def test_other_stores_do_not_wait(tmp_path):
    theirs,go = ctx.Pipe(duplex=False)
    first = Child(work.hold, tmp_path, theirs)
    first.next('holding')
    said = []
    with work.StoreWriter(tmp_path, {'set': 'valid'}, 13, 3, say=said.append) as w:
        work.fill(w, SMALL)
        assert w.close().is_whole and said==[]
    go.send(1)
    first.end()

def test_prune_waits_for_nobody(tmp_path):
    theirs,go = ctx.Pipe(duplex=False)
    first = Child(work.hold, tmp_path, theirs)
    first.next('holding')
    assert prune(tmp_path, max_bytes=0)==[] and [o['whole'] for o in list_stores(tmp_path)]==[False]
    first.kill()
    assert len(prune(tmp_path, max_bytes=0))==1 and kept(tmp_path)==[f'.{KEY}.lock']

def check_race(path, n, want):
    "So many processes make one store, three blocks at a time, and each of them but a share of it"
    most = -(-TOTAL//(3*n))
    children = [Child(work.take_turns, path/'s', path/'log', most) for _ in range(n)]
    for o in children: o.end()
    log = [o.split() for o in (path/'log').read_text().splitlines()]
    turns = [log[i:i+5] for i in range(0, len(log), 5)]
    for turn in turns: assert len({pid for pid,_ in turn})==1 and turn[0][1]=='in' and turn[-1][1]=='out', turn
    assert [int(o) for _,o in log if o.isdigit()]==list(range(TOTAL)) and len({pid for pid,_ in log})>=len(turns)/most
    same(path/'s', want)

@pytest.fixture(scope='module')
def whole_turns(tmp_path_factory): return made(tmp_path_factory.mktemp('turns'), SMALL, N, BLOCK)

def test_each_block_is_written_once(tmp_path, whole_turns): check_race(tmp_path, 4, whole_turns)

@stress
@pytest.mark.parametrize('n', range(2, 12))
def test_each_block_is_written_once_by_many(tmp_path, whole_turns, n): check_race(tmp_path, n, whole_turns)

# A full disk

@pytest.fixture
def full(tiny_disk):
    "Folder for a store on a disk of 1 MB"
    root = tiny_disk/'s'
    root.mkdir()
    return root

def tried(root, f, *args, code=0, **kw):
    "In another process, so that nothing here holds on to the disk: what came of it"
    got = Child(in_turn, root, f, args, kw).end(code)
    return [(k,v[0]) for k,v in got.items()][0] if got else None

def in_turn(root, tell, f, args, kw): work.told_of(tell, f, root, *args, **kw)

def intact(root):
    "Numbers of the blocks that are done; all of them have to be good"
    kind,(done,bad) = tried(root, work.state)
    assert (kind,bad)==('got', [])
    return done

def test_too_little_room_is_said_before_work(full):
    work.leave(full, 500000)
    kind,said = tried(full, work.write_wide)
    assert (kind,said)==('error', f'OSError: activations need 0.7 MB, but {full} has 0.5 MB free: make room, or pass another `path`')
    assert kept(full)==[f'.{KEY}.lock']
    work.make_room(full)
    assert tried(full, work.write_wide)==('got', [0,1,2,3,4,5])
    assert intact(full)==[0,1,2,3,4,5]

def test_room_is_taken_before_work(full):
    "Once it has begun, a full disk is no concern of it"
    assert tried(full, work.full_while_writing)==('got', [0,1,2,3,4,5])
    assert shutil.disk_usage(full).free<=4096 and intact(full)==[0,1,2,3,4,5]

@pytest.mark.parametrize('f', [work.full_while_making_room, work.full_before_the_manifest])
def test_the_disk_fills_up_as_room_is_made(full, f):
    kind,said = tried(full, f)
    assert kind=='error' and 'No space left' in said and ActivationStore.find(full, PARTS) is None and not (full/KEY).exists()
    work.make_room(full)
    assert tried(full, work.write_wide)==('got', [0,1,2,3,4,5])
    assert intact(full)==[0,1,2,3,4,5]

def test_the_disk_is_full_when_it_goes_on(full):
    "What is done stays; with some room it goes on"
    assert tried(full, work.write_wide, [4,1])==('got', [0,1,2,3,4,5])
    work.leave(full, 0)
    kind,said = tried(full, work.write_wide)
    assert kind=='error' and 'No space left' in said and intact(full)==[1,4]
    work.make_room(full)
    assert tried(full, work.write_wide)==('got', [0,2,3,5]) and intact(full)==[0,1,2,3,4,5]

def test_a_lost_array_on_a_full_disk(full):
    "An error, and the other arrays stay; with some room all is made"
    tried(full, work.write_wide)
    (full/KEY/'y.npy').unlink()
    work.leave(full, 50000)
    kind,said = tried(full, work.write_wide)
    assert kind=='error' and 'No space left' in said and kept(full/KEY)==['blocks.npy','items.npy','manifest.json','x.npy']
    work.make_room(full)
    assert tried(full, work.write_wide)==('got', [0,1,2,3,4,5]) and intact(full)==[0,1,2,3,4,5]

def test_an_array_cut_short_on_a_full_disk(full):
    tried(full, work.write_wide)
    os.truncate(full/KEY/'x.npy', 100000)
    work.leave(full, 50000)
    kind,said = tried(full, work.write_wide)
    assert kind=='error' and 'No space left' in said

def test_damage_stays_in_sight_when_it_cannot_be_mended(full):
    tried(full, work.write_wide)
    os.truncate(full/KEY/'x.npy', 100000)
    work.leave(full, 50000)
    assert tried(full, work.write_wide)[0]=='error'
    assert tried(full, work.state)==('got', ([0,1,2,3,4,5], ['x.npy']))
    work.make_room(full)
    assert tried(full, work.write_wide)==('got', [0,1,2,3,4,5]) and intact(full)==[0,1,2,3,4,5]

@pytest.mark.parametrize('f', [work.write_wide, work.full_while_making_room])
def test_a_full_disk_is_said_to_be_which(full, f):
    if f is work.write_wide: work.leave(full, 0)
    kind,said = tried(full, f)
    assert kind=='error' and str(full) in said and 'pass another `path`' in said

def test_a_full_disk_is_said_to_be_which_of_the_map(full):
    kind,said = tried(full, work.write_wide, n=10**6)
    assert kind=='error' and str(full) in said and 'pass another `path`' in said

def test_no_note_is_left_on_a_full_disk(full):
    work.leave(full, 0)
    assert tried(full, work.write_wide)[0]=='error' and kept(full)==[f'.{KEY}.lock']

def test_nothing_is_left_of_a_map_that_does_not_fit(full):
    tried(full, work.write_wide, n=10**6)
    assert kept(full)==[f'.{KEY}.lock']

def test_room_that_is_taken_is_not_asked_for_again(full):
    Child(work.killed_before_the_manifest, full).end(-signal.SIGKILL)
    assert tried(full, work.write_wide)==('got', [0,1,2,3,4,5])
