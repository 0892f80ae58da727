"What the README has a newcomer type works"
import re, shutil, sys
from fastai.learner import load_learner
from conftest import root, run

def test_ones_own_pictures_as_the_readme_has_it(digits, weights, tmp_path):
    "Its lines, with a shorter clock and the demo's weights in place of those that are downloaded"
    blocks = re.findall(r'^``` ?python\n(.*?)^```', (root/'README.md').read_text(encoding='utf-8'), re.M|re.S)
    code = next(o for o in blocks if "picture_dls('pets')" in o)
    for a,b in {"('pets')": "('pets', size=48, flip=False)", '(dls)': f"(dls, 'tf_efficientnet_lite0', weights={str(weights)!r})", "'10m'": "'30s'"}.items():
        assert a in code
        code = code.replace(a, b)
    shutil.copytree(digits, tmp_path/'pets')
    run(sys.executable, '-W', 'ignore', '-c', code, cwd=tmp_path)
    assert (tmp_path/'report/report.html').exists() and len(load_learner(tmp_path/'export.pkl').dls.vocab)==10
