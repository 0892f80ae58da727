"`clr_train` as a user runs it: a process, its output, its exit status, and what it leaves behind"
import io, json, os, re, shutil, signal, socket, subprocess, sys
from importlib.metadata import version
from contextlib import redirect_stderr, redirect_stdout
from inspect import signature
from pathlib import Path
import numpy as np, pandas as pd, pytest, torch
from fastai.learner import Learner, load_learner
from fastcore.script import anno_parser
from fastai.losses import BCEWithLogitsLossFlat, CrossEntropyLossFlat, MSELossFlat
from fastai_clr import cli
from fastai_clr.activations import MANIFEST, list_stores
from fastai_clr.recipe import RecipeReport
from pictures import listing, some

exe,predict_exe,stores_exe = (Path(sys.executable).with_name(o) for o in ('clr_train','clr_predict','clr_stores'))
FAST = '--size 32 --bs 64 --head-epochs 1 --head-cycles 1 --cycles 0'.split()

def clr_train(*args, exe=exe, **kw):
    "Run the command; its exit status, standard output and standard error"
    p = subprocess.run([exe, *map(str, args)], capture_output=True, text=True, env={**os.environ, 'PYTHONUNBUFFERED': '1'}, **kw)
    return p.returncode,p.stdout,p.stderr

def clr_train_here(*args):
    "The command in this process, which spares it the imports; as from `clr_train`"
    func,(out,err) = cli.clr_train.__wrapped__,(io.StringIO(),io.StringIO())
    kw,status = vars(anno_parser(func, pos=['pictures']).parse_args(list(map(str, args)))),0
    with redirect_stdout(out), redirect_stderr(err):
        try: cli.clr_train(**{k: kw[k] for k in signature(func).parameters})
        except SystemExit as e: status = e.code
    return status,out.getvalue(),err.getvalue()

def refused(out, *args, says):
    "The command must refuse `args` in one sentence that matches `says`, and write nothing to `out`"
    rc,_,err = clr_train_here(*args, '--out', out)
    assert rc==1 and re.search(says, err), err
    assert len([l for l in err.splitlines() if l.startswith('clr_train:')])==1
    assert not Path(out).exists()

@pytest.fixture(scope='module')
def demo(tmp_path_factory):
    "A folder in which a short demo was run, and what the command printed"
    out = tmp_path_factory.mktemp('demo')/'run'
    rc,stdout,err = clr_train('--demo', '--out', out, *FAST[:-1], 1)
    assert rc==0, err
    return out,stdout

def test_demo_writes_what_it_says(demo):
    out,stdout = demo
    assert {'export.pkl','report.html','report.json','history.csv','figures','demo'} <= {o.name for o in out.iterdir()}
    for n in range(1,9): assert f'Step {n} of 8' in stdout
    assert re.search(r'step +title +lr +epochs +seconds +train_loss +valid_loss +accuracy', stdout)
    r = json.loads((out/'report.json').read_text())
    assert r['finished'] and r['settings']['arch']=='tf_efficientnet_lite0' and r['settings']['seed']==42 and '--demo' in r['settings']['command']
    assert set(r['versions'])=={'python','system','fastai_clr','fastai','fastcore','torch','torchvision','timm','numpy','pillow'}
    assert all(version(k)==v for k,v in r['versions'].items() if k not in ('python','system'))
    assert len(pd.read_csv(out/'history.csv'))==sum(o['epochs'] for o in r['steps'] if o['epochs'])
    assert not list(out.rglob('*.tmp')) and not list(out.glob('.export*'))

def test_same_seed_same_weights(demo, tmp_path):
    "Of the head on activations and with augmentation, bit for bit, and another seed gives others; tests/faults compares whole runs of a smaller model"
    def weights(out, step): return torch.load(out/f'models/snapshots/recipe1-step{step}/cycle-000.pth')
    def same(a, b): return all(torch.equal(v, b[k]) for k,v in a.items())
    for name,args in dict(again=FAST, other=[*FAST[:-3],0,'--cycles',0,'--seed',1]).items():
        rc,_,err = clr_train_here('--demo', '--out', tmp_path/name, *args)
        assert rc==0, err
    assert all(same(weights(demo[0], o), weights(tmp_path/'again', o)) for o in (3,4))
    assert not same(weights(demo[0], 3), weights(tmp_path/'other', 3))

def test_git_state(tmp_path, monkeypatch):
    "The commit, whether files differ from it, and nothing where there is no git; no program that the folder names is run"
    def git(*args): return subprocess.run(['git','-c','user.name=a','-c','user.email=a@b',*args], cwd=tmp_path, check=True, capture_output=True, text=True).stdout.strip()
    monkeypatch.chdir(tmp_path)
    assert cli._git_state() is None
    git('init')
    (tmp_path/'a.txt').write_text('1')
    git('add', 'a.txt')
    git('commit', '-m', 'first')
    commit = git('rev-parse', 'HEAD')
    (tmp_path/'run.sh').write_text(f'#!/bin/sh\ntouch {tmp_path}/ran\n')
    (tmp_path/'run.sh').chmod(0o755)
    git('config', 'core.fsmonitor', str(tmp_path/'run.sh'))
    assert cli._git_state()==commit
    (tmp_path/'a.txt').write_text('2')
    assert cli._git_state()==f'{commit}-dirty' and not (tmp_path/'ran').exists()
    git('config', 'filter.a=b.clean', str(tmp_path/'run.sh'))
    (tmp_path/'.git/info/attributes').write_text('* filter=a=b\n')
    (tmp_path/'a.txt').write_text('1')
    assert cli._git_state()==f'{commit}-unchecked' and not (tmp_path/'ran').exists()
    monkeypatch.setenv('PATH', str(tmp_path))
    assert cli._git_state() is None

def test_export_opens_without_this_package(demo, bare_python, tmp_path):
    picture = next((demo[0]/'demo/pictures/7').iterdir())
    code = f"""
import sys, warnings
warnings.simplefilter('ignore')
from fastai.learner import load_learner
learn = load_learner({str(demo[0]/'export.pkl')!r})
label,i,probs = learn.predict({str(picture)!r})
assert not [o for o in sys.modules if o.startswith('fastai_clr')]
print('RESULT', label, int(i), len(probs), round(float(probs.sum()), 4))"""
    out = subprocess.run([bare_python, '-c', code], cwd=tmp_path, capture_output=True, text=True)
    assert out.returncode==0, out.stderr
    label,i,n,total = re.search(r'RESULT (\S+) (\d+) (\d+) (\S+)', out.stdout).groups()
    assert label==i and (n,total)==('10','1.0')

def test_out_that_is_taken(demo, tmp_path):
    before = listing(demo[0])
    rc,_,err = clr_train('--demo', '--out', demo[0])
    assert rc==1 and 'is not empty' in err and '--overwrite' in err and listing(demo[0])==before
    (tmp_path/'mine.txt').write_text('keep me')
    rc,_,err = clr_train('--demo', '--out', tmp_path, '--overwrite')
    assert rc==1 and "clr_train didn't write" in err and [o.name for o in tmp_path.iterdir()]==['mine.txt']

def test_own_pictures_overwrite_and_untouched_input(digits, weights, tmp_path):
    (tmp_path/'pictures').mkdir()
    src = shutil.copytree(digits, tmp_path/'pictures/my digits')
    (src/'0/notes.txt').write_text('no picture')
    bad = next(o for o in (src/'1').iterdir())
    bad.write_bytes(bad.read_bytes()[:30])
    before,out = listing(src),tmp_path/'out'
    args = [src, '--arch', 'tf_efficientnet_lite0', '--weights', weights, '--no-flip', '--bs', 32, '--out', out, *FAST]
    rc,stdout,err = clr_train(*args)
    assert rc==0 and listing(src)==before, err
    assert re.search(r'Warning: left out 2 files .*0/notes.txt', err) and bad.name in err
    (out/'own.txt').write_text('keep me')
    rc,stdout,err = clr_train(*args, '--overwrite', '--seed', 1)
    assert rc==0 and (out/'own.txt').read_text()=='keep me', err
    assert json.loads((out/'report.json').read_text())['settings']['seed']==1

def test_bad_folders(tmp_path, digits):
    out,empty,one,none = tmp_path/'out',tmp_path/'empty',tmp_path/'one',tmp_path/'none'
    empty.mkdir()
    shutil.copytree(digits/'0', one/'0')
    for o in ('a/x.txt','b/y.png'):
        (none/o).parent.mkdir(parents=True)
        (none/o).write_text('not a picture')
    refused(out, tmp_path/'nowhere', says="doesn't exist")
    refused(out, empty, says='holds no pictures')
    refused(out, one, says="holds only the class '0'")
    refused(out, none, says='(?s)left out 2 files.*holds no pictures')

@pytest.mark.parametrize('args,says', [
    (['--size','0'], '`size` must be a whole number above 0, got 0'), (['--bs','-1'], '`bs` must be .* got -1'),
    (['--valid-pct','1.5'], '`valid_pct` must be a fraction'), (['--arch','resnet35'], "did you mean .*resnet34"),
    (['--device','cuda:99'], "`device` 'cuda:99' is not to be had"), (['--weights','nowhere.pth'], "`weights` nowhere.pth doesn't exist"),
    (['--arch','resnet18','--fp16','--device','cpu','--no-pretrained'], '`--fp16` needs an NVIDIA GPU'), (['--time-budget','soon'], "`time_budget` must be seconds, or a time such as '90s'"),
    (['--label-delim',';'], '`label_delim` is the text between the labels'), (['--resume','--overwrite'], 'exclude each other')])
def test_bad_options(digits, tmp_path, args, says): refused(tmp_path/'out', digits, *args, says=says)

@pytest.mark.parametrize('args,says', [(['--size','0'], '`size` must be'), (['--arch','no_such'], "`arch` 'no_such' is not known"), (['--patience','0'], '`patience`')])
def test_bad_options_leave_an_earlier_run_alone(demo, args, says):
    def kept(): return [o for o in listing(demo[0]) if o[0]!='demo' and not o[0].startswith(('demo/tf','.clr_train'))]
    before = kept()
    rc,_,err = clr_train_here('--demo', '--out', demo[0], '--overwrite', *args)
    assert rc==1 and says in err and kept()==before

def test_pictures_inside_out_are_not_overwritten(demo):
    before = listing(demo[0])
    rc,_,err = clr_train_here(demo[0]/'demo/pictures', '--out', demo[0], '--overwrite')
    assert rc==1 and 'lie inside `--out`' in err and listing(demo[0])==before

def test_a_size_that_the_model_cannot_take(digits, tmp_path):
    refused(tmp_path/'out', digits, '--arch', 'vit_tiny_patch16_224', '--no-pretrained', '--size', 32, says="vit_tiny_patch16_224 can't take pictures of `--size` 32")

def test_csv_from_random_weights(digits, bare_python, tmp_path):
    "A CSV with its own split, a torchvision model without pretrained weights, and an export that opens alone"
    files = sorted(some(digits, tmp_path/'digits', 200).rglob('*.png'))
    rows = [dict(file=os.path.relpath(f, tmp_path), label='ab'[int(f.parent.name)%2], is_valid=i%5==0) for i,f in enumerate(files)]
    pd.DataFrame(rows).to_csv(tmp_path/'pictures.csv', index=False)
    out = tmp_path/'out'
    rc,_,err = clr_train(tmp_path/'pictures.csv', '--arch', 'resnet18', '--no-pretrained', '--bs', 32, '--out', out, *FAST)
    assert rc==0, err
    r = json.loads((out/'report.json').read_text())
    assert r['vocab']==['a','b'] and np.sum(r['confusion'])==len(files)//5 and r['settings']['ratio']==1 and not r['settings']['freeze_stats']
    code = f"from fastai.learner import load_learner; print('RESULT', load_learner({str(out/'export.pkl')!r}).predict({str(files[0])!r})[0])"
    p = subprocess.run([bare_python, '-W', 'ignore', '-c', code], cwd=tmp_path, capture_output=True, text=True)
    assert re.search('RESULT [ab]', p.stdout), p.stderr

def test_train_and_valid_folders(digits, weights, tmp_path):
    for i,f in enumerate(sorted(digits.rglob('*.png'))):
        dest = tmp_path/'src'/('valid' if i%4==0 else 'train')/f.parent.name
        dest.mkdir(parents=True, exist_ok=True)
        shutil.copy(f, dest)
    rc,stdout,err = clr_train(tmp_path/'src', '--arch', 'tf_efficientnet_lite0', '--weights', weights, '--bs', 32, '--out', tmp_path/'out', *FAST)
    assert rc==0 and '150 items for training, 50 for validation' in stdout, err

def test_weights_of_another_model(digits, weights, tmp_path):
    refused(tmp_path/'out', digits, '--arch', 'resnet18', '--weights', weights, says="doesn't fit resnet18: .* missing .*conv1.weight")

def test_recipe_options_are_checked_before_training(digits, weights, tmp_path):
    rc,stdout,err = clr_train(digits, '--arch', 'tf_efficientnet_lite0', '--weights', weights, '--size', 32, '--ratio', 0, '--out', tmp_path/'out')
    assert rc==1 and '`ratio` must be a number of at least 1, got 0.0' in err and 'Step' not in stdout and not (tmp_path/'out').exists()

@pytest.mark.parametrize('args,says', [(['--size','big'], 'argument --size: invalid int value'), (['--no-such'], 'unrecognized arguments')])
def test_options_that_argparse_refuses(digits, tmp_path, args, says):
    rc,_,err = clr_train(digits, *args, '--out', tmp_path/'out')
    assert rc==2 and says in err and not (tmp_path/'out').exists()

def test_neither_or_both_of_pictures_and_demo(digits, tmp_path):
    refused(tmp_path/'out', says='pass a folder of pictures, or --demo')
    refused(tmp_path/'out', digits, '--demo', says='pass a folder of pictures, or --demo')

def test_out_among_the_pictures(digits):
    before = listing(digits)
    refused(digits/'out', digits, says='lies inside')
    assert listing(digits)==before

def test_out_that_is_a_file_or_below_one(digits, tmp_path):
    (tmp_path/'file').write_text('')
    rc,_,err = clr_train_here(digits, '--out', tmp_path/'file')
    assert rc==1 and 'is a file' in err
    refused(tmp_path/'file/out', digits, says="can't be made")

def test_no_permission_to_write(tmp_path, monkeypatch):
    monkeypatch.setattr(cli.os, 'access', lambda *a: False)
    with pytest.raises(ValueError, match="can't be made: no permission to write in"): cli._check_place(tmp_path/'a/b', None, None, False, False)

def test_offline(digits, tmp_path):
    "No host can be reached: the name of a proxy that isn't there sees to that"
    env = {k:'http://127.0.0.1:9' for k in ('http_proxy','https_proxy','HTTP_PROXY','HTTPS_PROXY')}
    p = subprocess.run([exe, digits, '--arch', 'resnet18', '--out', tmp_path/'out'], capture_output=True, text=True,
        env={**os.environ, **env, 'TORCH_HOME': str(tmp_path/'torch')})
    assert p.returncode==1 and 'weights of resnet18 could not be downloaded' in p.stderr and 'Traceback' not in p.stderr, p.stderr
    assert '--weights' in p.stderr and '--no-pretrained' in p.stderr and not (tmp_path/'out').exists()

def test_a_refused_run_leaves_what_came_beside_it(tmp_path):
    "Its own empty folders go, those that another run uses stay, and the error is its own"
    with pytest.raises(ValueError, match='its own'), cli._claimed(tmp_path/'runs/a'):
        (tmp_path/'runs/b').mkdir()
        raise ValueError('its own')
    assert [o.name for o in (tmp_path/'runs').iterdir()]==['b']
    with pytest.raises(ValueError), cli._claimed(tmp_path/'new/a'): raise ValueError
    assert not (tmp_path/'new').exists()

def test_ctrl_c_keeps_what_is_finished_and_resume_goes_on(digits, weights, tmp_path):
    out = tmp_path/'out'
    cmd = [exe, digits, '--arch', 'tf_efficientnet_lite0', '--weights', weights, '--size', '32', '--bs', '32', '--head-epochs', '2', '--head-cycles', '4', '--cycles', '0', '--out', out]
    def heed(): signal.signal(signal.SIGINT, signal.SIG_DFL)   # a job in the background is started deaf to it
    p = subprocess.Popen(list(map(str, cmd)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, 'PYTHONUNBUFFERED': '1'}, preexec_fn=heed)
    for line in p.stdout:
        if 'Step 4 of 8' in line: break
    p.send_signal(signal.SIGINT)
    _,err = p.communicate(timeout=60)
    assert p.returncode==130 and 'Traceback' not in err and 'Step 4 was not finished' in err and '--resume goes on' in err, err
    r = json.loads((out/'report.json').read_text())
    assert not r['finished'] and [o['step'] for o in r['steps']]==[1,2,3]
    assert (out/'models/snapshots/recipe1-step3/cycle-000.pth').exists() and (out/'report.html').exists()
    assert not (out/'export.pkl').exists() and not [o for o in out.rglob('.*') if o.name!='.clr_train' and o.suffix!='.lock']
    rc,_,err = clr_train_here(*cmd[1:], '--resume', '--seed', 3, '--ratio', 4)
    assert rc==1 and 'was begun otherwise: ratio' in err, err
    rc,stdout,err = clr_train(*cmd[1:], '--resume')
    now = json.loads((out/'report.json').read_text())
    assert rc==0 and 'Finished before' in stdout and now['finished'] and now['steps'][:3]==r['steps'] and [o['step'] for o in now['steps']]==[1,2,3,4], err
    before = listing(out)
    rc,stdout,err = clr_train_here(*cmd[1:], '--resume')
    assert rc==0 and stdout==f'{out} is finished: nothing is left to do\n' and listing(out)==before, err
    rc,stdout,err = clr_train_here(*cmd[1:], '--resume', '--json')
    said = json.loads(stdout)
    assert rc==0 and said['out']==str(out) and said['steps']==now['steps'] and said['kept']==('ensemble' if now['ensemble'] else now['kept']) and listing(out)==before, err
    assert clr_train_here(*cmd[1:], '--resume', '--quiet')[:2]==(0,'') and listing(out)==before

def test_json_of_a_training_that_diverged():
    r = RecipeReport({}, {}, steps=[dict(step=3, seconds=1., valid_loss=float('nan'), metric=float('inf'))], kept='step 3')
    def refuse(o): raise AssertionError(f'{o} is no JSON')
    said = json.loads(cli._as_json('runs', r), parse_constant=refuse)
    assert said['valid_loss'] is None and said['metric'] is None and said['steps'][0]['valid_loss'] is None

def test_a_test_set_of_one_class(digits, weights, tmp_path):
    test = some(digits, tmp_path/'test', 20)
    for o in test.iterdir():
        if o.name!='3': shutil.rmtree(o)
    rc,_,err = clr_train_here(digits, '--arch', 'tf_efficientnet_lite0', '--weights', weights, '--size', 32, '--test', test, '--dry-run', '--out', tmp_path/'out')
    assert rc==0, err

@pytest.fixture
def csv_of_two(digits):
    "Each digit with its name and whether it is odd, in a CSV beside them; every seventh without a label"
    rows = [f"{f.relative_to(digits)},{'' if i%7==0 else f.parent.name+(';odd' if int(f.parent.name)%2 else ';even')}" for i,f in enumerate(sorted(digits.rglob('*.png')))]
    def write(path):
        for f in digits.rglob('*.png'):
            (path/f.parent.name).mkdir(parents=True, exist_ok=True)
            shutil.copy(f, path/f.parent.name)
        (path/'labels.csv').write_text('\n'.join(['file,label',*rows]))
        return path/'labels.csv'
    return write

def test_several_labels_a_picture_test_set_and_json(csv_of_two, weights, tmp_path, capsys):
    file,out = csv_of_two(tmp_path/'pictures'),tmp_path/'out'
    rc,stdout,err = clr_train(file, '--label-delim', ';', '--test', file, '--json', '--arch', 'tf_efficientnet_lite0', '--weights', weights, '--no-flip', '--out', out, *FAST)
    assert rc==0, err
    d,r = json.loads(stdout),json.loads((out/'report.json').read_text())
    assert stdout.count('\n')==1 and d['test']==r['test'] and d['metric_name']=='accuracy_multi' and r['settings']['label_delim']==';'
    rc,_,err = here(cli.clr_predict, capsys, out/'export.pkl', file.parent, out=tmp_path/'p.csv', device='cpu')
    df = pd.read_csv(tmp_path/'p.csv', keep_default_na=False, dtype=str)
    want = {o.split(',')[0]: set(o.split(',')[1].split(';'))-{''} for o in file.read_text().splitlines()[1:]}
    classes = [c[2:] for c in df if c.startswith('p_')]
    right = [(float(row[f'p_{c}'])>.5)==(c in want[row['file']]) for _,row in df.iterrows() for c in classes]
    assert classes==[*map(str, range(10)),'even','odd'] and d['test']['pictures']==len(df)==200
    assert np.mean(right)==pytest.approx(d['test']['accuracy_multi'], abs=1e-3)      # as clr_predict has it

def test_a_test_set_is_looked_at_first(digits, weights, tmp_path):
    (tmp_path/'test/new').mkdir(parents=True)
    shutil.copytree(digits/'3', tmp_path/'test/3')
    shutil.copy(next((digits/'4').iterdir()), tmp_path/'test/new')
    args = [digits, '--arch', 'tf_efficientnet_lite0', '--weights', weights, *FAST]
    refused(tmp_path/'out', *args, '--test', tmp_path/'test', says='`--test` .* has labels that training doesn\'t know: new')
    refused(tmp_path/'out', *args, '--test', tmp_path/'nowhere', says="nowhere doesn't exist")

def test_quiet(digits, weights, tmp_path):
    rc,stdout,err = clr_train(digits, '--quiet', '--arch', 'tf_efficientnet_lite0', '--weights', weights, '--no-flip', '--test', digits, '--out', tmp_path/'out', *FAST)
    r = json.loads((tmp_path/'out/report.json').read_text())
    assert rc==0 and stdout=='' and 'Traceback' not in err and r['test']['pictures']==200, err
    assert f"On the test set of 200 pictures" in re.sub(r'\s+', ' ', (tmp_path/'out/report.html').read_text())

def test_dry_run_leaves_nothing(digits, weights, tmp_path):
    args = [digits, '--dry-run', '--arch', 'tf_efficientnet_lite0', '--weights', weights, '--out', tmp_path/'out', *FAST]
    rc,stdout,err = clr_train_here(*args, '--cycles', 1)
    assert rc==0 and 'A dry run' in stdout and 'Whole network' in stdout and not (tmp_path/'out').exists(), err
    rc,stdout,err = clr_train_here(*args, '--json')
    assert rc==0 and [o['step'] for o in json.loads(stdout)['steps']]==[1,2,3,4], err

def test_help_names_every_option():
    rc,out,_ = clr_train('--help')
    assert rc==0 and out.startswith('usage: clr_train')
    for o in '--out --arch --size --bs --valid-pct --ratio --head-epochs --cycles --seed --weights --no-pretrained --device --fp16 --demo --overwrite --no-flip --time-budget --resume --dry-run --test --label-delim --quiet --json'.split():
        assert o in out

# Predictions

def here(f, capsys, *args, **kw):
    "A command in this process, which spares it the imports; as from `clr_train`"
    status = 0
    try: f(*args, **kw)
    except SystemExit as e: status = e.code
    return status,*capsys.readouterr()

@pytest.fixture
def some_pictures(demo, tmp_path):
    "Sevens and a one in a folder below"
    src = tmp_path/'new'
    (src/'deep').mkdir(parents=True)
    for f in sorted((demo[0]/'demo/pictures/7').iterdir())[:5]: shutil.copy(f, src)
    shutil.copy(sorted((demo[0]/'demo/pictures/1').iterdir())[0], src/'deep/=cmd.png')
    return src

@pytest.mark.parametrize('tta', [False,True])
def test_predictions_are_those_of_the_learner(demo, some_pictures, tmp_path, capsys, monkeypatch, tta):
    seen,real = [],Learner.tta
    monkeypatch.setattr(Learner, 'tta', lambda self, *a, **kw: seen.append((a,set(kw))) or real(self, *a, **kw))
    (some_pictures/'broken.png').write_bytes(b'no picture')
    (some_pictures/'notes.txt').write_text('no picture')
    before = listing(some_pictures)
    args = demo[0]/'export.pkl',some_pictures
    if tta: rc,stdout,err = here(cli.clr_predict, capsys, *args, out=tmp_path/'p.csv', device='cpu', bs=4, tta=True)
    else: rc,stdout,err = clr_train(*args, '--out', tmp_path/'p.csv', '--device', 'cpu', '--bs', 4, exe=predict_exe)
    assert rc==0 and 'Wrote 6 predictions' in stdout and re.search('Warning: left out 1 files .*broken.png', err) and listing(some_pictures)==before, err
    df = pd.read_csv(tmp_path/'p.csv', dtype={'label': str})
    files = [*sorted(o for o in some_pictures.glob('*.png') if o.name!='broken.png'),some_pictures/'deep/=cmd.png']
    assert sorted(df['file'])==sorted(os.path.relpath(o, some_pictures) for o in files) and list(df)==['file','label',*(f'p_{i}' for i in range(10))]
    learn = load_learner(demo[0]/'export.pkl')
    dl = learn.dls.test_dl([some_pictures/o for o in df['file']])
    with learn.no_bar():
        probs = learn.get_preds(dl=dl)[0]
        if not tta: np.testing.assert_allclose(df.filter(like='p_'), probs, atol=2e-6)
    if not tta: assert df['label'].tolist()==[learn.dls.vocab[i] for i in probs.argmax(1)]
    else: assert np.abs(df.filter(like='p_')-probs.numpy()).max(axis=None)>1e-3 and seen==[((),{'dl'})]   # fastai's own defaults
    np.testing.assert_allclose(df.filter(like='p_').sum(1), 1, atol=1e-4)

def test_prediction_for_one_picture(demo, some_pictures, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    one = sorted(some_pictures.glob('*.png'))[0]
    rc,_,err = here(cli.clr_predict, capsys, demo[0]/'export.pkl', one, device='cpu')
    assert rc==0 and pd.read_csv(tmp_path/'predictions.csv')['file'].tolist()==[one.name], err
    was = (tmp_path/'predictions.csv').read_bytes()
    rc,_,err = here(cli.clr_predict, capsys, demo[0]/'export.pkl', one, device='cpu')
    assert rc==1 and 'is there already: choose another file, or pass --overwrite' in err and (tmp_path/'predictions.csv').read_bytes()==was
    assert here(cli.clr_predict, capsys, demo[0]/'export.pkl', some_pictures, device='cpu', overwrite=True)[0]==0
    assert len(pd.read_csv(tmp_path/'predictions.csv'))==6

def test_no_formula_for_a_spreadsheet(tmp_path):
    probs = torch.tensor([[.9,.1],[.2,.8]])
    cli._write_csv(tmp_path/'p.csv', tmp_path, [tmp_path/'=1+1.png',tmp_path/'a, "b".png'], ['=HYPERLINK("x")','@b'], probs)
    df = pd.read_csv(tmp_path/'p.csv')
    assert df['file'].tolist()==["'=1+1.png",'a, "b".png'] and df['label'].tolist()==["'=HYPERLINK(\"x\")","'@b"]

def test_predictions_for_names_that_are_no_text(tmp_path):
    "They are in the CSV as they are on the disk"
    cli._write_csv(tmp_path/'p.csv', tmp_path, [tmp_path/os.fsdecode(b'caf\xe9.png')], ['a','b'], torch.tensor([[.9,.1]]))
    assert b'caf\xe9.png,a,0.9' in (tmp_path/'p.csv').read_bytes()

def test_a_package_that_is_missing(demo, some_pictures, tmp_path, capsys, monkeypatch):
    "fastai's `load_learner` falls over itself then"
    def load(*args, **kw): raise UnboundLocalError("cannot access local variable 'res'")
    monkeypatch.setattr('fastai.learner.load_learner', load)
    rc,_,err = here(cli.clr_predict, capsys, demo[0]/'export.pkl', some_pictures, out=tmp_path/'p.csv', device='cpu')
    assert rc==1 and 'a package that it was made with is missing here, such as timm' in err

def exported(demo, path, loss_func):
    learn = load_learner(demo[0]/'export.pkl')
    learn.loss_func = loss_func
    learn.export(path)
    return path

def test_a_model_of_pixels_is_no_classifier(demo, some_pictures, tmp_path, capsys):
    rc,_,err = here(cli.clr_predict, capsys, exported(demo, tmp_path/'two.pkl', CrossEntropyLossFlat(axis=1)), some_pictures, out=tmp_path/'p.csv', device='cpu')
    assert rc==1 and 'is no classifier' in err and not (tmp_path/'p.csv').exists()

def test_several_labels(demo, some_pictures, tmp_path, capsys):
    "All labels above the threshold, none among them"
    def predicted(thresh):
        model = exported(demo, tmp_path/'two.pkl', BCEWithLogitsLossFlat(thresh=thresh))
        rc,_,err = here(cli.clr_predict, capsys, model, some_pictures, out=tmp_path/'p.csv', device='cpu', overwrite=True)
        assert rc==0, err
        return pd.read_csv(tmp_path/'p.csv', dtype={'label': str}, keep_default_na=False)
    assert set(predicted(1.)['label'])=={''}
    thresh = float(predicted(.5).filter(like='p_').stack().median())+1e-6
    df = predicted(thresh)
    want = [';'.join(c[2:] for c in df if c.startswith('p_') and row[c]>thresh) for _,row in df.iterrows()]
    assert df['label'].tolist()==want and any(';' in o for o in want)

@pytest.mark.parametrize('model,pictures,kw,says', [('gone.pkl','new',{},"gone.pkl doesn't exist"), ('new/notes.pkl','new',{},"can't be opened as an exported Learner"),
    ('export.pkl','nowhere',{},"nowhere doesn't exist: it must be a folder of pictures"), ('export.pkl','empty',{},'empty holds no pictures that can be opened'),
    ('export.pkl','new/notes.pkl',{},'is no picture that can be opened'), ('export.pkl','new',dict(bs=0),'`--bs` must be a number of pictures, at least 1, got 0'),
    ('export.pkl','new',dict(out=Path('empty')),'is there already: choose another file'), ('export.pkl','new',dict(out=Path('no/p.csv')),'there is no folder no'),
    ('export.pkl','new',dict(device='cuda:99'),"`device` 'cuda:99' is not to be had"), ('none.pkl','new',{},'none.pkl is no classifier')])
def test_predictions_that_are_refused(demo, some_pictures, tmp_path, capsys, monkeypatch, model, pictures, kw, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path/'empty').mkdir()
    (some_pictures/'notes.pkl').write_text('no pickle')
    shutil.copy(demo[0]/'export.pkl', tmp_path)
    exported(demo, tmp_path/'none.pkl', MSELossFlat())
    was = [(n,s) for n,_,s in listing(tmp_path)]
    rc,_,err = here(cli.clr_predict, capsys, Path(model), Path(pictures), **kw)
    assert rc==1 and says in err and err.count('clr_predict:')==1 and [(n,s) for n,_,s in listing(tmp_path)]==was, err

# Stores

def test_stores(demo, tmp_path, capsys):
    "Listed, last used first, and deleted by age or size, or only named"
    path = shutil.copytree(demo[0]/'activations', tmp_path/'activations')
    found = list_stores(path)
    rc,stdout,err = clr_train(path, exe=stores_exe)
    *lines,total = stdout.splitlines()
    assert rc==0 and [o.split()[0] for o in lines]==[o['folder'].name for o in found] and len(found)==2, err
    assert total==f"2 stores, {sum(o['bytes'] for o in found)/1e6:,.1f} MB" and all(o['about'] in l for o,l in zip(found, lines))
    keep = max(found, key=lambda o: o['bytes'])
    os.utime(keep['folder']/MANIFEST)
    def stores(**kw): return here(cli.clr_stores, capsys, path, **kw)
    rc,stdout,_ = stores(max_mb=keep['bytes']/1e6, dry_run=True)
    assert rc==0 and stdout.startswith('Would delete') and '1 store,' in stdout and stdout.endswith('would stay\n') and len(list_stores(path))==2
    rc,stdout,_ = stores(max_mb=keep['bytes']/1e6)
    assert rc==0 and stdout.startswith('Deleted') and [o['folder'] for o in list_stores(path)]==[keep['folder']]
    assert stores(unused_days=1)[0]==0 and len(list_stores(path))==1
    assert stores(unused_days=0)[1].endswith('0 stores, 0.0 MB\n') and not list_stores(path)

@pytest.mark.parametrize('path,kw,says', [('nowhere',{},'there is no folder nowhere'), ('.',dict(dry_run=True),'`--dry-run` goes with'),
    ('.',dict(max_mb=-1),'`--max-mb` must be a number of MB, at least 0, got -1'), ('.',dict(unused_days=float('nan')),'`unused_days` must be a number at least 0')])
def test_stores_refused(capsys, monkeypatch, tmp_path, path, kw, says):
    monkeypatch.chdir(tmp_path)
    rc,_,err = here(cli.clr_stores, capsys, Path(path), **kw)
    assert rc==1 and says in err and err.count('clr_stores:')==1

@pytest.mark.parametrize('args,want', [(['p'], dict(size=224, bs=16, flip=True, valid_pct=.2, seed=42)), (['p','--no-flip','--size',8,'--valid-pct',.3], dict(size=8, flip=False, valid_pct=.3)),
    (['--demo','--no-pretrained'], dict(size=64, bs=64, flip=False))], ids=['plain','given','demo'])
def test_what_the_data_are_made_with(digits, tmp_path, monkeypatch, args, want):
    "The defaults that the help names, and what was asked for"
    seen = {}
    def stop(path, **kw):
        seen.update(kw)
        raise ValueError('enough')
    monkeypatch.setattr('fastai_clr.data.picture_dls', stop)
    rc,_,err = clr_train_here(*[digits if o=='p' else o for o in args], '--device', 'cpu', '--out', tmp_path/'out')
    assert rc==1 and 'enough' in err and {k: seen[k] for k in want}==want

def test_weights_inside_out(digits, tmp_path):
    "Which `--overwrite` would delete"
    out = tmp_path/'out'
    out.mkdir()
    (out/'.clr_train').touch()
    (out/'w.pth').write_bytes(b'mine')
    rc,_,err = clr_train_here(digits, '--weights', out/'w.pth', '--out', out, '--overwrite')
    assert rc==1 and '--weights' in err and 'lie inside `--out`' in err and (out/'w.pth').read_bytes()==b'mine'

def test_too_little_memory(digits, tmp_path, monkeypatch):
    def full(*a): raise torch.OutOfMemoryError('CUDA out of memory')
    monkeypatch.setattr(cli, '_learner', full)
    refused(tmp_path/'out', digits, says='(?m)^clr_train: the GPU has too little memory: pass a lower --bs or --size$')

# What a second look found

def test_a_failed_start_leaves_files_of_others(tmp_path):
    with pytest.raises(ValueError), cli._claimed(tmp_path/'a'), cli._new_out(tmp_path/'a'):
        (tmp_path/'a/mine.txt').write_text('keep me')
        raise ValueError
    assert sorted(o.name for o in (tmp_path/'a').iterdir() if o.name!=cli._lock)==['mine.txt']

def test_a_hidden_file_beside_the_result(tmp_path):
    "And a name of 255 characters"
    (tmp_path/'.s.png').write_text('mine')
    for name in ('s.png', f"{'n'*251}.png"):
        with cli._replacing(tmp_path/name) as tmp: tmp.write_text('new')
        assert (tmp_path/name).read_text()=='new'
    assert (tmp_path/'.s.png').read_text()=='mine' and len(list(tmp_path.iterdir()))==3

@pytest.mark.parametrize('given,says', [(dict(size=32), '--size is 32, and was 64'), (dict(pictures='other'), '--pictures is other'), (dict(test='held'), '--test is held, and was None'), (dict(n_cycles=2), '--cycles is 2, and was 3')])
def test_a_finished_run_of_other_options(tmp_path, given, says):
    done = RecipeReport(dict(pictures='p', arch='resnet34', n_cycles=3, size=64, valid_pct=.2, seed=42, test=None, label_delim=None), {})
    with pytest.raises(ValueError, match=says): cli._check_same(done, tmp_path, {**dict(pictures='p', arch=None, size=None, valid_pct=.2, seed=42), **given})
    cli._check_same(done, tmp_path, dict(pictures='p', arch=None, size=64, valid_pct=.2, seed=42, test=None))

@pytest.mark.parametrize('args,says', [(['--seed',-1], '`--seed` must be a whole number from 0'), (['--seed',10**20], '`--seed` must be'), (['--cycles',80], 'more epochs than can ever be trained'),
    (['--device','meta'], 'holds no numbers'), (['--size',10**10], 'more than this machine can hold|can.t take pictures')])
def test_numbers_beyond_sense(digits, tmp_path, args, says):
    rc,_,err = clr_train_here(digits, '--no-pretrained', '--out', tmp_path/'out', *args)
    assert rc==1 and re.search(says, err) and 'Traceback' not in err and not (tmp_path/'out').exists(), err

def test_links_in_circles_and_pipes(digits, tmp_path):
    src = some(digits, tmp_path/'p')
    n = len(cli._pictures_in(src))
    (src/'loop').symlink_to('.')
    os.mkfifo(src/'pipe.png')
    assert len(cli._pictures_in(src))==n
    with pytest.raises(ValueError, match='is neither a folder nor a file'): cli._pictures_in(src/'pipe.png')

@pytest.mark.parametrize('name', ['\ttab.png','\rreturn.png','=x','@x'])
def test_names_that_a_spreadsheet_would_read(name): assert cli._no_formula(name)==f"'{name}"

@pytest.mark.parametrize('steps', [[{}], [1], {}], ids=str)
def test_a_report_that_was_tampered_with(tmp_path, steps):
    "Is no finished run"
    (tmp_path/'export.pkl').touch()
    (tmp_path/'report.json').write_text(json.dumps(dict(settings={}, versions={}, finished=True, steps=steps, kept='step 3')))
    assert cli._finished(tmp_path) is None

def test_results_that_the_disk_takes_no_more(tmp_path, monkeypatch, capsys):
    "Predictions, and the picture of a schedule: one sentence, and nothing half-written"
    def full(a, b): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(cli.os, 'replace', full)
    with pytest.raises(OSError): cli._write_csv(tmp_path/'p.csv', tmp_path, [tmp_path/'a.png'], ['a','b'], torch.tensor([[.9,.1]]))
    rc,_,err = here(cli.clr_schedule, capsys, 'sgdr', out=str(tmp_path/'s.png'))
    assert rc==1 and err.count('clr_schedule:')==1 and 'No space left' in err and not list(tmp_path.iterdir())

@pytest.mark.parametrize('cmd', [exe,predict_exe,stores_exe], ids=lambda o: o.name)
def test_help_has_a_default_for_each_option(cmd):
    rc,out,_ = clr_train('--help', exe=cmd)
    options = re.split(r'\n  (?=--)', out[out.index('options:'):])[1:]
    assert rc==0 and options
    for o in options: assert re.search('default:|if not given', ' '.join(o.split())), o

def test_no_host_is_asked(digits, weights, tmp_path, monkeypatch):
    "Where weights are given"
    def connect(self, to): pytest.fail(f'{to} was asked') if self.family in (socket.AF_INET,socket.AF_INET6) else None
    monkeypatch.setattr(socket.socket, 'connect', connect)
    rc,_,err = clr_train_here(digits, '--arch', 'tf_efficientnet_lite0', '--weights', weights, '--dry-run', '--size', 32, '--out', tmp_path/'out')
    assert rc==0, err
