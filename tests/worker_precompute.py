"A process of `test_precompute`: it finds the stores of another, and has processes of its own killed while they make some"
import json, os, random, signal, sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
import fastai_clr.precompute   # chkstyle: ignore (it patches Learner)
from fastai_clr.activations import ActivationStore, StoreWriter
from pictures import calls, plain_dls, small

def call(learn, *args, **kw):
    "What a call of `precompute` did"
    n,said = calls(learn.model[0]),StringIO()
    with redirect_stdout(said): head = learn.precompute(*args, **kw)
    return dict(calls=len(n), said=said.getvalue(), folders=[o.folder.name for o in head.stores.values()], loss=head.validate()[0])

class Moments:
    "Counts the calls of functions from the first `StoreWriter` on, in all libraries; kills its process at number `at`"
    def __init__(self, at=None): self.n,self.at,self.on = 0,at,False

    def __call__(self, frame, what, arg):
        self.on = self.on or frame.f_code is StoreWriter.__init__.__code__
        if not self.on or what!='call': return
        self.n += 1
        if self.n==self.at: os.kill(os.getpid(), signal.SIGKILL)

    def during(self, f):
        sys.setprofile(self)
        try: return f()
        finally: sys.setprofile(None)

def child(f, out):
    "The exit status of a process that runs `f` and writes what it returns; negative for a signal"
    out.unlink(missing_ok=True)
    pid = os.fork()
    if pid==0:
        try: out.write_text(json.dumps(f()))
        finally: os._exit(0 if out.exists() else 1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def left(root, n):
    "How many of `n` blocks are not done; and whether there is a note of who makes a store that isn't whole"
    found = {o.parent.name:ActivationStore(o.parent) for o in root.glob('[!.]*/manifest.json')}
    done = sum(int(o.blocks['done'].sum())-len(o.verify() if o.info else []) for o in found.values())
    held = [o.name.split('.')[1] for o in root.glob('.*.holder')]
    return dict(missing=n-done, held=any(o not in found or not found[o].is_whole for o in held))

def main(path):
    make = lambda: small(plain_dls(path/'pictures', bs=4), path/'run')
    seen = dict(found=[call(small(path/'pictures', path/'run'), dtype='float32', check=o) for o in (False,True)], killed=[])
    def whole(root): return lambda: call(make(), root)
    seen.update(loss=whole(path/'unbroken')()['loss'])
    count = Moments()
    child(lambda: count.during(whole(path/'counted')) and count.n, path/'out.json')
    n = json.loads((path/'out.json').read_text())
    for k,at in enumerate(sorted(random.Random(0).sample(range(1, int(.95*n)), 10))):
        root = path/f'killed {k}'
        status,was = child(lambda: Moments(at).during(whole(root)), path/'out.json'),left(root, 15)
        assert child(whole(root), path/'out.json')==0
        seen['killed'].append(dict(json.loads((path/'out.json').read_text()), **was, at=at/n, status=status))
    kills = 0
    while child(lambda: Moments(n//5).during(whole(path/'again')), path/'out.json')==-signal.SIGKILL: kills += 1
    (path/'seen.json').write_text(json.dumps(dict(seen, again=dict(kills=kills))))

if __name__=='__main__': main(Path(sys.argv[1]))
