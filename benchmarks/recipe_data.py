"""Folders of pictures for bench_recipe.py, each with train, valid and test, one folder a class

`digits` are scikit-learn's. `fashion` reads the folder with the four `.gz` files of Debian's package dataset-fashion-mnist (MIT). `emoji` reads npm's
package emoji-datasource-twitter, unpacked (code MIT, drawings CC-BY 4.0): drawings in the classes that Unicode sorts them in, without the
variants of skin tone. `few` is a small set made of another one, `subgroups` the emoji by the finer of the two ways in which Unicode sorts them.

    python benchmarks/recipe_data.py digits DEST
    python benchmarks/recipe_data.py fashion DEST --source usr/share/datasets/fashion-mnist
    python benchmarks/recipe_data.py emoji DEST --source package
    python benchmarks/recipe_data.py subgroups DEST --source package
    python benchmarks/recipe_data.py few DEST --source PATH
"""
import argparse, gzip, json, shutil
from pathlib import Path
import numpy as np
from PIL import Image

def save(dest, part, label, name, img):
    file = dest/part/label/f'{name}.png'
    file.parent.mkdir(parents=True, exist_ok=True)
    img.save(file)

def split(dest, pics):
    "Three of five pictures of each class for training, one for validation, one for testing, by a fixed seed"
    rng,labels = np.random.default_rng(0),np.array([o[0] for o in pics])
    for c in sorted(set(labels)):
        idxs = rng.permutation(np.flatnonzero(labels==c))
        for j,i in enumerate(idxs): save(dest, ('train','train','train','valid','test')[j%5], *pics[i])

def digits(dest, source):
    from sklearn.datasets import load_digits
    d = load_digits()
    split(dest, [(str(y), f'{i:04d}', Image.fromarray((img*255/16).round().astype(np.uint8))) for i,(img,y) in enumerate(zip(d.images, d.target))])

def fashion(dest, source):
    "The first 1,500 pictures of the training part, every fifth for validation, and the first 500 of the test part"
    names = 't-shirt trouser pullover dress coat sandal shirt sneaker bag boot'.split()
    for kind,n in (('train',1500),('t10k',500)):
        ys = np.frombuffer(gzip.decompress((source/f'{kind}-labels-idx1-ubyte.gz').read_bytes()), np.uint8, offset=8)[:n]
        xs = np.frombuffer(gzip.decompress((source/f'{kind}-images-idx3-ubyte.gz').read_bytes()), np.uint8, offset=16).reshape(-1, 28, 28)[:n]
        for i,(x,y) in enumerate(zip(xs, ys)): save(dest, 'test' if kind=='t10k' else 'valid' if i%5==0 else 'train', names[y], f'{kind}{i:04d}', Image.fromarray(x))

def emoji(dest, source, key='category'):
    pics = []
    for o in json.loads((source/'emoji.json').read_text()):
        file = source/'img/twitter/64'/o['image']
        if o['category']=='Component' or not file.exists(): continue
        img = Image.open(file).convert('RGBA')
        pics.append((o[key].replace(' & ', ' and '), o['image'][:-4], Image.alpha_composite(Image.new('RGBA', img.size, 'white'), img).convert('RGB')))
    split(dest, pics)

def subgroups(dest, source): emoji(dest, source, 'subcategory')

def few(dest, source):
    "The first 20 pictures of each class for training and 10 for validation, and the whole test part"
    for part,n in (('train',20),('valid',10),('test',None)):
        for d in sorted(o for o in (source/part).iterdir() if o.is_dir()):
            (dest/part/d.name).mkdir(parents=True)
            for f in sorted(d.iterdir())[:n]: shutil.copy(f, dest/part/d.name/f.name)

if __name__=='__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('name', choices=['digits','fashion','emoji','subgroups','few'])
    p.add_argument('dest', type=Path, help='a new folder')
    p.add_argument('--source', type=Path)
    o = p.parse_args()
    if o.dest.exists(): p.error(f'{o.dest} is there already')
    dict(digits=digits, fashion=fashion, emoji=emoji, subgroups=subgroups, few=few)[o.name](o.dest, o.source)
    for part in ('train','valid','test'): print(part, {d.name: len(list(d.iterdir())) for d in sorted((o.dest/part).iterdir())})
