"What the processes of `test_store_faults` do; some of them are killed, or kill themselves"
import itertools, os, shutil, signal, sys
import numpy as np
from fastai_clr import activations
from fastai_clr.activations import ActivationStore, StoreWriter

PARTS,N,BLOCK = {'set': 'train', 'body': {'0.weight': 'ab'}},149,3
KEY = activations.fingerprint(PARTS)
ARRAYS = dict(x=((2**15,),'float16'), y=((),'int64'), i=((),'int64'))
SMALL = dict(x=((5,),'float16'), y=((),'int64'), i=((),'int64'))

def rows(b, arrays, n, block):
    "Those of block `b`; none of their bytes is 0"
    rng,size = np.random.default_rng(b),min(block, n-b*block)
    return {k: rng.integers(1, 256, (size,*shape,np.dtype(d).itemsize), dtype=np.uint8).view(d)[...,0] for k,(shape,d) in arrays.items()}

def records(n):
    "As `stat_items` and `hash_items` make them"
    res = np.zeros(n, [('name','S8'), ('size','i8'), ('mtime','i8'), ('ctime','i8'), ('hash','S32')])
    res['name'],res['hash'] = [b'%04d.png'%o for o in range(n)],b'a'*32
    return res

def writer(root, arrays=ARRAYS, n=N, block=BLOCK, say=print): return StoreWriter(root, PARTS, n, block, records(n), 'a store', say)

def fill(w, arrays=ARRAYS, blocks=None, done=lambda b: None):
    if not w.arrays: w.new(**arrays)
    for b in w.missing if blocks is None else blocks:
        w.put(b, **rows(b, arrays, w.n, w.block))
        done(int(b))

def write(root, tell, arrays=ARRAYS, n=N, block=BLOCK):
    "Make the store, or what is missing of it, telling all that happens"
    with writer(root, arrays, n, block, lambda s: tell.send(('said', s))) as w:
        tell.send(('missing', w.missing.tolist()))
        fill(w, arrays, done=lambda b: tell.send(('done', b)))
        w.close()
    tell.send(('whole', True))

def die(*args, **kw): os.kill(os.getpid(), signal.SIGKILL)

def write_and_die(root, tell, at, **kw):
    "As `write`, and be killed as the line number `at` of Python runs; `None`: tell how many there are in all"
    count = itertools.count()
    def line(frame, event, arg):
        if event=='line' and next(count)==at: die()
        return line
    sys.settrace(line)
    write(root, tell, **kw)
    sys.settrace(None)
    tell.send(('lines', next(count)))

def hold(root, tell, go):
    "Write three blocks, and the rest only once told to"
    with writer(root) as w:
        fill(w, blocks=w.missing[:3])
        tell.send(('holding', os.getpid()))
        go.recv()
        fill(w, blocks=np.flatnonzero(~w.blocks['done']))
        w.close()

def take_turns(root, tell, log, most):
    "Three blocks at a time, each noted in a file, until none is missing or others are to go on"
    f = os.open(log, os.O_WRONLY|os.O_APPEND|os.O_CREAT)
    def note(s): os.write(f, f'{os.getpid()} {s}\n'.encode())
    for _ in range(most):
        with writer(root, SMALL, say=lambda s: None) as w:
            if not len(w.missing): return
            note('in')
            fill(w, SMALL, w.missing[:3], lambda b: note(b))
            note('out')

# A full disk

def leave(root, free):
    "Fill the disk up, but for so many bytes"
    with open(root.parent/'filler', 'ab') as f: f.write(bytes(max(0, shutil.disk_usage(root).free-free)))

def make_room(root): (root.parent/'filler').unlink()

def told_of(tell, f, *args, **kw):
    "What `f` returns, or its OSError"
    try: tell.send(('got', f(*args, **kw)))
    except OSError as e: tell.send(('error', f'{type(e).__name__}: {e}'))

WIDE = dict(x=((10000,),'uint8'), y=((2000,),'uint8'))

def write_wide(root, blocks=None, before=lambda w: None, n=60):
    "A store of 0.7 MB; numbers of the blocks that were missing"
    with writer(root, WIDE, n, 10, lambda s: None) as w:
        missing = w.missing.tolist()
        if not w.arrays: w.new(**WIDE)
        before(w)
        fill(w, WIDE, blocks)
        if blocks is None: w.close()
    return missing

def state(root):
    "Numbers of the blocks that are done, and all that is wrong with them"
    store = ActivationStore.find(root, PARTS)
    return ([],[]) if store is None else (np.flatnonzero(store.blocks['done']).tolist(), [o.partition(':')[0] for o in store.damage] or store.verify())

def full_while_writing(root): return write_wide(root, before=lambda w: leave(root, 0))

def full_while_making_room(root):
    "The disk fills up between the look at it and the making of arrays"
    activations.StoreWriter.check_room = lambda self, need: leave(root, 300000)
    return write_wide(root)

def full_before_the_manifest(root):
    "There is room for the arrays, and not one byte more"
    update = StoreWriter._update
    def filled(self, **kw):
        leave(root, 0)
        return update(self, **kw)
    StoreWriter._update = filled
    return write_wide(root)

def killed_before_the_manifest(root, tell):
    StoreWriter._update = die
    write_wide(root)
