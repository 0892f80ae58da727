"`clr_train` as an enemy would have it: killed at any moment, on disks that fill up, are read-only or vanish, beside another run, with odd names and clocks"
import json, multiprocessing, os, random, shutil, signal, subprocess, sys, tempfile, time
from contextlib import suppress
from pathlib import Path
import psutil, pytest, timm, torch
from fastai.learner import load_learner
from pictures import listing, some
import worker_train as job

stress = bool(os.environ.get('STRESS'))
# Processes are forked from one that has imported all, so that they start at once; with STRESS=1 they are the command itself
ctx = multiprocessing.get_context('forkserver')
ctx.set_forkserver_preload(['worker_train','fastai_clr.recipe','fastai_clr.report','fastai_clr.data','timm'])
exe = Path(sys.executable).with_name('clr_train')

def heed_ctrl_c(): signal.signal(signal.SIGINT, signal.default_int_handler)   # a job in the background is started deaf to it

class Train:
    "A process that runs `clr_train`"
    def __init__(self, log, *argv, real=False, func=job.train):
        self.log,self.argv,self.begun,tmp = str(log),argv,time.monotonic(),Path(f'{log}.tmp')
        tmp.mkdir(exist_ok=True)
        if real:
            with open(f'{log}.out', 'w') as out, open(f'{log}.err', 'w') as err:
                env = {**os.environ, 'PYTHONUNBUFFERED': '1', 'OMP_NUM_THREADS': '1', 'TMPDIR': str(tmp)}
                self.p = subprocess.Popen([exe,*map(str, argv)], stdout=out, stderr=err, env=env, preexec_fn=heed_ctrl_c)
        else:
            self.p = ctx.Process(target=func, args=(str(log),*argv), daemon=True)
            self.p.start()

    def out(self): return Path(f'{self.log}.out').read_text(errors='replace') if Path(f'{self.log}.out').exists() else ''
    def err(self): return Path(f'{self.log}.err').read_text(errors='replace')

    def is_running(self, secs=0):
        "Whether it still runs after so many seconds; it returns as soon as it does not"
        if not isinstance(self.p, subprocess.Popen):
            self.p.join(secs)
            return self.p.is_alive()
        with suppress(subprocess.TimeoutExpired): self.p.wait(secs)
        return self.p.poll() is None

    def wait(self, secs=120):
        "Exit status; that of a process that was killed is below 0"
        if isinstance(self.p, subprocess.Popen): return self.p.wait(secs)
        self.p.join(secs)
        assert self.p.exitcode is not None, 'it does not end'
        return self.p.exitcode

    def until(self, text):
        "Wait until it says `text`"
        while text not in self.out(): assert self.is_running(.01) and time.monotonic()-self.begun<120, self.err()

    def send(self, sig): os.kill(self.p.pid, sig)

@pytest.fixture(autouse=True)
def no_temporary_files(tmp_path):
    "Whatever ended a run"
    yield
    left = list(tmp_path.glob('*.tmp/*'))
    assert not left, left

@pytest.fixture(scope='module')
def few(digits, tmp_path_factory): return some(digits, tmp_path_factory.mktemp('few')/'digits', 60)

@pytest.fixture(scope='module')
def small_weights(tmp_path_factory):
    "Random weights of timm's smallest model, as pretrained ones"
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp('small')/'w.pth'
    torch.save(timm.create_model('test_resnet').state_dict(), file)
    return file

def command_line(few, weights, head_epochs, head_cycles, cycles):
    return [few, '--arch', 'test_resnet', '--weights', weights, '--size', 32, '--bs', 16, '--no-flip', '--device', 'cpu', '--head-epochs', head_epochs,
        '--head-cycles', head_cycles, '--cycles', cycles, '--out']

@pytest.fixture(scope='module')
def args(few, small_weights): return command_line(few, small_weights, 2, 2, 1)

@pytest.fixture(scope='module')
def short_args(few, small_weights):
    "Of a run that ends after the head"
    return command_line(few, small_weights, 1, 0, 0)

def result(out):
    "All that a run leaves that must be the same each time: weights of the export and of each snapshot, and what the report says but for times"
    pths = {str(o.relative_to(out)): torch.load(o, weights_only=True) for o in sorted((out/'models/snapshots').rglob('*.pth'))}
    r = json.loads((out/'report.json').read_text())
    for o in r['steps']: del o['seconds']
    said = {k: r[k] for k in ('steps','lr_finds','batches','epochs','vocab','confusion','candidates','kept','ensemble','test')}
    return {**pths, 'export': load_learner(out/'export.pkl').model.state_dict()},said

def equal(a, b): return a[1]==b[1] and a[0].keys()==b[0].keys() and all(torch.equal(a[0][f][k], b[0][f][k]) for f in a[0] for k in a[0][f])

def left_over(out):
    "Hidden files besides the marker and locks"
    return [o for o in out.rglob('.*') if o.name!='.clr_train' and o.suffix!='.lock']

@pytest.fixture(scope='module')
def unbroken(args, tmp_path_factory):
    "What a run leaves that nothing happens to, and the seconds that it takes"
    path = tmp_path_factory.mktemp('unbroken')
    for i in range(2):   # the second is as fast as those to come
        p = Train(path/str(i), *args, path/f'out{i}', real=stress)
        assert p.wait()==0, p.err()
        secs = time.monotonic()-p.begun
    assert equal(result(path/'out0'), result(path/'out1')), 'two runs with the same seed differ'
    return result(path/'out1'),secs

@pytest.fixture(scope='module')
def short(short_args, tmp_path_factory):
    "What a short run leaves"
    path = tmp_path_factory.mktemp('short')
    p = Train(path/'log', *short_args, path/'out')
    assert p.wait()==0, p.err()
    return result(path/'out')

def check_whole(out, unbroken):
    assert equal(result(out), unbroken[0]) and not left_over(out), left_over(out)
    assert not list((out/'models/resume').glob('*-step*')), 'checkpoints are left'

def one_sentence(p, status=1):
    "It must have ended with one sentence on standard error, warnings aside"
    got = p.wait()
    said = [l for l in p.err().splitlines() if l.strip() and not l.startswith('Warning: ')]
    assert got==status and len(said)==1 and said[0].startswith('clr_train: '), p.err()
    return said[0]

@pytest.mark.parametrize('seed', range(20 if stress else 1))
def test_killed_at_any_moment(args, unbroken, tmp_path, seed):
    "By each of three signals in turn; the next run goes on, and the end is bitwise that of a run that nothing happened to"
    rnd,n_kills,out,n = random.Random(seed),0,tmp_path/'out0',0
    while n_kills<(10 if stress else 5):
        sig = [signal.SIGKILL,signal.SIGTERM,signal.SIGINT][n_kills%3]
        p = Train(tmp_path/'log', *args, out, '--resume', real=stress)
        if p.is_running(rnd.uniform(0, unbroken[1])):
            p.send(sig)
            n_kills += 1
        status = p.wait()
        assert status in (0,130,-sig,*([1] if sig==signal.SIGINT else [])), p.err()
        assert status!=0 or (out/'export.pkl').exists()
        if status==0:
            check_whole(out, unbroken)
            n += 1
            out = tmp_path/f'out{n}'
    p = Train(tmp_path/'log', *args, out, '--resume', real=stress)
    assert p.wait()==0, p.err()
    check_whole(out, unbroken)

def test_sigterm_writes_down_what_is_finished(args, unbroken, tmp_path):
    out = tmp_path/'out'
    p = Train(tmp_path/'log', *args, out)
    p.until('Step 4 of 8')
    p.send(signal.SIGTERM)
    assert 'stopped. Step 4 was not finished' in one_sentence(p, 130)
    assert [o['step'] for o in json.loads((out/'report.json').read_text())['steps']]==[1,2,3] and (out/'report.html').exists()
    p = Train(tmp_path/'log', *args, out, '--resume')
    assert p.wait()==0, p.err()
    check_whole(out, unbroken)

def test_two_runs_in_one_folder(args, unbroken, tmp_path):
    "The second is refused, and the first ends as if it were alone"
    p = Train(tmp_path/'log', *args, tmp_path/'out')
    p.until('Step 1 of 8')
    for o in ('--overwrite','--resume'): assert 'another clr_train is writing there now' in one_sentence(Train(tmp_path/'log2', *args, tmp_path/'out', o))
    assert p.wait()==0, p.err()
    check_whole(tmp_path/'out', unbroken)

@pytest.fixture
def sharing(short_args, short, tmp_path):
    "A function that begins a run in folder `a` or `b`, which share their activations, and one that waits for both and looks at what they leave"
    for o in ('a','b'):
        (tmp_path/o).mkdir()
        (tmp_path/o/'activations').symlink_to(tmp_path/'shared', target_is_directory=True)
        (tmp_path/o/'.clr_train').touch()
    (tmp_path/'shared').mkdir()
    def check(ps):
        for p,o in zip(ps, ('a','b')):
            assert p.wait()==0, p.err()
            assert equal(result(tmp_path/o), short)
        assert len([o for o in (tmp_path/'shared').iterdir() if o.is_dir()])==2
    ps = []
    def begin(name, **kw):
        ps.append(Train(tmp_path/f'log{name}', *short_args, tmp_path/name, '--overwrite', **kw))
        return ps[-1]
    yield begin,check
    for p in ps:
        if p.is_running(): p.send(signal.SIGKILL)   # it may stand still

def test_two_runs_share_a_store(sharing):
    "Each has its own folder, and both the same activations, at the same time"
    begin,check = sharing
    check([begin('a'),begin('b')])

# Disks

@pytest.fixture
def disk(tmp_path):
    "Functions that mount a disk of so many KB, and change what it is; skipped where that is not allowed"
    p = tmp_path/'disk'
    p.mkdir()
    def mount(*opts): return subprocess.run(['mount', '-t', 'tmpfs', '-o', ','.join(opts), 'tmpfs', p], capture_output=True).returncode
    if mount('size=64k'): pytest.skip('a small disk can only be mounted by root')
    yield p,lambda *opts: mount('remount', *opts)
    subprocess.run(['umount', '-l', p], check=True)

@pytest.mark.parametrize('mb', [i/2 for i in range(1, 70)] if stress else [.5,6,14,22])
def test_a_disk_that_fills_up(args, unbroken, disk, tmp_path, mb):
    "One sentence; with room again, it goes on from there"
    path,remount = disk
    assert remount(f'size={int(mb*1024)}k')==0
    p = Train(tmp_path/'log', *args, path/'out')
    if p.wait()!=0:
        one_sentence(p)
        assert not [o for o in left_over(path) if o.is_file()]
        assert remount('size=1g')==0
        p = Train(tmp_path/'log', *args, path/'out', '--resume')
        assert p.wait()==0, p.err()
    check_whole(path/'out', unbroken)

@pytest.mark.parametrize('n', range(60) if stress else [0,6,16])
def test_a_disk_that_takes_no_file_from_some_moment_on(short_args, short, tmp_path, n):
    "At each file that gets its name; with room again, it goes on from there"
    out = tmp_path/'out'
    p = Train(tmp_path/'log', n, *short_args, out, func=job.train_until_no_file_is_taken)
    if p.wait()!=0:
        one_sentence(p)
        assert not left_over(out)
        p = Train(tmp_path/'log', *short_args, out, '--resume')
        assert p.wait()==0, p.err()
    export = load_learner(out/'export.pkl').model.state_dict()
    assert all(torch.equal(v, short[0]['export'][k]) for k,v in export.items())

def test_a_disk_that_is_read_only(short_args, disk, tmp_path):
    path,remount = disk
    assert remount('ro')==0
    p = Train(tmp_path/'log', *short_args, path/'out')
    assert 'no permission to write' in one_sentence(p)

def beside_one_that_hangs(begin, func):
    "A run that stands still in the middle of what it writes, and another that began after that"
    slow = begin('a', func=func)
    while psutil.Process(slow.p.pid).status()!=psutil.STATUS_STOPPED: assert slow.is_running(.01) and time.monotonic()-slow.begun<120, slow.err()
    return slow,begin('b')

def test_a_disk_that_hangs_as_activations_are_written(sharing):
    "As long as it takes: another run that needs them says so and waits, and both end as if nothing had been"
    begin,check = sharing
    slow,other = beside_one_that_hangs(begin, job.train_as_activations_hang)
    other.until(f'Waiting for process {slow.p.pid}')
    slow.send(signal.SIGCONT)
    check([slow,other])

def test_a_disk_that_hangs_as_a_model_is_written(sharing):
    "The other run is not held up, and nothing of the half-written file shows"
    begin,check = sharing
    slow,other = beside_one_that_hangs(begin, job.train_as_a_model_hangs)
    assert other.wait()==0, other.err()
    half = [o for o in Path(slow.argv[-2]).rglob('models/snapshots/**/*') if '.pth' in o.name]
    assert len(half)==1 and half[0].name.startswith('.'), half
    slow.send(signal.SIGCONT)
    check([slow,other])

def test_a_folder_that_vanishes(args, tmp_path):
    "Nothing else is deleted, and neither a report nor a model comes back"
    p = Train(tmp_path/'log', *args, tmp_path/'run/out')
    p.until('Step 3 of 8')
    (tmp_path/'run').rename(tmp_path/'gone')
    one_sentence(p)
    assert not list((tmp_path/'run').rglob('report.*')) and not list((tmp_path/'run').rglob('export.pkl'))

def test_a_store_on_another_file_system(short_args, short, tmp_path):
    "By a link in the folder of results"
    shm = Path('/dev/shm')
    if not os.access(shm, os.W_OK) or shm.stat().st_dev==tmp_path.stat().st_dev: pytest.skip('there is no other file system here')
    (tmp_path/'out').mkdir()
    (tmp_path/'out/.clr_train').touch()
    with tempfile.TemporaryDirectory(dir=shm) as d:
        (tmp_path/'out/activations').symlink_to(d, target_is_directory=True)
        p = Train(tmp_path/'log', *short_args, tmp_path/'out', '--overwrite')
        assert p.wait()==0, p.err()
        assert equal(result(tmp_path/'out'), short) and len([o for o in Path(d).iterdir() if o.is_dir()])==2

@pytest.mark.parametrize('name', ['with spaces and "quotes"', "l'été 🌞 日本", 'x'*255, '%s{}$HOME;&|'], ids=['spaces','unicode','255','shell'])
def test_odd_names(short_args, short, few, tmp_path, name):
    src = shutil.copytree(few, tmp_path/'in'/name)
    p = Train(tmp_path/'log', src, *short_args[1:], tmp_path/'out'/name)
    assert p.wait()==0, p.err()
    assert equal(result(tmp_path/'out'/name), short)

def test_a_name_too_long(short_args, tmp_path):
    assert 'File name too long' in one_sentence(Train(tmp_path/'log', *short_args, tmp_path/('x'*256)))
    assert listing(tmp_path)==[o for o in listing(tmp_path) if o[0].startswith('log')]

def test_links(short_args, short, few, tmp_path):
    "A folder of results that is a link; class folders with links in place of files"
    (tmp_path/'real').mkdir()
    (tmp_path/'out').symlink_to(tmp_path/'real', target_is_directory=True)
    for f in few.rglob('*.png'):
        to = tmp_path/'in'/f.relative_to(few)
        to.parent.mkdir(parents=True, exist_ok=True)
        to.symlink_to(f)
    before = listing(few)
    p = Train(tmp_path/'log', tmp_path/'in', *short_args[1:], tmp_path/'out')
    assert p.wait()==0, p.err()
    assert equal(result(tmp_path/'out'), short) and listing(few)==before

def test_overwrite_deletes_results_only(short_args, short, tmp_path):
    "Not what others have put beside them, nor what a link leads to"
    out,mine = tmp_path/'out',tmp_path/'mine'
    assert Train(tmp_path/'log', *short_args, out).wait()==0
    mine.mkdir()
    (mine/'precious.txt').write_text('keep me')
    (out/'models/snapshots/recipe9-step3').symlink_to(mine, target_is_directory=True)
    (out/'own').mkdir()
    (out/'own/export.pkl').write_text('keep me')
    others = [out/o for o in ('figures/mine.png','figures/lr_mine.png','models/resume/recipe_mine/x.pth','models/snapshots/recipe_mine-step1/x.pth')]
    for o in others:
        o.parent.mkdir(exist_ok=True)
        o.write_text('keep me')
    p = Train(tmp_path/'log', *short_args, out, '--overwrite')
    assert p.wait()==0, p.err()
    assert {o.read_text() for o in (mine/'precious.txt',out/'own/export.pkl',*others)}=={'keep me'}
    (out/'models/snapshots/recipe_mine-step1/x.pth').unlink()   # which `result` would take for one of the run's
    assert equal(result(out), short)

# Clocks

def test_a_clock_that_jumps_back(args, tmp_path, monkeypatch, capsys):
    "An hour at each look; seconds are not taken from it"
    now,looks = time.time(),iter(range(10**9))
    monkeypatch.setattr(time, 'time', lambda: now-3600*next(looks))
    status = job.command(job.cli.clr_train, [*args, tmp_path/'out', '--time-budget', '8s', '--quiet'], ['pictures'])
    assert status==0, capsys.readouterr().err
    secs = [o['seconds'] for o in json.loads((tmp_path/'out/report.json').read_text())['steps']]
    assert all(o>=0 for o in secs) and 0<sum(secs)<60

# What others have written

@pytest.fixture(scope='module')
def broken_off(args, tmp_path_factory):
    "The folder of a run that was stopped in step 4"
    path = tmp_path_factory.mktemp('broken')
    p = Train(path/'log', *args, path/'out')
    p.until('Step 4 of 8')
    p.send(signal.SIGINT)
    assert p.wait()==130
    return path/'out'

@pytest.mark.parametrize('text', ['', '{', '[]', '{"finished": true}', '[' * 100_000, 'null'], ids=['empty','cut','list','forged','deep','null'])
def test_tampered_notes_of_a_recipe(args, broken_off, tmp_path, text):
    "Refused in a sentence that says what to do, or as if nothing had been there"
    out = shutil.copytree(broken_off, tmp_path/'out')
    notes = out/'models/resume/recipe1.json'
    notes.write_text(text)
    p = Train(tmp_path/'log', *args, out, '--resume')
    if text: assert f"`resume` can't read {notes}" in one_sentence(p) and 'delete it to begin anew' in p.err()
    else: assert p.wait()==0, p.err()

def test_a_number_changed_in_the_notes(args, broken_off, tmp_path):
    "It is noticed, whatever it is"
    out = shutil.copytree(broken_off, tmp_path/'out')
    notes = out/'models/resume/recipe1.json'
    d = json.loads(notes.read_text())
    d['plan']['n_cycles'] = 10**9
    notes.write_text(json.dumps(d))
    assert f"`resume` can't read {notes}" in one_sentence(Train(tmp_path/'log', *args, out, '--resume'))

def test_begun_anew_when_the_notes_are_deleted(args, unbroken, broken_off, tmp_path):
    "As the sentence says that one may"
    out = shutil.copytree(broken_off, tmp_path/'out')
    (out/'models/resume/recipe1.json').unlink()
    p = Train(tmp_path/'log', *args, out, '--resume')
    assert p.wait()==0, p.err()
    assert all(torch.equal(v, unbroken[0][0]['export'][k]) for k,v in result(out)[0]['export'].items())

@pytest.mark.parametrize('text', ['{', '[]', '{}', '[' * 100_000], ids=['cut','list','empty','deep'])
def test_tampered_report(text, tmp_path):
    "A run whose report can't be read is not taken for finished"
    for o in ('report.json','export.pkl'): (tmp_path/o).write_text(text)
    assert job.cli._finished(tmp_path) is None
    (tmp_path/'report.json').write_text('{"finished": true, "settings": {}, "versions": {}}')
    assert job.cli._finished(tmp_path).finished
